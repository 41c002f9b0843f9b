"""Destinations that the mesh does not know: passed through, refused, or sent to a proxy for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from behaviour.far_server import FarServer
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer, Response
from pki import Authority, make_authority

pytestmark = pytest.mark.envoy

CLOSED = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"


@pytest.mark.covers("MeshConfig.outboundTrafficPolicy.mode=ALLOW_ANY")
def test_unknown_destinations_are_passed_through(shop: Mesh, caller: Client) -> None:
    shop.apply(mesh_config="outboundTrafficPolicy: {mode: ALLOW_ANY}")
    answer = caller.get("http://films.example:9080/")
    assert answer.json()["service"] == "films.example"
    assert answer.destination.cluster == "PassthroughCluster"
    assert caller.get("http://films.example:7777/").json()["service"] == "films.example"
    with caller.tcp("203.0.113.1:7777") as connection:
        assert connection.ask("hi")["service"] == "203.0.113.1"
    with caller.tls("films.example:9443") as connection:
        assert connection.ask("hi")["tls"]["sni"] == "films.example"


@pytest.mark.covers("MeshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY")
def test_unknown_destinations_are_refused(shop: Mesh, caller: Client) -> None:
    """502 where HTTP is spoken to services of the port, else a closed connection."""
    shop.apply(mesh_config=CLOSED)
    assert caller.get("http://films.example:9080/").status == 502
    with pytest.raises(NoAnswer):
        caller.get("http://films.example:7777/")
    with caller.tcp("203.0.113.1:7777") as connection:
        assert connection.ask("hi") is None
        assert connection.exchange.flags == "UH"
    with pytest.raises(NoAnswer):
        caller.tls("films.example:9443")
    assert caller.get("http://reviews:9080/").status == 200


@pytest.mark.covers("MeshConfig.proxyHttpPort")
def test_applications_may_name_the_service_to_an_http_proxy(shop: Mesh, caller: Client) -> None:
    """By name and port; rules apply as ever. Without the setting the port is closed."""
    proxy = "http://127.0.0.1:15007/"
    with pytest.raises(NoAnswer):
        caller.get(proxy, headers={"host": "reviews:9080"})
    shop.apply(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: details}\n"
        "spec: {hosts: [details], http: [{match: [{port: 9081}], directResponse: {status: 209}}]}",
        mesh_config="proxyHttpPort: 15007\n" + CLOSED,
    )
    answer = caller.get(proxy, headers={"host": "reviews.default:9080"})
    assert answer.destination.service == "reviews.default.svc.cluster.local"
    assert answer.mtls
    assert caller.get(proxy, headers={"host": "details:9081"}).status == 209
    for unknown in ("details", "details:9999", "films.example"):
        assert caller.get(proxy, headers={"host": unknown}).status == 502


@pytest.mark.parametrize("taken", [9080, 15001, 15006, 15090])
def test_a_port_that_is_taken_is_not_opened_for_proxying(
    shop: Mesh, caller: Client, taken: int
) -> None:
    shop.apply(mesh_config=f"proxyHttpPort: {taken}")
    assert "proxyHttpPort" in {f.origin.path for f in shop.findings}
    assert caller.get("http://reviews:9080/").status == 200


def test_pods_are_reached_by_their_own_address(shop: Mesh, caller: Client) -> None:
    """Past every Service: as plaintext, which the other side takes unless told otherwise."""
    pod = next(p for p in shop.objects.proxies if p.workload == "details-v1")
    answer = caller.get(f"http://{pod.address}:9080/")
    assert answer.workload == "details-v1"
    assert answer.destination.cluster == "PassthroughCluster"
    assert not answer.mtls
    shop.apply(mesh_config=CLOSED)
    assert caller.get(f"http://{pod.address}:9080/").status == 502


@pytest.mark.parametrize("port", [15001, 15006])
def test_the_proxys_own_ports_are_no_way_round_in_circles(
    shop: Mesh, caller: Client, port: int
) -> None:
    pod = next(p for p in shop.objects.proxies if p.workload == "caller")
    with caller.tcp(f"{pod.address}:{port}") as connection:
        assert connection.ask("hello there") is None


SIDECAR = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default}}
spec: {{outboundTrafficPolicy: {{{policy}}}}}
"""


@pytest.mark.covers(
    "Sidecar.outboundTrafficPolicy.mode=REGISTRY_ONLY",
    "Sidecar.outboundTrafficPolicy.mode=ALLOW_ANY",
)
def test_a_sidecar_decides_for_its_workloads(shop: Mesh) -> None:
    shop.apply(SIDECAR.format(policy="mode: REGISTRY_ONLY"))
    assert shop.client("caller").get("http://films.example:9080/").status == 502
    assert shop.client("other").get("http://films.example:9080/").status == 200
    shop.apply(SIDECAR.format(policy="mode: ALLOW_ANY"), mesh_config=CLOSED)
    assert shop.client("caller").get("http://films.example:9080/").status == 200
    assert shop.client("other").get("http://films.example:9080/").status == 502


def test_a_policy_without_a_mode_is_registry_only(shop: Mesh) -> None:
    shop.apply(SIDECAR.format(policy=""))
    assert shop.client("caller").get("http://films.example:9080/").status == 502


@pytest.mark.covers(
    "Sidecar.outboundTrafficPolicy.egressProxy.host",
    "Sidecar.outboundTrafficPolicy.egressProxy.subset",
    "Sidecar.outboundTrafficPolicy.egressProxy.port.number",
)
@pytest.mark.parametrize(
    ("proxy", "found"),
    [
        ("host: reviews, subset: v2, port: {number: 9080}", {"reviews-v2"}),
        ("host: details.default.svc.cluster.local, port: {number: 9080}", {"details-v1"}),
    ],
)
def test_unknown_destinations_go_to_the_egress_proxy(
    shop: Mesh, caller: Client, proxy: str, found: set[str]
) -> None:
    shop.apply(SIDECAR.format(policy=f"mode: ALLOW_ANY, egressProxy: {{{proxy}}}"))
    answers = [caller.get("http://films.example:9080/") for _ in range(4)]
    assert {answer.workload for answer in answers} == found
    assert {answer.json()["host"] for answer in answers} == {"films.example:9080"}


def test_unknown_bytes_go_to_the_egress_proxy(shop: Mesh, caller: Client) -> None:
    egress = "host: reviews, subset: v3, port: {number: 9000}"
    shop.apply(SIDECAR.format(policy=f"mode: ALLOW_ANY, egressProxy: {{{egress}}}"))
    with caller.tcp("203.0.113.1:7777") as connection:
        assert connection.ask("hi")["workload"] == "reviews-v3"


@pytest.mark.covers("MeshConfig.outboundTrafficPolicy.mode=ALLOW_ANY_DYNAMIC_DNS")
def test_unknown_hosts_are_resolved_by_name(shop: Mesh, caller: Client) -> None:
    """The name in the request counts, not the address that the client connected to."""
    shop.apply(mesh_config="outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}")
    answer = caller.get("http://203.0.113.1:9080/", host="localhost:1")
    assert answer.destination.cluster == "DynamicForwardProxyCluster"
    assert answer.status == 503, "nothing listens at localhost:1"


@pytest.mark.covers("MeshConfig.outboundTrafficPolicy.tls")
def test_unknown_hosts_may_be_spoken_to_in_tls(
    shop: Mesh, caller: Client, authority: Authority, tmp_path: Path
) -> None:
    """The server's certificate must be for the host that the request asks for, and of the named authority."""
    server = FarServer(tmp_path, authority.issue("localhost"))
    roots = tmp_path / "roots.pem"

    def ask() -> Response:
        tls = f"tls: {{mode: SIMPLE, caCertificates: {roots}}}"
        shop.apply(mesh_config=f"outboundTrafficPolicy: {{mode: ALLOW_ANY_DYNAMIC_DNS, {tls}}}")
        return caller.get("http://203.0.113.1:9080/", host=f"localhost:{server.port}")

    roots.write_bytes(authority.root)
    answer = ask()
    assert answer.status == 200
    assert answer.json()["sni"] == "localhost"
    roots = tmp_path / "others.pem"
    roots.write_bytes(make_authority("stranger").root)
    assert ask().status == 503


@pytest.mark.covers("MeshConfig.inboundTrafficPolicy.mode=PASSTHROUGH")
def test_ports_that_no_service_names_are_served_all_the_same(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: details-v1}
spec:
  template:
    metadata: {labels: {app: details, version: v1}}
    spec: {serviceAccountName: details, containers: [{name: app, ports: [{containerPort: 6000}]}]}
""")
    pod = next(p for p in shop.objects.proxies if p.workload == "details-v1")
    answer = shop.client("caller").get(f"http://{pod.address}:6000/")
    assert answer.workload == "details-v1"
    assert answer.last is not None
    assert answer.last.cluster == "InboundPassthroughCluster"
