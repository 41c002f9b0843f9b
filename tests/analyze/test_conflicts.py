"""Objects that claim the same: every one of them is told, with the field, the others' names and a remedy."""

from __future__ import annotations

import pytest

from meltemi.analyze.analysis import analyze
from meltemi.config.decode import load, parse_yaml
from meltemi.model.origin import Finding

BASE = """
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: b}
spec:
  clusterIP: 10.0.0.1
  selector: {app: reviews}
  ports: [{name: http, port: 9080}]
---
apiVersion: v1
kind: Pod
metadata: {name: reviews, namespace: b, labels: {app: reviews}}
status: {podIP: 10.1.0.1, phase: Running}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front, namespace: b}
spec:
  selector: {istio: ingressgateway}
  servers: [{hosts: ["*"], port: {number: 80, name: http, protocol: HTTP}}]
---
"""


def route(name: str, host: str, more: str = "", match: str = "", namespace: str = "b") -> str:
    """A VirtualService with one rule."""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: [{host}]
{more}  http:
  - {match}
    route: [{{destination: {{host: reviews.b.svc.cluster.local}}}}]
---
"""


def rule(name: str, spec: str, namespace: str = "b", host: str = "reviews") -> str:
    """A DestinationRule."""
    return f"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{host: {host}, {spec}}}
---
"""


def gateway(name: str, host: str = "a.example.com", port: int = 80, selector: str = "a: b") -> str:
    """A Gateway with one server."""
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: b}}
spec:
  selector: {{{selector}}}
  servers:
  - hosts: [unlike-{name}.example.com, {host}]
    port: {{number: {port}, name: http, protocol: HTTP}}
---
"""


def service(name: str, port: str) -> str:
    """A Service of the reviews pods."""
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: b}}
spec:
  clusterIP: 10.0.0.9
  selector: {{app: reviews}}
  ports: [{{{port}}}]
---
"""


ON_GATEWAY = "  gateways: [front]\n"
A = "match: [{uri: {prefix: /a}}]"
CASES = {
    "two VirtualServices of the mesh": (
        route("one", "reviews") + route("two", "reviews.b.svc.cluster.local"),
        "IST0109",
        {"one": "spec.hosts[0]", "two": "spec.hosts[0]"},
    ),
    "two VirtualServices of namespaces that see each other": (
        route("one", "a.example.com") + route("two", "a.example.com", namespace="c"),
        "IST0109",
        {"one": "spec.hosts[0]", "two": "spec.hosts[0]"},
    ),
    "one match twice on a gateway": (
        route("one", "a.example.com", ON_GATEWAY, A) + route("two", "a.example.com", ON_GATEWAY, A),
        "MLT0022",
        {"one": "spec.http[0].match[0]", "two": "spec.http[0].match[0]"},
    ),
    "two rules for every request on a gateway": (
        route("one", "a.example.com", ON_GATEWAY) + route("two", "a.example.com", ON_GATEWAY),
        "MLT0022",
        {"one": "spec.http[0]", "two": "spec.http[0]"},
    ),
    "two Gateways": (
        gateway("one") + gateway("two"),
        "IST0145",
        {"one": "spec.servers[0].hosts", "two": "spec.servers[0].hosts"},
    ),
    "two traffic policies": (
        rule("one", "trafficPolicy: {tls: {mode: DISABLE}}")
        + rule("two", "trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}"),
        "MLT0021",
        {"one": "spec.trafficPolicy", "two": "spec.trafficPolicy"},
    ),
    "one subset twice": (
        rule("one", "subsets: [{name: v1}, {name: v2}]")
        + rule("two", "subsets: [{name: v3}, {name: v2}]", host="reviews.b.svc.cluster.local"),
        "MLT0021",
        {"one": "spec.subsets[1]", "two": "spec.subsets[1]"},
    ),
    "two protocols": (
        service("other", "name: tcp, port: 9999, targetPort: 9080"),
        "IST0116",
        {"reviews": "spec.ports[0]", "other": "spec.ports[0]"},
    ),
    "two numbers": (
        service("other", "name: http, port: 80, targetPort: 9080"),
        "IST0137",
        {"reviews": "spec.ports[0]", "other": "spec.ports[0]"},
    ),
}
FINE = {
    "hidden from each other": route("one", "a.example.com", "  exportTo: ['.']\n")
    + route("two", "a.example.com", "  exportTo: ['.']\n", namespace="c"),
    "different matches on a gateway": route("one", "a.example.com", ON_GATEWAY, A)
    + route("two", "a.example.com", ON_GATEWAY),
    "other hosts": gateway("one") + gateway("two", host="b.example.com"),
    "other ports": gateway("one") + gateway("two", port=81),
    "other pods": gateway("one") + gateway("two", selector="a: c"),
    "subsets that add up": rule("one", "subsets: [{name: v1}]")
    + rule("two", "subsets: [{name: v2}]"),
    "rules of other clients": rule("one", "trafficPolicy: {tls: {mode: DISABLE}}")
    + rule("two", "workloadSelector: {matchLabels: {a: b}}, trafficPolicy: {tls: {mode: DISABLE}}"),
    "rules of other namespaces": rule("one", "trafficPolicy: {tls: {mode: DISABLE}}")
    + rule("two", "trafficPolicy: {tls: {mode: DISABLE}}", "c", "reviews.b.svc.cluster.local"),
    "another port of the pods": service("other", "name: tcp, port: 9999"),
}
CONFLICTS = ("IST0109", "IST0116", "IST0137", "IST0145", "MLT0021", "MLT0022")


def conflicts(text: str) -> list[Finding]:
    """What is found in addition to a sound world."""
    raws, unread = parse_yaml(BASE + text, "t.yaml")
    assert not unread
    configs = []
    for raw in raws:
        config, wrong = load(raw)
        assert config is not None, wrong
        configs.append(config)
    return [finding for finding in analyze(configs) if finding.code in CONFLICTS]


@pytest.mark.parametrize(("text", "code", "places"), CASES.values(), ids=CASES)
def test_all_objects_of_a_conflict_are_told(text: str, code: str, places: dict[str, str]) -> None:
    found = [finding for finding in conflicts(text) if finding.code == code]
    assert {finding.origin.name: finding.origin.path for finding in found} == places
    for finding in found:
        assert finding.remedy
        assert finding.origin.line > 0
        (other,) = places.keys() - {finding.origin.name}
        assert other in finding.text


@pytest.mark.parametrize("text", FINE.values(), ids=FINE)
def test_what_does_not_meet_is_no_conflict(text: str) -> None:
    assert conflicts(text) == []
