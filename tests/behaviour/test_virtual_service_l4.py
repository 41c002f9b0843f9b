"""VirtualService ``tcp[]`` and ``tls[]``: which connections a rule takes, and where they go."""

from __future__ import annotations

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

BANK = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: bank}
spec:
  hosts: [bank.example.com]
  addresses: [198.51.100.0/24]
  location: MESH_EXTERNAL
  resolution: NONE
  ports:
  - {number: 9100, name: tcp, protocol: TCP}
  - {number: 9443, name: tls, protocol: TLS}
"""
VAULT = """
apiVersion: v1
kind: Service
metadata: {name: vault}
spec:
  selector: {app: reviews}
  ports: [{name: tls, port: 8443}, {name: tls-second, port: 8444}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vault}
spec:
  host: vault
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
  - {name: v3, labels: {version: v3}}
"""
GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 8443, name: tls, protocol: TLS}, hosts: ["vault.default.svc.cluster.local"], tls: {mode: PASSTHROUGH}}
"""


def rules(kind: str, section: str, host: str = "reviews", more: str = "") -> str:
    """A VirtualService with a ``tcp`` or ``tls`` section."""
    lines = "\n".join("  " + line for line in section.strip().splitlines())
    return (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: l4}\n"
        f"spec:\n  hosts: [{host}]\n{more}  {kind}:\n{lines}\n"
    )


def tcp(client: Client, url: str) -> str:
    """The workload that a connection reaches."""
    with client.tcp(url) as connection:
        return str(connection.ask("hello")["workload"])


def tls(client: Client, url: str, sni: str) -> str:
    """The workload that a TLS connection reaches."""
    with client.tls(url, sni=sni) as connection:
        return str(connection.ask("hello")["workload"])


@pytest.mark.covers(
    "VirtualService.tcp.match.destinationSubnets",
    "VirtualService.tcp.route.destination.port.number",
)
def test_tcp_by_destination_subnet(shop: Mesh, caller: Client) -> None:
    """Of an external range one part goes to a service of the mesh, at a port of its own."""
    shop.apply(
        BANK,
        rules(
            "tcp",
            """
- match: [{destinationSubnets: ["198.51.100.128/25"]}]
  route: [{destination: {host: reviews.default.svc.cluster.local, subset: v2, port: {number: 9000}}}]
- route: [{destination: {host: details.default.svc.cluster.local, port: {number: 9000}}}]
""",
            "bank.example.com",
        ),
    )
    assert tcp(caller, "198.51.100.200:9100") == "reviews-v2"
    assert tcp(caller, "198.51.100.20:9100") == "details-v1"


@pytest.mark.covers("VirtualService.tcp.match.sourceSubnet")
@pytest.mark.parametrize(
    ("subnet", "reached"), [("0.0.0.0/0", "reviews-v2"), ("192.0.2.0/24", "reviews-v1")]
)
def test_tcp_by_source_subnet(shop: Mesh, caller: Client, subnet: str, reached: str) -> None:
    shop.apply(
        rules(
            "tcp",
            f"""
- match: [{{sourceSubnet: {subnet}}}]
  route: [{{destination: {{host: reviews, subset: v2}}}}]
- route: [{{destination: {{host: reviews, subset: v1}}}}]
""",
        )
    )
    assert tcp(caller, "reviews:9000") == reached


@pytest.mark.covers("VirtualService.tcp.match.sourceNamespace")
def test_tcp_by_source_namespace(shop: Mesh, caller: Client) -> None:
    shop.apply(
        rules(
            "tcp",
            """
- match: [{sourceNamespace: elsewhere}]
  route: [{destination: {host: reviews, subset: v3}}]
- route: [{destination: {host: reviews, subset: v1}}]
""",
        )
    )
    assert tcp(caller, "reviews:9000") == "reviews-v1"
    assert tcp(shop.client("other"), "reviews.default:9000") == "reviews-v3"


@pytest.mark.covers("VirtualService.tcp.match.gateways")
def test_tcp_by_gateway(shop: Mesh, caller: Client) -> None:
    """One object serves both sides; each rule says which."""
    shop.apply(
        GATEWAY,
        rules(
            "tcp",
            """
- match: [{gateways: [front]}]
  route: [{destination: {host: reviews, subset: v2, port: {number: 9000}}}]
- match: [{gateways: [mesh]}]
  route: [{destination: {host: reviews, subset: v1, port: {number: 9000}}}]
""",
            more="  gateways: [front, mesh]\n",
        ),
    )
    assert tcp(shop.gateway(), "reviews:9000") == "reviews-v2"
    assert tcp(caller, "reviews:9000") == "reviews-v1"


@pytest.mark.covers(
    "VirtualService.tls.match.port", "VirtualService.tls.route.destination.port.number"
)
def test_tls_by_port(shop: Mesh, caller: Client) -> None:
    shop.apply(
        VAULT,
        rules(
            "tls",
            """
- match: [{sniHosts: [vault], port: 8444}]
  route: [{destination: {host: vault, subset: v2, port: {number: 8443}}}]
- match: [{sniHosts: [vault], port: 8443}]
  route: [{destination: {host: vault, subset: v1, port: {number: 8443}}}]
""",
            "vault",
        ),
    )
    assert tls(caller, "vault:8444", "vault") == "reviews-v2"
    assert tls(caller, "vault:8443", "vault") == "reviews-v1"


@pytest.mark.covers("VirtualService.tls.route.weight")
def test_tls_by_weight(shop: Mesh, caller: Client) -> None:
    shop.apply(
        VAULT,
        rules(
            "tls",
            """
- match: [{sniHosts: [vault]}]
  route:
  - {destination: {host: vault, subset: v1}, weight: 0}
  - {destination: {host: vault, subset: v3}, weight: 100}
""",
            "vault",
        ),
    )
    assert {tls(caller, "vault:8443", "vault") for _ in range(6)} == {"reviews-v3"}


@pytest.mark.covers(
    "VirtualService.tls.match.sourceLabels", "VirtualService.tls.match.sourceNamespace"
)
@pytest.mark.parametrize("condition", ["sourceLabels: {team: green}", "sourceNamespace: elsewhere"])
def test_tls_by_source(shop: Mesh, caller: Client, condition: str) -> None:
    shop.apply(
        VAULT,
        rules(
            "tls",
            f"""
- match: [{{sniHosts: [vault.default.svc.cluster.local], {condition}}}]
  route: [{{destination: {{host: vault, subset: v2}}}}]
- match: [{{sniHosts: [vault.default.svc.cluster.local]}}]
  route: [{{destination: {{host: vault, subset: v1}}}}]
""",
            "vault.default.svc.cluster.local",
        ),
    )
    name = "vault.default.svc.cluster.local"
    assert tls(caller, f"{name}:8443", name) == "reviews-v1"
    assert tls(shop.client("other"), f"{name}:8443", name) == "reviews-v2"


@pytest.mark.covers("VirtualService.tls.match.destinationSubnets")
def test_tls_by_destination_subnet(shop: Mesh, caller: Client) -> None:
    shop.apply(
        BANK,
        VAULT,
        rules(
            "tls",
            """
- match: [{sniHosts: [bank.example.com], destinationSubnets: ["198.51.100.128/25"]}]
  route: [{destination: {host: vault.default.svc.cluster.local, subset: v2, port: {number: 8443}}}]
- match: [{sniHosts: [bank.example.com]}]
  route: [{destination: {host: vault.default.svc.cluster.local, subset: v1, port: {number: 8443}}}]
""",
            "bank.example.com",
        ),
    )
    assert tls(caller, "198.51.100.200:9443", "bank.example.com") == "reviews-v2"
    assert tls(caller, "198.51.100.20:9443", "bank.example.com") == "reviews-v1"


@pytest.mark.covers("VirtualService.tls.match.gateways")
def test_tls_by_gateway(shop: Mesh, caller: Client) -> None:
    name = "vault.default.svc.cluster.local"
    shop.apply(
        GATEWAY,
        VAULT,
        rules(
            "tls",
            f"""
- match: [{{sniHosts: [{name}], gateways: [front]}}]
  route: [{{destination: {{host: vault, subset: v2, port: {{number: 8443}}}}}}]
- match: [{{sniHosts: [{name}], gateways: [mesh]}}]
  route: [{{destination: {{host: vault, subset: v1, port: {{number: 8443}}}}}}]
""",
            name,
            "  gateways: [front, mesh]\n",
        ),
    )
    assert tls(shop.gateway(), f"{name}:8443", name) == "reviews-v2"
    assert tls(caller, f"{name}:8443", name) == "reviews-v1"
