"""Two networks on real Envoys: a client reaches a workload of the other one through its gateway, by mTLS and SNI."""

from __future__ import annotations

from pathlib import Path

import pytest

from envoy_rig import Backend, fetch, free_port
from live import running
from meltemi.ir.cluster import ClusterType
from mesh_world import World, build_world, pod, service
from pki import make_authority

pytestmark = pytest.mark.envoy
SERVER_IP, GATEWAY_IP = "127.0.4.1", "127.0.4.2"
GATEWAY = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: cross-network, namespace: istio-system}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - port: {number: 15443, name: tls, protocol: TLS}
    tls: {mode: AUTO_PASSTHROUGH}
    hosts: ["*.local"]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /v1}}]
    route: [{destination: {host: web, subset: v1}}]
  - match: [{uri: {prefix: /v2}}]
    route: [{destination: {host: web, subset: v2}}]
  - route: [{destination: {host: web}}]
"""


def _world(port: int, gateway: int) -> World:
    return build_world(
        service("web", ("http", 9080, port))
        + pod("web", SERVER_IP, labels={"version": "v1", "topology.istio.io/network": "n2"})
        + pod("client", "10.1.0.6", labels={"topology.istio.io/network": "n1"})
        + pod("gw", GATEWAY_IP, namespace="istio-system", labels={"istio": "eastwestgateway"})
        + GATEWAY,
        mesh="inboundTrafficPolicy: {mode: LOCALHOST}",
        networks=f"networks: {{n2: {{gateways: [{{address: {GATEWAY_IP}, port: {gateway}}}]}}}}",
    )


@pytest.mark.covers("MeshNetworks.networks.gateways.address", "MeshNetworks.networks.gateways.port")
def test_traffic_between_networks(tmp_path: Path) -> None:
    """The client connects to the gateway only; the server sees the client's own identity."""
    backend = Backend("web")
    authority = make_authority()
    gateway, out = free_port(GATEWAY_IP), free_port()
    world = _world(backend.port, gateway)
    assert not world.findings
    try:
        with (
            running(
                tmp_path / "s",
                world,
                "web",
                {"virtualInbound": [(SERVER_IP, backend.port)]},
                authority=authority,
                network="n2",
            ),
            running(
                tmp_path / "g",
                world,
                "gw.istio-system",
                {"0.0.0.0_15443": [(GATEWAY_IP, gateway)]},
                authority=authority,
                network="n2",
            ) as between,
            running(
                tmp_path / "c",
                world,
                "client",
                {"0.0.0.0_9080": [("127.0.0.1", out)]},
                authority=authority,
                network="n1",
            ),
        ):
            for path in ("/x", "/v1/x"):
                answer = fetch(out, path, host="web")
                assert answer.status == 200
                assert "x-forwarded-client-cert" in answer.json["headers"]
            assert fetch(out, "/v2/x", host="web").status == 503
            name = "outbound_.9080_.v1_.web.default.svc.cluster.local"
            assert between.counter(f"cluster.{name}.upstream_cx_total") >= 1
    finally:
        backend.close()


def test_the_own_network_is_reached_directly() -> None:
    """In one network the address is the workload's; a network that nobody knows a gateway for is direct as well."""
    from envoy.config.endpoint.v3 import endpoint_pb2

    world = _world(9080, 15443)
    for network, expected in (("n1", GATEWAY_IP), ("n2", SERVER_IP), ("", SERVER_IP)):
        ir = world.ir("client", network=network)
        need = ir.needs()["outbound|9080||web.default.svc.cluster.local"]
        from meltemi.envoy import encode_endpoints

        known = world.store.endpoints.endpoints(need.hostname, need.namespace)
        made = endpoint_pb2.ClusterLoadAssignment.FromString(encode_endpoints(need, known).body)
        address = made.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address
        assert address == expected


def test_clusters_are_named_by_sni_only_where_they_are_needed() -> None:
    """A gateway without AUTO_PASSTHROUGH has none of them."""
    world = _world(9080, 15443)
    names = {c.name: c for c in world.ir("gw.istio-system", network="n2").clusters}
    made = names["outbound_.9080_.v1_.web.default.svc.cluster.local"]
    assert made.type is ClusterType.EDS
    assert made.tls is None
    assert made.auto_tls is None
    other = world.ir("gw.istio-system", labels={"istio": "ingressgateway"}, network="n2")
    assert not any(c.name.startswith("outbound_.") for c in other.clusters)
