"""What tests of EnvoyFilters are written with: objects, patches, and what an application saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

URL = "http://reviews:9080/"
HCM = "envoy.filters.network.http_connection_manager"
ROUTER = "envoy.filters.http.router"
TYPE = "type.googleapis.com/envoy."
Patch = Mapping[str, Any]


def lua(name: str, code: str) -> dict[str, Any]:
    """An HTTP filter that runs this Lua for every request."""
    return {
        "name": name,
        "typed_config": {
            "@type": TYPE + "extensions.filters.http.lua.v3.Lua",
            "default_source_code": {
                "inline_string": f"function envoy_on_request(handle) {code} end"
            },
        },
    }


def adds(header: str, text: str = "yes", name: str = "") -> dict[str, Any]:
    """A Lua filter that appends to a request header."""
    code = (
        f"local old = handle:headers():get('{header}') "
        f"handle:headers():replace('{header}', (old and old .. ',' or '') .. '{text}')"
    )
    return lua(name or f"adds-{text}", code)


def envoy_filter(
    *patches: Patch,
    name: str = "patches",
    namespace: str = "default",
    created: str = "",
    **spec: Any,
) -> str:
    """The YAML of an EnvoyFilter."""
    metadata = {"name": name, "namespace": namespace}
    if created:
        metadata["creationTimestamp"] = created
    return yaml.safe_dump(
        {
            "apiVersion": "networking.istio.io/v1alpha3",
            "kind": "EnvoyFilter",
            "metadata": metadata,
            "spec": {"configPatches": list(patches), **spec},
        }
    )


def patch(
    apply_to: str,
    operation: str,
    value: Any = None,
    match: Mapping[str, Any] | None = None,
    **more: Any,
) -> Patch:
    """One patch."""
    made: dict[str, Any] = {"operation": operation, **more}
    if value is not None:
        made["value"] = value
    return {"applyTo": apply_to, "match": dict(match or {"context": "ANY"}), "patch": made}


def in_manager(context: str, sub_filter: str = "", **listener: Any) -> dict[str, Any]:
    """Matches HTTP connection managers, and a filter in them."""
    chain = dict(listener.pop("filterChain", {}))
    chain["filter"] = {"name": HCM}
    if sub_filter:
        chain["filter"]["subFilter"] = {"name": sub_filter}
    return {"context": context, "listener": {**listener, "filterChain": chain}}


def outbound_lua(header: str, text: str = "yes", **listener: Any) -> Patch:
    """Clients' proxies append to a request header."""
    match = in_manager("SIDECAR_OUTBOUND", ROUTER, **listener)
    return patch("HTTP_FILTER", "INSERT_BEFORE", adds(header, text), match)


def seen(client: Client, header: str, url: str = URL, **request: Any) -> str | None:
    """A request header as the application got it."""
    answer = client.get(url, **request)
    assert answer.status == 200, answer.text
    found = answer.json()["headers"].get(header)
    return None if found is None else str(found)


V1 = "outbound|9080|v1|reviews.default.svc.cluster.local"


def timeouts(shop: Mesh, workload: str = "caller") -> dict[str, str]:
    """The connect timeouts of a proxy's clusters."""
    return {
        entry["cluster"]["name"]: entry["cluster"].get("connect_timeout", "")
        for config in shop.config(workload)["configs"]
        for entry in config.get("dynamic_active_clusters", ())
    }
