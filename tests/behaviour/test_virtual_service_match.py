"""VirtualService ``http[].match``: which requests a rule takes."""

from __future__ import annotations

from typing import Any

import pytest

from behaviour_rules import two_routes
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080"


CASES = [
    ("uri exact", "{uri: {exact: /a}}", {"path": "/a"}, {"path": "/a/b"}),
    ("uri prefix", "{uri: {prefix: /a}}", {"path": "/abc"}, {"path": "/b"}),
    ("uri regex", '{uri: {regex: "/a[0-9]+"}}', {"path": "/a12"}, {"path": "/a12x"}),
    (
        "ignoreUriCase",
        "{uri: {exact: /Cart}, ignoreUriCase: true}",
        {"path": "/cART"},
        {"path": "/x"},
    ),
    ("method", "{method: {exact: POST}}", {"method": "POST"}, {"method": "GET"}),
    ("method prefix", "{method: {prefix: P}}", {"method": "PUT"}, {"method": "GET"}),
    ("method regex", '{method: {regex: "PUT|POST"}}', {"method": "PUT"}, {"method": "PATCH"}),
    ("scheme exact", "{scheme: {exact: http}}", {}, None),
    ("scheme prefix", "{scheme: {prefix: ht}}", {}, None),
    ("scheme regex", '{scheme: {regex: "https?"}}', {}, None),
    ("another scheme", "{uri: {prefix: /a}, scheme: {exact: https}}", None, {"path": "/a"}),
    (
        "authority exact",
        "{authority: {exact: 'reviews.default:9080'}}",
        {"host": "reviews.default:9080"},
        {},
    ),
    (
        "authority prefix",
        "{authority: {prefix: reviews.default}}",
        {"host": "reviews.default:9080"},
        {},
    ),
    (
        "authority regex",
        '{authority: {regex: "reviews[.]default(:[0-9]+)?"}}',
        {"host": "reviews.default:9080"},
        {},
    ),
    (
        "header exact",
        "{headers: {x-a: {exact: b}}}",
        {"headers": {"x-a": "b"}},
        {"headers": {"x-a": "c"}},
    ),
    (
        "header prefix",
        "{headers: {x-a: {prefix: b}}}",
        {"headers": {"x-a": "bc"}},
        {"headers": {"x-a": "c"}},
    ),
    (
        "header regex",
        '{headers: {x-a: {regex: "b+"}}}',
        {"headers": {"x-a": "bbb"}},
        {"headers": {"x-a": "bbc"}},
    ),
    ("header presence", "{headers: {x-a: {}}}", {"headers": {"x-a": "any"}}, {}),
    (
        "queryParams exact",
        "{queryParams: {q: {exact: one}}}",
        {"path": "/?q=one"},
        {"path": "/?q=two"},
    ),
    (
        "queryParams prefix",
        "{queryParams: {q: {prefix: o}}}",
        {"path": "/?q=one"},
        {"path": "/?q=two"},
    ),
    (
        "queryParams regex",
        '{queryParams: {q: {regex: "o.*"}}}',
        {"path": "/?q=one"},
        {"path": "/?q=two"},
    ),
    ("withoutHeaders", "{withoutHeaders: {x-a: {exact: b}}}", {}, {"headers": {"x-a": "b"}}),
    (
        "withoutHeaders prefix",
        "{withoutHeaders: {x-a: {prefix: b}}}",
        {"headers": {"x-a": "cb"}},
        {"headers": {"x-a": "bc"}},
    ),
    (
        "withoutHeaders regex",
        '{withoutHeaders: {x-a: {regex: "b+"}}}',
        {"headers": {"x-a": "bc"}},
        {"headers": {"x-a": "bb"}},
    ),
    ("withoutHeaders presence", "{withoutHeaders: {x-a: {}}}", {}, {"headers": {"x-a": "b"}}),
    (
        "all conditions of one match",
        "{uri: {prefix: /a}, headers: {x-a: {exact: b}}}",
        {"path": "/a", "headers": {"x-a": "b"}},
        {"path": "/a"},
    ),
]


def ask(client: Client, request: dict[str, Any]) -> str:
    """The route that a request takes."""
    given = dict(request)
    url = URL + given.pop("path", "/")
    return client.request(given.pop("method", "GET"), url, **given).route


@pytest.mark.covers(
    "VirtualService.http.match.uri.exact",
    "VirtualService.http.match.uri.prefix",
    "VirtualService.http.match.uri.regex",
    "VirtualService.http.match.ignoreUriCase",
    "VirtualService.http.match.method.exact",
    "VirtualService.http.match.method.prefix",
    "VirtualService.http.match.method.regex",
    "VirtualService.http.match.scheme.exact",
    "VirtualService.http.match.scheme.prefix",
    "VirtualService.http.match.scheme.regex",
    "VirtualService.http.match.authority.exact",
    "VirtualService.http.match.authority.prefix",
    "VirtualService.http.match.authority.regex",
    "VirtualService.http.match.headers.exact",
    "VirtualService.http.match.headers.prefix",
    "VirtualService.http.match.headers.regex",
    "VirtualService.http.match.queryParams.exact",
    "VirtualService.http.match.queryParams.prefix",
    "VirtualService.http.match.queryParams.regex",
    "VirtualService.http.match.withoutHeaders.exact",
    "VirtualService.http.match.withoutHeaders.prefix",
    "VirtualService.http.match.withoutHeaders.regex",
)
@pytest.mark.parametrize(("name", "match", "inside", "beside"), CASES, ids=[c[0] for c in CASES])
def test_a_rule_takes_what_matches(
    shop: Mesh, name: str, match: str, inside: dict[str, Any] | None, beside: dict[str, Any] | None
) -> None:
    shop.apply(two_routes(match))
    client = shop.client("caller")
    if inside is not None:
        assert ask(client, inside) == "chosen"
    if beside is not None:
        assert ask(client, beside) == "rest"


def test_one_of_several_matches_is_enough(shop: Mesh, caller: Client) -> None:
    shop.apply(two_routes("{uri: {exact: /a}}", "{uri: {exact: /b}}"))
    assert [ask(caller, {"path": path}) for path in ("/a", "/b", "/c")] == [
        "chosen",
        "chosen",
        "rest",
    ]


@pytest.mark.covers("VirtualService.http.match.port")
def test_port_restricts_a_rule_to_one_port(shop: Mesh, caller: Client) -> None:
    shop.apply(two_routes("{port: 9081}"))
    assert caller.get("http://reviews:9081/").route == "chosen"
    assert caller.get("http://reviews:9080/").route == "rest"


@pytest.mark.covers("VirtualService.http.match.sourceLabels")
def test_source_labels_restrict_a_rule_to_workloads(shop: Mesh, caller: Client) -> None:
    shop.apply(two_routes("{sourceLabels: {team: blue}}"))
    assert caller.get("http://reviews:9080/").route == "chosen"
    assert shop.client("other").get("http://reviews.default:9080/").route == "rest"


@pytest.mark.covers("VirtualService.http.match.sourceNamespace")
def test_source_namespace_restricts_a_rule_to_a_namespace(shop: Mesh, caller: Client) -> None:
    shop.apply(two_routes("{sourceNamespace: elsewhere}"))
    assert caller.get("http://reviews:9080/").route == "rest"
    assert shop.client("other").get("http://reviews.default:9080/").route == "chosen"


@pytest.mark.covers("VirtualService.http.match.gateways", "VirtualService.gateways")
def test_gateways_restrict_a_rule_to_where_it_is_bound(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews.default.svc.cluster.local]
  gateways: [front, mesh]
  http:
  - name: from-outside
    match: [{gateways: [front]}]
    directResponse: {status: 201}
  - name: from-inside
    directResponse: {status: 202}
""")
    gateway = shop.gateway()
    host = "reviews.default.svc.cluster.local"
    assert gateway.get(f"http://{host}:8080/").status == 201
    assert caller.get("http://reviews:9080/").status == 202


def test_rules_are_tried_in_order(shop: Mesh, caller: Client) -> None:
    shop.apply(two_routes("{uri: {prefix: /}}"))
    assert caller.get("http://reviews:9080/").route == "chosen"


@pytest.mark.covers("VirtualService.http.match.name")
def test_the_matchs_name_is_part_of_the_routes(shop: Mesh, caller: Client) -> None:
    shop.apply(two_routes("{name: to-a, uri: {exact: /a}}", "{name: to-b, uri: {exact: /b}}"))
    assert ask(caller, {"path": "/a"}) == "chosen.to-a"
    assert ask(caller, {"path": "/b"}) == "chosen.to-b"


@pytest.mark.covers("VirtualService.http.match.statPrefix")
def test_stat_prefix_counts_a_route(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /a}, statPrefix: first}]
    route: [{destination: {host: reviews}}]
""")
    caller.get(f"{URL}/a")
    counted = shop.stats("caller", "route[.]first[.]upstream_rq_200")
    assert sum(counted.values()) == 1
