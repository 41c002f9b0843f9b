"""EnvoyFilter: HTTP filters, which proxies a patch reaches and in which order, and what is wrong with it; shown by requests."""

from __future__ import annotations

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
    lua,
    outbound_lua,
    patch,
    seen,
    timeouts,
)
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh, WrongConfiguration

pytestmark = pytest.mark.envoy


# --- HTTP filters -------------------------------------------------------------------------------------


@pytest.mark.covers(
    "EnvoyFilter.configPatches.applyTo",
    "EnvoyFilter.configPatches.patch.operation",
    "EnvoyFilter.configPatches.patch.value",
    "EnvoyFilter.configPatches.match.context",
    "EnvoyFilter.configPatches.match.listener.filterChain.filter.name",
    "EnvoyFilter.configPatches.match.listener.filterChain.filter.subFilter.name",
)
@pytest.mark.parametrize(
    ("context", "reaches"),
    [("SIDECAR_OUTBOUND", 1), ("SIDECAR_INBOUND", 1), ("ANY", 2), ("GATEWAY", 0)],
)
def test_context_chooses_the_side(shop: Mesh, caller: Client, context: str, reaches: int) -> None:
    shop.apply(
        envoy_filter(
            patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), in_manager(context, ROUTER))
        )
    )
    found = seen(caller, "x-lua")
    assert (found or "").count("yes") == reaches


@pytest.mark.parametrize(
    ("operation", "anchor", "wanted"),
    [
        ("INSERT_BEFORE", "first", "new,first,second"),
        ("INSERT_AFTER", "first", "first,new,second"),
        ("INSERT_AFTER", "second", "first,second,new"),
        ("INSERT_FIRST", "", "new,first,second"),
        ("ADD", "", "first,second,new"),
        ("INSERT_BEFORE", "", "new,first,second"),
        ("INSERT_AFTER", "", "first,second,new"),
        ("INSERT_BEFORE", "nobody", "first,second"),
        ("REMOVE", "first", "second"),
        ("REPLACE", "first", "new,second"),
    ],
)
def test_operations_on_http_filters(
    shop: Mesh, caller: Client, operation: str, anchor: str, wanted: str
) -> None:
    value = None if operation == "REMOVE" else adds("x-order", "new", "new")
    shop.apply(
        envoy_filter(
            *(
                patch(
                    "HTTP_FILTER",
                    "INSERT_BEFORE",
                    adds("x-order", name, name),
                    in_manager("SIDECAR_OUTBOUND", ROUTER),
                )
                for name in ("first", "second")
            ),
            patch("HTTP_FILTER", operation, value, in_manager("SIDECAR_OUTBOUND", anchor)),
        )
    )
    assert seen(caller, "x-order") == wanted


def test_merge_changes_a_filters_configuration(shop: Mesh, caller: Client) -> None:
    router = TYPE + "extensions.filters.http.router.v3.Router"
    shop.apply(
        envoy_filter(
            patch(
                "HTTP_FILTER",
                "MERGE",
                {"typed_config": {"@type": router, "suppress_envoy_headers": True}},
                in_manager("ANY", ROUTER),
            )
        )
    )
    assert "x-envoy-upstream-service-time" not in caller.get(URL).headers


@pytest.mark.covers("EnvoyFilter.configPatches.patch.filterClass")
@pytest.mark.parametrize(
    ("filter_class", "status"), [("AUTHN", 418), ("AUTHZ", 403), ("STATS", 403)]
)
def test_filter_class_places_a_filter_among_the_policies(
    shop: Mesh, caller: Client, filter_class: str, status: int
) -> None:
    refuses = lua("teapot", "handle:respond({[':status'] = '418'}, '')")
    shop.apply(
        envoy_filter(
            patch(
                "HTTP_FILTER",
                "ADD",
                refuses,
                in_manager("SIDECAR_INBOUND"),
                filterClass=filter_class,
            )
        ),
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
        "metadata: {name: nothing}\nspec: {selector: {matchLabels: {app: reviews}}}\n",
    )
    assert caller.get(URL).status == status


# --- which proxies, and in which order ----------------------------------------------------------------


@pytest.mark.covers(
    "EnvoyFilter.configPatches.match.proxy.proxyVersion",
    "EnvoyFilter.configPatches.match.proxy.metadata",
)
@pytest.mark.parametrize(
    ("proxy", "applies"),
    [
        ({"proxyVersion": r"^1\..*"}, True),
        ({"proxyVersion": r"^0\..*"}, False),
        ({"metadata": {"WORKLOAD_NAME": "caller"}}, True),
        ({"metadata": {"WORKLOAD_NAME": "other"}}, False),
    ],
)
def test_proxies_by_version_and_metadata(
    shop: Mesh, caller: Client, proxy: dict[str, Any], applies: bool
) -> None:
    match = {**in_manager("SIDECAR_OUTBOUND", ROUTER), "proxy": proxy}
    shop.apply(envoy_filter(patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), match)))
    assert (seen(caller, "x-lua") == "yes") is applies


@pytest.mark.covers("EnvoyFilter.workloadSelector.labels")
def test_workload_selector(shop: Mesh, caller: Client) -> None:
    shop.apply(envoy_filter(outbound_lua("x-lua"), workloadSelector={"labels": {"team": "green"}}))
    assert seen(caller, "x-lua") is None
    shop.apply(envoy_filter(outbound_lua("x-lua"), workloadSelector={"labels": {"team": "blue"}}))
    assert seen(caller, "x-lua") == "yes"


def test_namespaces_limit_what_a_filter_reaches(shop: Mesh, caller: Client) -> None:
    other = shop.client("other")
    shop.apply(envoy_filter(outbound_lua("x-lua")))
    assert seen(caller, "x-lua") == "yes"
    assert seen(other, "x-lua", "http://reviews.default:9080/") is None
    shop.delete("EnvoyFilter", "patches")
    shop.apply(envoy_filter(outbound_lua("x-lua"), namespace="istio-system"))
    assert seen(other, "x-lua", "http://reviews.default:9080/") == "yes"


@pytest.mark.covers(
    "EnvoyFilter.targetRefs.group", "EnvoyFilter.targetRefs.kind", "EnvoyFilter.targetRefs.name"
)
def test_target_refs_choose_gateways(shop: Mesh, front: Client) -> None:
    shop.apply("""
apiVersion: apps/v1
kind: Deployment
metadata: {name: edge, namespace: istio-system}
spec:
  template:
    metadata:
      labels: {istio: ingressgateway, gateway.networking.k8s.io/gateway-name: edge}
      annotations: {inject.istio.io/templates: gateway}
    spec: {containers: [{name: istio-proxy}]}
""")
    lua_there = patch("HTTP_FILTER", "INSERT_BEFORE", adds("x-lua"), in_manager("GATEWAY", ROUTER))

    def target(name: str) -> str:
        ref = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name}
        return envoy_filter(lua_there, namespace="istio-system", targetRefs=[ref])

    shop.apply(target("another"))
    assert seen(shop.gateway("edge"), "x-lua", "http://a.example.com:8080/") is None
    shop.apply(target("edge"))
    assert seen(shop.gateway("edge"), "x-lua", "http://a.example.com:8080/") == "yes"


@pytest.mark.covers("EnvoyFilter.priority")
def test_order_is_root_namespace_then_priority_then_age(shop: Mesh, caller: Client) -> None:
    shop.apply(
        envoy_filter(outbound_lua("x-order", "young"), name="a", created="2024-01-02T00:00:00Z"),
        envoy_filter(outbound_lua("x-order", "old"), name="b", created="2024-01-01T00:00:00Z"),
        envoy_filter(outbound_lua("x-order", "late"), name="c", priority=10),
        envoy_filter(outbound_lua("x-order", "early"), name="d", priority=-10),
        envoy_filter(
            outbound_lua("x-order", "root"), name="e", namespace="istio-system", priority=100
        ),
    )
    assert seen(caller, "x-order") == "root,early,old,young,late"


# --- what people use it for ---------------------------------------------------------------------------


def test_local_rate_limit(shop: Mesh, caller: Client) -> None:
    limit = {
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": TYPE + "extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "limit",
            "token_bucket": {"max_tokens": 3, "tokens_per_fill": 3, "fill_interval": "600s"},
            "filter_enabled": {"default_value": {"numerator": 100}},
            "filter_enforced": {"default_value": {"numerator": 100}},
        },
    }
    shop.apply(
        envoy_filter(
            patch("HTTP_FILTER", "INSERT_BEFORE", limit, in_manager("SIDECAR_INBOUND", ROUTER)),
            workloadSelector={"labels": {"app": "details"}},
        )
    )
    found = caller.send("http://details:9080/", n=5).statuses
    assert found == {200: 3, 429: 2}


# --- wrong patches ------------------------------------------------------------------------------------


def test_a_wrong_value_is_refused_with_its_line(shop: Mesh) -> None:
    with pytest.raises(WrongConfiguration) as caught:
        shop.apply(
            envoy_filter(patch("CLUSTER", "MERGE", {"connect_timeout": "soon"}, {"context": "ANY"}))
        )
    (finding,) = caught.value.findings
    assert finding.origin.path == "spec.configPatches[0].patch.value"
    assert finding.origin.line > 0
    assert "connect_timeout" in finding.text


def test_a_type_that_the_proxy_does_not_have_is_refused(shop: Mesh) -> None:
    name = TYPE + "extensions.filters.network.mysql_proxy.v3.MySQLProxy"
    value = {"name": "mysql", "typed_config": {"@type": name, "stat_prefix": "m"}}
    with pytest.raises(WrongConfiguration, match="the proxy has no type"):
        shop.apply(envoy_filter(patch("NETWORK_FILTER", "INSERT_FIRST", value)))


def test_unknown_fields_are_ignored_and_reported(shop: Mesh, caller: Client) -> None:
    value = {"connect_timeout": "7s", "no_such_field": 1}
    match = {"context": "SIDECAR_OUTBOUND", "cluster": {"name": V1}}
    shop.apply(envoy_filter(patch("CLUSTER", "MERGE", value, match)))
    assert timeouts(shop)[V1] == "7s"
    assert any("no_such_field" in finding.text for finding in shop.findings)


def test_a_patch_that_cannot_be_applied_leaves_the_others(shop: Mesh, caller: Client) -> None:
    taken = {"name": V1, "connect_timeout": "1s"}
    shop.apply(
        envoy_filter(
            patch("CLUSTER", "ADD", taken, {"context": "SIDECAR_OUTBOUND"}),
            outbound_lua("x-lua"),
        )
    )
    assert seen(caller, "x-lua") == "yes"
    (finding,) = [f for f in shop.findings if f.code == "MLT0110"]
    assert finding.origin.path == "spec.configPatches[0]"
    assert finding.origin.line > 0
