"""VirtualService tls[] and tcp[] in sidecars: which connections a rule takes, and where they go."""

from __future__ import annotations

import pytest

from behaviour.edge import routes
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

MESH = "[mesh]"
DATABASES = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: databases}
spec:
  hosts: [db.example.com]
  addresses: [192.0.2.0/24]
  resolution: NONE
  location: MESH_EXTERNAL
  ports: [{number: 5432, name: tcp, protocol: TCP}]
"""
VAULT = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: NAME}
spec:
  hosts: [NAME.example.com]
  resolution: DNS
  ports: [{number: 9443, name: tls, protocol: TLS}]
"""
VAULTS = VAULT.replace("NAME", "one") + VAULT.replace("NAME", "two")
TO_V1 = "{destination: {host: reviews, port: {number: 9000}, subset: v1}}"
TO_V2 = "{destination: {host: reviews, port: {number: 9000}, subset: v2}}"


def bytes_of(client: Client, where: str, times: int = 1) -> set[str]:
    """Who answers lines there."""
    found = set()
    for _ in range(times):
        with client.tcp(where) as line:
            found.add(str(line.ask("hello")["workload"]))
    return found


@pytest.mark.covers("VirtualService.tcp.match.destinationSubnets")
def test_destination_subnets(shop: Mesh, caller: Client) -> None:
    rules = (
        f'- match: [{{destinationSubnets: ["192.0.2.16/28", "192.0.2.128"], port: 5432}}]\n  route: [{TO_V1}]\n'
        f"- route: [{TO_V2}]\n"
    )
    shop.apply(DATABASES, routes(rules, hosts="[db.example.com]", gateways=MESH, kind="tcp"))
    assert bytes_of(caller, "192.0.2.17:5432") == {"reviews-v1"}
    assert bytes_of(caller, "192.0.2.128:5432") == {"reviews-v1"}
    assert bytes_of(caller, "192.0.2.40:5432") == {"reviews-v2"}


@pytest.mark.covers(
    "VirtualService.tcp.match.sourceLabels", "VirtualService.tcp.match.sourceNamespace"
)
@pytest.mark.parametrize("condition", ["sourceLabels: {team: blue}", "sourceNamespace: default"])
def test_callers_are_told_apart(shop: Mesh, caller: Client, condition: str) -> None:
    rules = f"- match: [{{{condition}}}]\n  route: [{TO_V1}]\n- route: [{TO_V2}]\n"
    shop.apply(routes(rules, hosts="[reviews]", gateways=MESH, kind="tcp"))
    assert bytes_of(caller, "reviews:9000") == {"reviews-v1"}
    assert bytes_of(shop.client("other"), "reviews.default:9000") == {"reviews-v2"}


def test_the_first_rule_that_takes_a_connection_counts(shop: Mesh, caller: Client) -> None:
    rules = (
        f"- match: [{{port: 9001}}]\n  route: [{TO_V2}]\n"
        f"- match: [{{port: 9000, sourceLabels: {{team: red}}}}, {{port: 9000}}]\n  route: [{TO_V1}]\n"
        f"- route: [{TO_V2}]\n"
    )
    shop.apply(routes(rules, hosts="[reviews]", gateways=MESH, kind="tcp"))
    assert bytes_of(caller, "reviews:9000") == {"reviews-v1"}


@pytest.mark.covers(
    "VirtualService.tcp.route.weight",
    "VirtualService.tcp.route.destination.subset",
)
def test_weights(shop: Mesh, caller: Client) -> None:
    targets = ", ".join(
        entry.removesuffix("}") + f", weight: {weight}}}"
        for entry, weight in ((TO_V1, 50), (TO_V2, 50), (TO_V2.replace("v2", "v3"), 0))
    )
    shop.apply(routes(f"- route: [{targets}]", hosts="[reviews]", gateways=MESH, kind="tcp"))
    assert bytes_of(caller, "reviews:9000", times=40) == {"reviews-v1", "reviews-v2"}


# --- TLS --------------------------------------------------------------------------------------------


def sni_rules(*entries: tuple[str, str]) -> str:
    """Rules of (conditions, host)."""
    return "\n".join(
        f"- match: [{{{conditions}}}]\n  route: [{{destination: {{host: {host}, port: {{number: 9443}}}}}}]"
        for conditions, host in entries
    )


def served(client: Client, name: str) -> str:
    """The name of the server that a TLS client reaches."""
    with client.tls(f"{name}:9443") as line:
        answer = line.ask("hello")
        assert answer["tls"]["sni"] == name
        return str(answer["workload"])


@pytest.mark.covers(
    "VirtualService.tls.match.sniHosts",
    "VirtualService.tls.match.sourceLabels",
    "VirtualService.tls.match.sourceNamespace",
)
@pytest.mark.parametrize("condition", ["sourceLabels: {team: blue}", "sourceNamespace: default"])
def test_callers_of_tls_are_told_apart(shop: Mesh, caller: Client, condition: str) -> None:
    rules = sni_rules(
        (f"sniHosts: [one.example.com], {condition}", "two.example.com"),
        ("sniHosts: [one.example.com]", "one.example.com"),
    )
    shop.apply(VAULTS, routes(rules, hosts="[one.example.com]", gateways=MESH, kind="tls"))
    assert served(caller, "one.example.com") == "two"
    assert served(caller, "two.example.com") == "two"
    assert served(shop.client("other"), "one.example.com") == "one"


def test_wildcards_of_sni(shop: Mesh, caller: Client) -> None:
    entry = (
        VAULT.replace("NAME.example.com]", '"*.example.org"]')
        .replace("resolution: DNS", "resolution: DNS\n  endpoints: [{address: three.example.com}]")
        .replace("NAME", "three")
    )
    rules = sni_rules(('sniHosts: ["*.example.org"]', "two.example.com"))
    shop.apply(VAULTS, entry, routes(rules, hosts='["*.example.org"]', gateways=MESH, kind="tls"))
    with caller.tls("any.example.org:9443") as line:
        assert line.ask("hello")["tls"]["sni"] == "any.example.org"
        assert line.destination.service == "two.example.com"


@pytest.mark.covers("VirtualService.tls.match.destinationSubnets")
def test_destination_subnets_of_tls(shop: Mesh, caller: Client) -> None:
    entry = DATABASES.replace("protocol: TCP", "protocol: TLS").replace("5432", "9443")
    rules = sni_rules(
        ('sniHosts: [db.example.com], destinationSubnets: ["192.0.2.16/28"]', "two.example.com"),
        ("sniHosts: [db.example.com]", "one.example.com"),
    )
    shop.apply(entry, VAULTS, routes(rules, hosts="[db.example.com]", gateways=MESH, kind="tls"))
    for address, host in (("192.0.2.17", "two"), ("192.0.2.40", "one")):
        with caller.tls(f"{address}:9443", sni="db.example.com") as line:
            assert line.ask("hello")["workload"] == host


@pytest.mark.covers("VirtualService.tls.match.port", "VirtualService.tls.route.weight")
def test_ports_and_weights_of_tls(shop: Mesh, caller: Client) -> None:
    entry = VAULTS.replace(
        "protocol: TLS}]", "protocol: TLS}, {number: 9444, name: tls-2, protocol: TLS}]"
    )
    rules = (
        "- match: [{sniHosts: [one.example.com], port: 9443}]\n"
        "  route:\n"
        "  - {destination: {host: one.example.com, port: {number: 9443}}, weight: 50}\n"
        "  - {destination: {host: two.example.com, port: {number: 9443}}, weight: 50}\n"
    )
    shop.apply(entry, routes(rules, hosts="[one.example.com]", gateways=MESH, kind="tls"))
    assert {served(caller, "one.example.com") for _ in range(20)} == {"one", "two"}
    with caller.tls("one.example.com:9444") as line:
        assert line.ask("hello")["workload"] == "one"
