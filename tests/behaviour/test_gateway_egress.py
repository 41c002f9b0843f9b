"""Gateways for traffic that leaves the mesh, or goes to another network of it."""

from __future__ import annotations

import pytest

from behaviour.edge import gateway
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

EGRESS = """
apiVersion: v1
kind: Service
metadata: {name: istio-egressgateway, namespace: istio-system}
spec:
  selector: {istio: egressgateway}
  ports:
  - {name: http2, port: 80, targetPort: 8080}
  - {name: https, port: 443, targetPort: 8443}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bank}
spec:
  hosts: [bank.example.com]
  resolution: DNS
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 443, name: tls, protocol: TLS}
"""
THROUGH_EGRESS = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bank}
spec:
  hosts: [bank.example.com]
  gateways: [mesh, way-out]
  http:
  - match: [{gateways: [mesh], port: 80}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, port: {number: %d}, subset: bank}}]
  - match: [{gateways: [way-out]}]
    route: [{destination: {host: bank.example.com, port: {number: %d}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: way-out}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets:
  - name: bank
    trafficPolicy: %s
"""


def test_traffic_leaves_through_an_egress_gateway(shop: Mesh, caller: Client) -> None:
    shop.apply(
        EGRESS,
        gateway(
            "- {port: {number: 80, name: http, protocol: HTTP}, hosts: [bank.example.com]}",
            name="way-out",
            selector="{istio: egressgateway}",
        ),
        THROUGH_EGRESS % (80, 80, "{loadBalancer: {simple: RANDOM}}"),
    )
    answer = caller.get("http://bank.example.com/")
    assert answer.status == 200
    assert [hop.direction for hop in answer.hops] == ["outbound", "gateway"]
    assert answer.workload == "bank"


@pytest.mark.covers("Gateway.servers.tls.mode=ISTIO_MUTUAL")
def test_sidecars_prove_who_they_are_to_an_egress_gateway(shop: Mesh, caller: Client) -> None:
    shop.apply(
        EGRESS,
        gateway(
            "- port: {number: 443, name: https, protocol: HTTPS}\n"
            "  hosts: [bank.example.com]\n"
            "  tls: {mode: ISTIO_MUTUAL}",
            name="way-out",
            selector="{istio: egressgateway}",
        ),
        THROUGH_EGRESS
        % (
            443,
            80,
            "{portLevelSettings: [{port: {number: 443}, tls: {mode: ISTIO_MUTUAL, sni: bank.example.com}}]}",
        ),
    )
    answer = caller.get("http://bank.example.com/")
    assert answer.status == 200
    gate = answer.hops[-1]
    assert gate.direction == "gateway"
    assert gate.peer == "spiffe://cluster.local/ns/default/sa/caller"
    shown = answer.json()["headers"]["x-forwarded-client-cert"]
    assert "spiffe://cluster.local/ns/default/sa/caller" in shown


BYTES_THROUGH_EGRESS = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: bank}
spec:
  hosts: [bank.example.com]
  gateways: [mesh, way-out]
  tls:
  - match: [{gateways: [mesh], port: 443, sniHosts: [bank.example.com]}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, port: {number: 443}, subset: bank}}]
  %s
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: way-out}
spec:
  host: istio-egressgateway.istio-system.svc.cluster.local
  subsets:
  - name: bank
    trafficPolicy: {tls: {mode: %s, sni: %s}}
"""
FROM_GATEWAY = "route: [{destination: {host: bank.example.com, port: {number: 443}}}]"


@pytest.mark.covers("VirtualService.tls.match.gateways", "VirtualService.tls.match.port")
@pytest.mark.parametrize("mode", ["PASSTHROUGH", "ISTIO_MUTUAL"])
def test_tls_of_applications_leaves_through_an_egress_gateway(
    shop: Mesh, caller: Client, mode: str
) -> None:
    onward = (
        f"- match: [{{gateways: [way-out], port: 443, sniHosts: [bank.example.com]}}]\n    {FROM_GATEWAY}",
        "DISABLE",
        '""',
    )
    if mode == "ISTIO_MUTUAL":
        # The application's TLS inside the mesh's.
        onward = (
            f"tcp:\n  - match: [{{gateways: [way-out], port: 443}}]\n    {FROM_GATEWAY}",
            "ISTIO_MUTUAL",
            "bank.example.com",
        )
    shop.apply(
        EGRESS,
        gateway(
            "- port: {number: 443, name: tls, protocol: TLS}\n"
            f"  hosts: [bank.example.com]\n  tls: {{mode: {mode}}}",
            name="way-out",
            selector="{istio: egressgateway}",
        ),
        BYTES_THROUGH_EGRESS % onward,
    )
    with caller.tls("bank.example.com:443") as line:
        answer = line.ask("hello")
        assert answer["workload"] == "bank"
        assert answer["tls"]["sni"] == "bank.example.com"
    gate = next(hop for hop in line.exchange.hops if hop.direction == "gateway")
    assert bool(gate.tls) == (mode == "ISTIO_MUTUAL")


# --- between networks -------------------------------------------------------------------------------


CROSSING = """
apiVersion: v1
kind: Service
metadata: {name: istio-eastwestgateway, namespace: istio-system}
spec:
  clusterIP: 10.96.7.7
  selector: {istio: eastwestgateway}
  ports: [{name: tls, port: 15443}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: far-away}
spec:
  hosts: [far.example.com]
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 15443}]
  endpoints: [{address: 10.96.7.7}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: far-away}
spec:
  host: far.example.com
  trafficPolicy:
    connectionPool: {http: {maxRequestsPerConnection: 1}}
    tls: {mode: ISTIO_MUTUAL, sni: %s, subjectAltNames: ["spiffe://cluster.local/ns/default/sa/reviews"]}
"""


@pytest.mark.covers("Gateway.servers.tls.mode=AUTO_PASSTHROUGH")
def test_auto_passthrough_takes_the_destination_from_the_sni(shop: Mesh, caller: Client) -> None:
    crossing = gateway(
        '- {port: {number: 15443, name: tls, protocol: TLS}, hosts: ["*.local"], '
        "tls: {mode: AUTO_PASSTHROUGH}}",
        selector="{istio: eastwestgateway}",
    )
    sni = "outbound_.9080_.%s_.reviews.default.svc.cluster.local"
    shop.apply(crossing, CROSSING % (sni % "v2"))
    for _ in range(5):
        answer = caller.get("http://far.example.com/")
        assert answer.workload == "reviews-v2"
        assert answer.peer_identity == "spiffe://cluster.local/ns/default/sa/caller"
    shop.apply(CROSSING % (sni % ""))
    assert {caller.get("http://far.example.com/").workload for _ in range(30)} == {
        "reviews-v1",
        "reviews-v2",
        "reviews-v3",
    }
    shop.apply(CROSSING % "outbound_.9080_._.nobody.default.svc.cluster.local")
    assert caller.get("http://far.example.com/").status == 503
