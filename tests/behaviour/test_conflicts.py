"""Objects that claim the same: which one counts. Objects without a creation time are as old as their place in the input says."""

from __future__ import annotations

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy


def route(name: str, rules: str, more: str = "", host: str = "reviews", created: str = "") -> str:
    """A VirtualService."""
    stamp = f", creationTimestamp: '{created}'" if created else ""
    return (
        "\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        f"metadata: {{name: {name}{stamp}}}\nspec:\n  hosts: [{host}]\n{more}  http:\n  {rules}\n"
    )


def answer(status: int, match: str = "") -> str:
    """A rule that answers by itself."""
    return f"- {{{match}directResponse: {{status: {status}}}}}"


def test_the_oldest_virtual_service_of_the_mesh_counts(shop: Mesh, caller: Client) -> None:
    """The younger one counts for nothing, whatever it matches."""
    older = route(
        "zebra", answer(201, "match: [{uri: {prefix: /a}}], "), created="2026-01-01T00:00:00Z"
    )
    younger = route("ant", answer(202), created="2026-02-01T00:00:00Z")
    shop.apply(younger + older)
    assert caller.get("http://reviews:9080/a").status == 201
    assert caller.get("http://reviews:9080/b").status == 404


FRONT = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: %s}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: [a.example.com]}
"""
ON_FRONT = "  gateways: [front]\n"


def test_on_a_gateway_virtual_services_of_a_host_are_merged(shop: Mesh) -> None:
    """The older one's rules come first, but a rule for every request comes after all others."""
    a = "match: [{uri: {prefix: /a}}], "
    b = "match: [{uri: {prefix: /b}}], "
    shop.apply(
        FRONT % "front"
        + route("first", f"{answer(201, a)}\n  {answer(203)}", ON_FRONT, "a.example.com")
        + route("second", f"{answer(202, a)}\n  {answer(204, b)}", ON_FRONT, "a.example.com")
    )
    gateway = shop.gateway()
    seen = [gateway.get(f"http://a.example.com:8080{path}").status for path in ("/a", "/b", "/c")]
    assert seen == [201, 204, 203]


def test_two_gateways_with_one_port_and_host_are_one(shop: Mesh) -> None:
    """Rules that are bound to either are served; of two for one host the older's come first."""
    shop.apply(
        FRONT % "front"
        + FRONT % "other"
        + route("first", answer(201, "match: [{uri: {prefix: /a}}], "), ON_FRONT, "a.example.com")
        + route("second", answer(202), "  gateways: [other]\n", "a.example.com")
    )
    gateway = shop.gateway()
    seen = [gateway.get(f"http://a.example.com:8080{path}").status for path in ("/a", "/b")]
    assert seen == [201, 202]


def rule(name: str, spec: str, host: str = "details") -> str:
    """A DestinationRule."""
    return (
        "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n"
        f"metadata: {{name: {name}}}\nspec: {{host: {host}, {spec}}}\n"
    )


def test_destination_rules_of_a_host_are_merged(shop: Mesh, caller: Client) -> None:
    """The oldest traffic policy counts, subsets add up."""
    shop.apply(
        rule("first", "trafficPolicy: {tls: {mode: DISABLE}}, subsets: [{name: a}]")
        + rule("second", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}, subsets: [{name: b}]")
        + route("details", "- {route: [{destination: {host: details, subset: b}}]}", host="details")
    )
    seen = caller.get("http://details:9080/")
    assert (seen.status, seen.mtls) == (200, False)


def test_two_protocols_of_one_port_are_told_at_both_services(shop: Mesh, caller: Client) -> None:
    """The older Service's protocol holds at the server."""
    shop.apply("""
apiVersion: v1
kind: Service
metadata: {name: raw}
spec:
  selector: {app: details}
  ports: [{name: tcp, port: 9999, targetPort: 9080}]
""")
    assert caller.get("http://details:9080/").status == 200
    told = {f.origin.name for f in shop.findings if f.code == "MLT0102"}
    assert told == {"raw", "details"}


def test_two_services_at_one_address_are_told_at_both(shop: Mesh) -> None:
    """Without addresses of their own, TCP services on one port cannot be told apart."""
    entry = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {0}}}
spec:
  hosts: [{0}.example.com]
  addresses: [198.51.100.7]
  resolution: DNS
  ports: [{{number: 7001, name: tcp, protocol: TCP}}]
"""
    shop.apply(entry.format("one") + entry.format("two"))
    told = {f.origin.name for f in shop.findings if f.code == "MLT0101"}
    assert told == {"one", "two"}
