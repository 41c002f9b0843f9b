"""VirtualService ``http[]``: what a rule does with a request that it takes."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

URL = "http://reviews:9080/"
Apply = Callable[[str], Mesh]
V1 = "route: [{destination: {host: reviews, subset: v1}}]"


# --- destinations -------------------------------------------------------------------------------------


@pytest.mark.covers("VirtualService.http.route.destination.host")
def test_destination_host_may_be_another_service(http: Apply, caller: Client) -> None:
    http("- route: [{destination: {host: details}}]")
    assert caller.get(URL).workload == "details-v1"


@pytest.mark.covers(
    "VirtualService.http.route.destination.subset",
    "DestinationRule.subsets.name",
    "DestinationRule.subsets.labels",
)
def test_destination_subset_chooses_a_version(http: Apply, caller: Client) -> None:
    http("- route: [{destination: {host: reviews, subset: v3}}]")
    assert caller.send(URL, n=20).counts == {"reviews-v3": 20}


@pytest.mark.covers("VirtualService.http.route.destination.port.number")
def test_destination_port_chooses_another_port(http: Apply, caller: Client) -> None:
    http("- route: [{destination: {host: reviews, port: {number: 9081}}}]")
    assert caller.get(URL).json()["port"] == 9081


def test_an_unknown_subset_is_unavailable(http: Apply, caller: Client) -> None:
    http("- route: [{destination: {host: reviews, subset: v9}}]")
    assert caller.get(URL).status == 503


@pytest.mark.covers("VirtualService.http.route.weight")
def test_weights_share_requests(http: Apply, caller: Client) -> None:
    http("""
- route:
  - {destination: {host: reviews, subset: v1}, weight: 75}
  - {destination: {host: reviews, subset: v2}, weight: 25}
  - {destination: {host: reviews, subset: v3}, weight: 0}
""")
    caller.send(URL, n=600).assert_shares(
        {"reviews-v1": 0.75, "reviews-v2": 0.25, "reviews-v3": 0.0}
    )


@pytest.mark.covers("VirtualService.http.name")
def test_name_appears_as_the_route(http: Apply, caller: Client) -> None:
    http(f"- name: my-rule\n  {V1}")
    assert caller.get(URL).route == "my-rule"


# --- headers ------------------------------------------------------------------------------------------


@pytest.mark.covers(
    "VirtualService.http.headers.request.set",
    "VirtualService.http.headers.request.add",
    "VirtualService.http.headers.request.remove",
    "VirtualService.http.headers.response.set",
    "VirtualService.http.headers.response.add",
    "VirtualService.http.headers.response.remove",
)
def test_headers_of_the_rule_change_requests_and_responses(http: Apply, caller: Client) -> None:
    http("""
- headers:
    request: {set: {x-set: new}, add: {x-add: more}, remove: [x-remove]}
    response: {set: {x-answer: set}, add: {x-also: added}, remove: [content-type]}
  route: [{destination: {host: reviews, subset: v1}}]
""")
    answer = caller.get(URL, headers={"x-set": "old", "x-add": "first", "x-remove": "gone"})
    seen = answer.json()["headers"]
    assert seen["x-set"] == "new"
    assert sorted(part.strip() for part in seen["x-add"].split(",")) == ["first", "more"]
    assert "x-remove" not in seen
    assert (answer.headers["x-answer"], answer.headers["x-also"]) == ("set", "added")
    assert "content-type" not in answer.headers


@pytest.mark.covers(
    "VirtualService.http.route.headers.request.set",
    "VirtualService.http.route.headers.request.add",
    "VirtualService.http.route.headers.request.remove",
    "VirtualService.http.route.headers.response.set",
    "VirtualService.http.route.headers.response.add",
    "VirtualService.http.route.headers.response.remove",
)
def test_headers_of_a_destination_concern_it_alone(http: Apply, caller: Client) -> None:
    http("""
- route:
  - destination: {host: reviews, subset: v1}
    weight: 50
    headers:
      request: {set: {x-version: one}, add: {x-more: two}, remove: [x-gone]}
      response: {set: {x-from: one}, add: {x-also: two}, remove: [content-type]}
  - destination: {host: reviews, subset: v2}
    weight: 50
""")
    for answer in caller.send(URL, n=30, headers={"x-gone": "here"}).responses:
        first = answer.workload == "reviews-v1"
        seen = answer.json()["headers"]
        assert (seen.get("x-version"), seen.get("x-more")) == (
            ("one", "two") if first else (None, None)
        )
        assert ("x-gone" in seen) is not first
        assert answer.headers.get("x-from") == ("one" if first else None)
        assert answer.headers.get("x-also") == ("two" if first else None)
        assert ("content-type" in answer.headers) is not first


def test_setting_the_host_header_changes_the_authority(http: Apply, caller: Client) -> None:
    http(f"- headers: {{request: {{set: {{Host: other.example.com}}}}}}\n  {V1}")
    assert caller.get(URL).json()["host"] == "other.example.com"


# --- redirect and direct response ---------------------------------------------------------------------


@pytest.mark.covers(
    "VirtualService.http.redirect.uri",
    "VirtualService.http.redirect.authority",
    "VirtualService.http.redirect.redirectCode",
    "VirtualService.http.redirect.scheme",
    "VirtualService.http.redirect.port",
    "VirtualService.http.redirect.derivePort",
)
@pytest.mark.parametrize(
    ("redirect", "code", "location"),
    [
        ("{uri: /new}", 301, "http://reviews:9080/new"),
        ("{authority: other.example.com}", 301, "http://other.example.com/old/page?q=1"),
        ("{uri: /new, redirectCode: 302}", 302, "http://reviews:9080/new"),
        ("{uri: /new, redirectCode: 307}", 307, "http://reviews:9080/new"),
        ("{uri: /new, redirectCode: 308}", 308, "http://reviews:9080/new"),
        ("{scheme: https}", 301, "https://reviews:9080/old/page?q=1"),
        ("{port: 8443}", 301, "http://reviews:8443/old/page?q=1"),
        # The port of the request's authority stays: the proxy drops it only where the scheme changes.
        ("{derivePort: FROM_PROTOCOL_DEFAULT}", 301, "http://reviews:9080/old/page?q=1"),
        ("{derivePort: FROM_REQUEST_PORT}", 301, "http://reviews:9080/old/page?q=1"),
    ],
)
def test_redirects(http: Apply, caller: Client, redirect: str, code: int, location: str) -> None:
    http(f"- redirect: {redirect}")
    answer = caller.get("http://reviews:9080/old/page?q=1")
    assert answer.status == code
    assert answer.headers["location"] in (location, location + "?q=1")


def test_redirects_may_replace_the_prefix_that_matched(http: Apply, caller: Client) -> None:
    http('- match: [{uri: {prefix: /old}}]\n  redirect: {uri: "%PREFIX()%/new"}')
    assert caller.get("http://reviews:9080/old/page").headers["location"].endswith("/new/page")


@pytest.mark.covers("VirtualService.http.redirect.prefixRewrite")
def test_redirect_prefix_rewrite(http: Apply, caller: Client) -> None:
    http("- match: [{uri: {prefix: /old}}]\n  redirect: {prefixRewrite: /new}")
    assert caller.get("http://reviews:9080/old/page").headers["location"].endswith("/new/page")


@pytest.mark.covers(
    "VirtualService.http.directResponse.status", "VirtualService.http.directResponse.body.string"
)
def test_direct_response_with_text(http: Apply, caller: Client) -> None:
    http("- directResponse: {status: 418, body: {string: tea}}")
    answer = caller.get(URL)
    assert (answer.status, answer.text) == (418, "tea")


@pytest.mark.covers("VirtualService.http.directResponse.body.bytes")
def test_direct_response_with_bytes(http: Apply, caller: Client) -> None:
    text = base64.b64encode(b"\x00\x01tea").decode()
    http(f"- directResponse: {{status: 200, body: {{bytes: {text}}}}}")
    assert caller.get(URL).body == b"\x00\x01tea"


def test_direct_response_without_a_body(http: Apply, caller: Client) -> None:
    http("- directResponse: {status: 204}")
    answer = caller.get(URL)
    assert (answer.status, answer.body) == (204, b"")


# --- rewrite ------------------------------------------------------------------------------------------


@pytest.mark.covers("VirtualService.http.rewrite.uri")
def test_rewrite_uri_replaces_the_prefix_that_matched(http: Apply, caller: Client) -> None:
    http(f"- match: [{{uri: {{prefix: /old}}}}]\n  rewrite: {{uri: /new}}\n  {V1}")
    assert caller.get("http://reviews:9080/old/page?q=1").path_seen == "/new/page?q=1"


@pytest.mark.covers("VirtualService.http.rewrite.uri")
def test_rewrite_uri_replaces_a_path_that_matched_exactly(http: Apply, caller: Client) -> None:
    http(f"- match: [{{uri: {{exact: /old}}}}]\n  rewrite: {{uri: /new}}\n  {V1}")
    assert caller.get("http://reviews:9080/old").path_seen == "/new"


@pytest.mark.covers("VirtualService.http.rewrite.authority")
def test_rewrite_authority(http: Apply, caller: Client) -> None:
    http(f"- rewrite: {{authority: inner.example.com}}\n  {V1}")
    assert caller.get(URL).json()["host"] == "inner.example.com"


@pytest.mark.covers(
    "VirtualService.http.rewrite.uriRegexRewrite.match",
    "VirtualService.http.rewrite.uriRegexRewrite.rewrite",
)
def test_rewrite_by_regex(http: Apply, caller: Client) -> None:
    http(
        r"- rewrite: {uriRegexRewrite: {match: '/user/(\d+)', rewrite: '/u/\1/profile'}}"
        + f"\n  {V1}"
    )
    assert caller.get("http://reviews:9080/user/42").path_seen == "/u/42/profile"


# --- timeouts and retries -----------------------------------------------------------------------------


@pytest.mark.covers("VirtualService.http.timeout")
def test_timeout_ends_a_slow_request(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- timeout: 0.2s\n  {V1}")
    shop.fail("reviews-v1", delay=2.0)
    answer = caller.get(URL)
    assert (answer.status, answer.flags) == (504, "UT")
    assert answer.elapsed_s < 2.0


@pytest.mark.covers("VirtualService.http.retries.attempts")
def test_retries_attempts(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- retries: {{attempts: 3, retryOn: 5xx}}\n  {V1}")
    shop.fail("reviews-v1", status=500, times=3)
    answer = caller.get(URL)
    assert (answer.status, answer.attempts) == (200, 4)


def test_retries_end(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- retries: {{attempts: 1, retryOn: 5xx}}\n  {V1}")
    shop.fail("reviews-v1", status=500)
    answer = caller.get(URL)
    assert (answer.status, answer.attempts, answer.flags) == (500, 2, "URX")
    assert len(shop.received("reviews-v1")) == 2


def test_retries_can_be_switched_off(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- retries: {{attempts: 0}}\n  {V1}")
    shop.fail("reviews-v1", status=503)
    assert caller.get(URL).attempts == 1


def test_two_retries_are_the_default(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- {V1}")
    shop.fail("reviews-v1", status=503)
    assert caller.get(URL).attempts == 3


@pytest.mark.covers("VirtualService.http.retries.retryOn")
def test_retry_on_says_which_answers_count(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f'- retries: {{attempts: 2, retryOn: "gateway-error,418"}}\n  {V1}')
    with shop.fail("reviews-v1", status=500):
        assert caller.get(URL).attempts == 1
    with shop.fail("reviews-v1", status=418):
        assert caller.get(URL).attempts == 3


@pytest.mark.covers("VirtualService.http.retries.perTryTimeout")
def test_per_try_timeout_ends_a_try(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- timeout: 5s\n  retries: {{attempts: 2, perTryTimeout: 0.2s, retryOn: 5xx}}\n  {V1}")
    shop.fail("reviews-v1", delay=3.0, times=1)
    answer = caller.get(URL)
    assert (answer.status, answer.attempts) == (200, 2)
    assert answer.elapsed_s < 3.0


@pytest.mark.covers("VirtualService.http.retries.backoff")
def test_retry_backoff_is_what_the_proxy_waits(http: Apply, caller: Client, shop: Mesh) -> None:
    http(f"- name: patient\n  retries: {{attempts: 1, retryOn: 5xx, backoff: 1.5s}}\n  {V1}")
    routes = next(
        config["dynamic_route_configs"]
        for config in shop.config("caller")["configs"]
        if "dynamic_route_configs" in config
    )
    (patient,) = [
        route
        for table in routes
        for host in table["route_config"].get("virtual_hosts", ())
        for route in host["routes"]
        if route.get("name") == "patient"
        and table["route_config"]["name"] == "9080"
        and host["name"].startswith("reviews.")
    ]
    assert patient["route"]["retry_policy"]["retry_back_off"]["base_interval"] == "1.500s"


@pytest.mark.covers("VirtualService.http.retries.retryIgnorePreviousHosts")
def test_retry_ignore_previous_hosts_tries_another(http: Apply, caller: Client, shop: Mesh) -> None:
    http("""
- retries: {attempts: 5, retryOn: 5xx, retryIgnorePreviousHosts: true}
  route: [{destination: {host: reviews}}]
""")
    shop.fail("reviews-v1", status=500)
    shop.fail("reviews-v2", status=500)
    for _ in range(10):
        assert caller.get(URL).workload == "reviews-v3"


# --- delegates, hosts, visibility ---------------------------------------------------------------------


@pytest.mark.covers("VirtualService.http.delegate.name", "VirtualService.http.delegate.namespace")
def test_delegate_hands_a_prefix_to_another_object(http: Apply, caller: Client, shop: Mesh) -> None:
    shop.apply(f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: part, namespace: elsewhere}}
spec:
  http:
  - name: delegated
    match: [{{uri: {{prefix: /part/a}}}}]
    {V1.replace("host: reviews", "host: reviews.default.svc.cluster.local")}
""")
    http(
        "- match: [{uri: {prefix: /part}}]\n  delegate: {name: part, namespace: elsewhere}\n"
        "- name: rest\n  directResponse: {status: 202}"
    )
    assert caller.get("http://reviews:9080/part/a").workload == "reviews-v1"
    assert caller.get("http://reviews:9080/part/b").route == "rest"


@pytest.mark.covers("VirtualService.hosts")
def test_hosts_may_be_wildcards(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: all}
spec:
  hosts: ["*.default.svc.cluster.local"]
  http:
  - directResponse: {status: 209}
""")
    assert caller.get("http://reviews:9080/").status == 209
    assert caller.get("http://details:9080/").status == 209


@pytest.mark.covers("VirtualService.exportTo")
def test_export_to_hides_rules_from_other_namespaces(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  exportTo: ["."]
  http:
  - directResponse: {status: 209}
""")
    assert caller.get("http://reviews:9080/").status == 209
    assert shop.client("other").get("http://reviews.default:9080/").status == 200


@pytest.mark.covers(
    "VirtualService.tcp.match.port",
    "VirtualService.tcp.route.weight",
    "VirtualService.tcp.route.destination.host",
    "VirtualService.tcp.route.destination.subset",
)
def test_tcp_routes_by_weight(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  tcp:
  - match: [{port: 9000}]
    route:
    - {destination: {host: reviews, subset: v1}, weight: 0}
    - {destination: {host: reviews, subset: v2}, weight: 100}
""")
    for _ in range(5):
        with caller.tcp("reviews:9000") as connection:
            assert connection.ask("hello")["workload"] == "reviews-v2"


@pytest.mark.covers("VirtualService.tcp.match.sourceLabels")
def test_tcp_routes_by_source_labels(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  tcp:
  - match: [{sourceLabels: {team: blue}}]
    route: [{destination: {host: reviews, subset: v3}}]
  - route: [{destination: {host: reviews, subset: v1}}]
""")
    with caller.tcp("reviews:9000") as connection:
        assert connection.ask("hello")["workload"] == "reviews-v3"
    with shop.client("other").tcp("reviews.default:9000") as connection:
        assert connection.ask("hello")["workload"] == "reviews-v1"


@pytest.mark.covers(
    "VirtualService.tls.match.sniHosts",
    "VirtualService.tls.route.destination.host",
    "VirtualService.tls.route.destination.subset",
)
def test_tls_routes_by_server_name(shop: Mesh, caller: Client) -> None:
    shop.apply("""
apiVersion: v1
kind: Service
metadata: {name: vault}
spec:
  selector: {app: reviews}
  ports: [{name: tls, port: 8443}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vault}
spec:
  host: vault
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vault}
spec:
  hosts: [vault]
  tls:
  - match: [{sniHosts: [vault]}]
    route: [{destination: {host: vault, subset: v2}}]
""")
    with caller.tls("vault:8443", sni="vault") as connection:
        assert connection.ask("hello")["workload"] == "reviews-v2"
