"""EnvoyFilter on routes, clusters and filters delivered by name, shown by requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from behaviour.envoy_filters import (
    ROUTER,
    TYPE,
    URL,
    V1,
    adds,
    envoy_filter,
    in_manager,
    patch,
    seen,
    timeouts,
)
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy


# --- routes -------------------------------------------------------------------------------------------


def header_added(name: str) -> dict[str, Any]:
    """A value that adds a request header, for tables, hosts and routes alike."""
    return {"request_headers_to_add": [{"header": {"key": name, "value": "yes"}}]}


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.portNumber",
    "EnvoyFilter.configPatches.match.routeConfiguration.name",
)
@pytest.mark.parametrize("table", [{"portNumber": 9081}, {"name": "9081"}])
def test_route_configurations(shop: Mesh, caller: Client, table: dict[str, Any]) -> None:
    match = {"context": "SIDECAR_OUTBOUND", "routeConfiguration": table}
    shop.apply(envoy_filter(patch("ROUTE_CONFIGURATION", "MERGE", header_added("x-table"), match)))
    assert seen(caller, "x-table") is None
    assert seen(caller, "x-table", "http://reviews:9081/") == "yes"


def test_inbound_route_configurations(shop: Mesh, caller: Client) -> None:
    match = {"context": "SIDECAR_INBOUND"}
    shop.apply(envoy_filter(patch("ROUTE_CONFIGURATION", "MERGE", header_added("x-table"), match)))
    assert seen(caller, "x-table") == "yes"


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.gateway",
    "EnvoyFilter.configPatches.match.routeConfiguration.portName",
)
@pytest.mark.parametrize(
    ("table", "urls"),
    [
        ({"gateway": "default/front"}, {"http:8080", "http:8081", "https:8443"}),
        ({"gateway": "default/other"}, set()),
        ({"portName": "http-other"}, {"http:8081"}),
        ({"portName": "https-a", "gateway": "default/front"}, {"https:8443"}),
        ({"portNumber": 8443}, {"https:8443"}),
        ({"portNumber": 8080, "gateway": "default/front"}, {"http:8080"}),
    ],
)
def test_route_configurations_of_gateways(
    shop: Mesh, front: Client, table: dict[str, Any], urls: set[str]
) -> None:
    match = {"context": "GATEWAY", "routeConfiguration": table}
    shop.apply(
        envoy_filter(
            patch("ROUTE_CONFIGURATION", "MERGE", header_added("x-table"), match),
            namespace="istio-system",
        )
    )
    for scheme, port in (("http", 8080), ("http", 8081), ("https", 8443)):
        wanted = "yes" if f"{scheme}:{port}" in urls else None
        assert seen(front, "x-table", f"{scheme}://a.example.com:{port}/") == wanted


def vhost(host: str, **route: Any) -> dict[str, Any]:
    """Matches one virtual host of the callers' proxies by its name, and routes in it."""
    found: dict[str, Any] = {"name": host}
    if route:
        found["route"] = route
    return {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"vhost": found}}


REVIEWS = "reviews.default.svc.cluster.local:9080"


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.name",
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.domainName",
)
@pytest.mark.parametrize("chosen", [{"name": REVIEWS}, {"domainName": "reviews"}])
def test_virtual_hosts_are_merged(shop: Mesh, caller: Client, chosen: dict[str, Any]) -> None:
    match = {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"vhost": chosen}}
    shop.apply(envoy_filter(patch("VIRTUAL_HOST", "MERGE", header_added("x-host"), match)))
    assert seen(caller, "x-host") == "yes"
    assert seen(caller, "x-host", "http://details:9080/") is None


def test_virtual_hosts_are_added_and_removed(shop: Mesh, caller: Client) -> None:
    teapot = {
        "name": "teapot",
        "domains": ["teapot.example.com"],
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 418}}],
    }
    table = {"context": "SIDECAR_OUTBOUND", "routeConfiguration": {"name": "9080"}}
    shop.apply(
        envoy_filter(
            patch("VIRTUAL_HOST", "ADD", teapot, table),
            patch("VIRTUAL_HOST", "REMOVE", match=vhost("details.default.svc.cluster.local:9080")),
        )
    )
    assert caller.get(URL, host="teapot.example.com").status == 418
    assert caller.get(URL).route == "default"
    assert caller.get("http://details:9080/").route == "allow_any"


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.route.name",
    "EnvoyFilter.configPatches.match.routeConfiguration.vhost.route.action",
)
def test_routes(http: Callable[[str], Mesh], shop: Mesh, caller: Client) -> None:
    http("""
- name: old
  match: [{uri: {prefix: /old}}]
  redirect: {uri: /new}
- name: answer
  match: [{uri: {prefix: /answer}}]
  directResponse: {status: 201}
- name: rest
  route: [{destination: {host: reviews, subset: v1}}]
""")

    def answering(name: str, status: int, path: str) -> dict[str, Any]:
        return {"name": name, "match": {"prefix": path}, "direct_response": {"status": status}}

    shop.apply(
        envoy_filter(
            patch("HTTP_ROUTE", "MERGE", header_added("x-named"), vhost(REVIEWS, name="rest")),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                header_added("x-forwarded-on"),
                vhost(REVIEWS, action="ROUTE"),
            ),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                {"redirect": {"path_redirect": "/newest"}},
                vhost(REVIEWS, action="REDIRECT"),
            ),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                {"direct_response": {"status": 202}},
                vhost(REVIEWS, action="DIRECT_RESPONSE"),
            ),
            patch("HTTP_ROUTE", "INSERT_FIRST", answering("a", 211, "/first"), vhost(REVIEWS)),
            patch(
                "HTTP_ROUTE",
                "INSERT_BEFORE",
                answering("b", 212, "/rest/a"),
                vhost(REVIEWS, name="rest"),
            ),
            patch(
                "HTTP_ROUTE",
                "INSERT_AFTER",
                answering("c", 213, "/answer/late"),
                vhost(REVIEWS, name="answer"),
            ),
            patch("HTTP_ROUTE", "ADD", answering("d", 214, "/"), vhost(REVIEWS)),
        )
    )
    answer = caller.get(URL)
    headers = answer.json()["headers"]
    assert (headers.get("x-named"), headers.get("x-forwarded-on")) == ("yes", "yes")
    assert caller.get(URL + "old").headers["location"].endswith("/newest")
    # INSERT_AFTER puts it behind a route that takes its requests already.
    assert [caller.get(URL + p).status for p in ("answer", "answer/late", "first", "rest/a")] == [
        202,
        202,
        211,
        212,
    ]
    shop.apply(
        envoy_filter(
            patch("HTTP_ROUTE", "REMOVE", match=vhost(REVIEWS, name="rest")),
            patch("HTTP_ROUTE", "ADD", answering("d", 214, "/"), vhost(REVIEWS)),
        )
    )
    assert caller.get(URL).status == 214


# --- clusters -----------------------------------------------------------------------------------------


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.cluster.service",
    "EnvoyFilter.configPatches.match.cluster.subset",
    "EnvoyFilter.configPatches.match.cluster.portNumber",
    "EnvoyFilter.configPatches.match.cluster.name",
)
@pytest.mark.parametrize(
    "chosen",
    [
        {"service": "reviews.default.svc.cluster.local", "subset": "v1", "portNumber": 9080},
        {"name": V1},
    ],
)
def test_clusters_are_merged(shop: Mesh, chosen: dict[str, Any]) -> None:
    match = {"context": "SIDECAR_OUTBOUND", "cluster": chosen}
    shop.apply(envoy_filter(patch("CLUSTER", "MERGE", {"connect_timeout": "7s"}, match)))
    assert [name for name, time in timeouts(shop).items() if time == "7s"] == [V1]


def test_inbound_clusters_are_matched_by_the_workloads_port(shop: Mesh) -> None:
    match = {"context": "SIDECAR_INBOUND", "cluster": {"portNumber": 9081}}
    shop.apply(envoy_filter(patch("CLUSTER", "MERGE", {"connect_timeout": "7s"}, match)))
    found = timeouts(shop, "reviews-v1")
    assert [name for name, time in found.items() if time == "7s"] == ["inbound|9081||"]


def test_clusters_are_added_removed_and_routed_to(
    http: Callable[[str], Mesh], shop: Mesh, caller: Client
) -> None:
    http("- name: only\n  route: [{destination: {host: reviews, subset: v1}}]")
    address = {"address": "elsewhere.example.com", "port_value": 80}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    cluster = {
        "name": "elsewhere",
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "elsewhere",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    shop.apply(
        envoy_filter(
            patch("CLUSTER", "ADD", cluster, {"context": "SIDECAR_OUTBOUND"}),
            patch("CLUSTER", "REMOVE", match={"cluster": {"name": V1}}),
            patch(
                "HTTP_ROUTE",
                "MERGE",
                {"route": {"cluster": "elsewhere"}},
                vhost(REVIEWS, name="only"),
            ),
        )
    )
    answer = caller.get(URL)
    assert answer.json()["host"] == "reviews:9080"
    assert answer.workload == "elsewhere.example.com"
    assert V1 not in timeouts(shop)


# --- filters delivered by name ------------------------------------------------------------------------


def test_extension_configs_are_delivered_by_name(shop: Mesh, caller: Client) -> None:
    by_name = {
        "name": "named",
        "config_discovery": {
            "config_source": {"ads": {}, "initial_fetch_timeout": "5s"},
            "type_urls": [TYPE + "extensions.filters.http.lua.v3.Lua"],
        },
    }
    insert = patch("HTTP_FILTER", "INSERT_BEFORE", by_name, in_manager("SIDECAR_OUTBOUND", ROUTER))
    for text in ("one", "two"):
        shop.apply(
            envoy_filter(
                insert,
                patch(
                    "EXTENSION_CONFIG",
                    "ADD",
                    adds("x-lua", text, "named"),
                    {"context": "SIDECAR_OUTBOUND"},
                ),
            )
        )
        assert seen(caller, "x-lua") == text
