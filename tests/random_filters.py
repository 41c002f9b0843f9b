"""Random EnvoyFilters: patches that Envoy itself would take, at places that may or may not be there.

Out: hypothesis strategies of whole objects (plain data). A patch that makes a resource wrong is its writer's to answer for, so that
values are drawn from what is right wherever it is put; places, conditions, operations and their order are drawn freely.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

_TYPE = "type.googleapis.com/envoy."
_HCM = "envoy.filters.network.http_connection_manager"
_ROUTER = "envoy.filters.http.router"
_CONTEXTS = ("ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY")
_LUA = {
    "name": "drawn.lua",
    "typed_config": {
        "@type": f"{_TYPE}extensions.filters.http.lua.v3.Lua",
        "default_source_code": {"inline_string": "function envoy_on_request(handle) end"},
    },
}
_MANAGER = {
    "name": _HCM,
    "typed_config": {
        "@type": f"{_TYPE}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "server_name": "drawn",
        "max_request_headers_kb": 96,
    },
}
_NETWORK = {
    "name": "drawn.limit",
    "typed_config": {
        "@type": f"{_TYPE}extensions.filters.network.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "drawn",
        "token_bucket": {"max_tokens": 1000, "tokens_per_fill": 1000, "fill_interval": "1s"},
    },
}
_CLUSTER = {
    "name": "drawn",
    "type": "STATIC",
    "connect_timeout": "1s",
    "load_assignment": {"cluster_name": "drawn"},
}
_HOST = {
    "name": "drawn",
    "domains": ["drawn.example.com"],
    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 204}}],
}
_ROUTE = {"name": "drawn", "match": {"path": "/drawn"}, "direct_response": {"status": 204}}
_ADDED = {"request_headers_to_add": [{"header": {"key": "x-drawn", "value": "yes"}}]}
_INSERTED = ("INSERT_FIRST", "INSERT_BEFORE", "INSERT_AFTER", "ADD")

# What may be done at each place: operations, and the value that they take there.
_PATCHES: Mapping[str, tuple[tuple[tuple[str, ...], Any], ...]] = {
    "LISTENER": ((("MERGE",), {"per_connection_buffer_limit_bytes": 65536}),),
    "LISTENER_FILTER": ((("REMOVE",), None),),
    "FILTER_CHAIN": ((("MERGE",), {"transport_socket_connect_timeout": "7s"}),),
    "NETWORK_FILTER": (
        (("MERGE",), _MANAGER),
        (("INSERT_FIRST", "INSERT_BEFORE"), _NETWORK),
    ),
    "HTTP_FILTER": ((_INSERTED[:2], _LUA), (("REMOVE",), None)),
    "ROUTE_CONFIGURATION": ((("MERGE",), _ADDED),),
    "VIRTUAL_HOST": ((("MERGE",), _ADDED), (("ADD",), _HOST), (("REMOVE",), None)),
    "HTTP_ROUTE": (
        (("MERGE",), _ADDED),
        (_INSERTED, _ROUTE),
        (("REMOVE",), None),
    ),
    "CLUSTER": ((("MERGE",), {"connect_timeout": "7s"}), (("ADD",), _CLUSTER)),
}
_LISTENER_PLACES = ("LISTENER", "LISTENER_FILTER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER")
_ROUTE_PLACES = ("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE")
_REMOVABLE = ("envoy.filters.http.fault", "envoy.filters.http.cors", "envoy.filters.http.lua")


@st.composite
def _listener(draw: st.DrawFn, place: str, operation: str) -> dict[str, Any]:
    match: dict[str, Any] = {}
    if draw(st.booleans()):
        match["portNumber"] = draw(st.sampled_from((9080, 8080, 15006, 4)))
    if place == "LISTENER_FILTER":
        match["listenerFilter"] = "envoy.filters.listener.http_inspector"
    chain: dict[str, Any] = {}
    if draw(st.booleans()):
        chain["transportProtocol"] = draw(st.sampled_from(("tls", "raw_buffer")))
    if place == "NETWORK_FILTER":
        chain["filter"] = {"name": _HCM}
    if place == "HTTP_FILTER":
        below = draw(st.sampled_from(_REMOVABLE)) if operation == "REMOVE" else _ROUTER
        chain["filter"] = {"name": _HCM, "subFilter": {"name": below}}
    if chain and place not in ("LISTENER", "LISTENER_FILTER"):
        match["filterChain"] = chain
    return match


@st.composite
def _routes(draw: st.DrawFn) -> dict[str, Any]:
    match: dict[str, Any] = {}
    if draw(st.booleans()):
        match["portNumber"] = draw(st.sampled_from((9080, 8080, 4)))
    if draw(st.booleans()):
        host: dict[str, Any] = {}
        if draw(st.booleans()):
            host["name"] = draw(st.sampled_from(("allow_any", "reviews:9080", "gone")))
        if draw(st.booleans()):
            host["route"] = {"action": draw(st.sampled_from(("ANY", "ROUTE", "REDIRECT")))}
        match["vhost"] = host
    return match


@st.composite
def _patch(draw: st.DrawFn) -> dict[str, Any]:
    place = draw(st.sampled_from(sorted(_PATCHES)))
    operations, value = draw(st.sampled_from(_PATCHES[place]))
    operation = draw(st.sampled_from(operations))
    match: dict[str, Any] = {"context": draw(st.sampled_from(_CONTEXTS))}
    if place in _LISTENER_PLACES:
        match["listener"] = draw(_listener(place, operation))
    elif place in _ROUTE_PLACES and operation != "ADD":
        match["routeConfiguration"] = draw(_routes())
    elif place == "CLUSTER" and operation != "ADD" and draw(st.booleans()):
        match["cluster"] = {
            "service": draw(st.sampled_from(("reviews.default.svc.cluster.local", "gone")))
        }
    patch = {"operation": operation} if value is None else {"operation": operation, "value": value}
    return {"applyTo": place, "match": match, "patch": patch}


def _own(patch: dict[str, Any], name: str) -> dict[str, Any]:
    """The patch; what it adds has a name (and domain) of its own, as Envoy demands."""
    if patch["patch"]["operation"] != "ADD" or patch["applyTo"] == "HTTP_ROUTE":
        return patch
    value = {**patch["patch"]["value"], "name": name}
    if "domains" in value:
        value["domains"] = [f"{name}.example.com"]
    return {**patch, "patch": {**patch["patch"], "value": value}}


@st.composite
def envoy_filters(draw: st.DrawFn) -> dict[str, Any]:
    """One EnvoyFilter of up to four patches."""
    name = draw(st.sampled_from(("one", "two")))
    namespace = draw(st.sampled_from(("default", "istio-system")))
    patches = draw(st.lists(_patch(), min_size=1, max_size=4))
    spec: dict[str, Any] = {
        "configPatches": [
            _own(patch, f"{name}-{namespace}-{index}") for index, patch in enumerate(patches)
        ]
    }
    if draw(st.booleans()):
        spec["priority"] = draw(st.integers(-2, 2))
    if draw(st.booleans()):
        spec["workloadSelector"] = {"labels": {"app": draw(st.sampled_from(("reviews", "caller")))}}
    return {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
