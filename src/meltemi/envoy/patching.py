"""EnvoyFilter patches on clusters and route tables; listeners have ``patch_listeners``.

In: messages of one proxy class and its patches. Out: resources. A patch whose value is no legal configuration is left
out and the others are applied: validation told the user, and one bad patch must not stop a proxy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_components_pb2
from google.protobuf import json_format

from meltemi.envoy.patch_listeners import patched_listeners
from meltemi.envoy.patch_match import (
    cluster_holds,
    context_holds,
    route_config_holds,
    route_holds,
    virtual_host_holds,
)
from meltemi.envoy.patch_merge import load_types, merge, parse
from meltemi.ir.patch import Patch
from meltemi.ir.proxy import ProxyIR
from meltemi.model.resource import Resource, resource_of

_KINDS = {
    "CLUSTER": "cluster",
    "LISTENER": "listener",
    "FILTER_CHAIN": "listener",
    "NETWORK_FILTER": "listener",
    "HTTP_FILTER": "listener",
    "LISTENER_FILTER": "listener",
    "ROUTE_CONFIGURATION": "route",
    "VIRTUAL_HOST": "route",
    "HTTP_ROUTE": "route",
}
MERGES = ("MERGE", "MERGE_AND_REPLACE_LIST")
_INSERTS = ("ADD", "INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST")


def patched_kinds(patches: Iterable[Patch]) -> frozenset[str]:
    """Which of cluster, listener and route any patch touches."""
    found = {_KINDS[patch.apply_to] for patch in patches if patch.apply_to in _KINDS}
    # Inbound route tables are inside their listeners.
    return frozenset(found | {"listener"} if "route" in found else found)


def value_of(patch: Patch, target: Any) -> Any:
    """The patch's value as a message like ``target``, or None when it is not one."""
    try:
        load_types(patch.body)
        return parse(patch.body, target)
    except (json_format.ParseError, ValueError, TypeError):
        return None


def to_resources(messages: Iterable[Any]) -> tuple[Resource, ...]:
    """Messages as named resources."""
    return tuple(
        resource_of(message.name, message.SerializeToString(deterministic=True))
        for message in messages
    )


def _apply_merge(patch: Patch, message: Any) -> None:
    value = value_of(patch, message)
    if value is not None:
        merge(message, value, replace_lists=patch.operation == "MERGE_AND_REPLACE_LIST")


def patch_clusters(clusters: list[Any], ir: ProxyIR) -> tuple[Resource, ...]:
    """Clusters with their patches: REMOVE, MERGE, then ADD."""
    current = list(clusters)
    for patch in ir.patches:
        if patch.apply_to != "CLUSTER":
            continue
        if patch.operation == "REMOVE":
            current = [c for c in current if not cluster_holds(patch.match, c, ir.gateway)]
        elif patch.operation in MERGES:
            for cluster in current:
                if cluster_holds(patch.match, cluster, ir.gateway):
                    _apply_merge(patch, cluster)
        elif patch.operation == "ADD" and _add_context(patch, ir.gateway):
            made = value_of(patch, cluster_pb2.Cluster())
            if made is not None and all(made.name != cluster.name for cluster in current):
                current.append(made)
    return to_resources(current)


def _add_context(patch: Patch, gateway: bool) -> bool:
    if gateway:
        return context_holds(patch.match, "GATEWAY")
    return patch.match.context != "GATEWAY"


def insert(entries: Any, patch: Patch, made: Any, holds: Any, *, anchored: bool) -> None:
    """Insert ``made`` into a repeated field where the patch says.

    ``holds`` tells whether an entry is the anchor; without one (``anchored`` False) ADD appends and the others go first.
    """
    position: int | None = None
    if patch.operation == "ADD":
        position = len(entries)
    elif patch.operation == "INSERT_FIRST" or not anchored:
        position = 0 if patch.operation != "INSERT_AFTER" else len(entries)
    else:
        for index, entry in enumerate(entries):
            if holds(entry):
                position = index + (1 if patch.operation == "INSERT_AFTER" else 0)
                break
    if position is None:
        return
    kept = list(entries)
    kept.insert(position, made)
    _replace(entries, kept)


def _replace(entries: Any, kept: list[Any]) -> None:
    """Set the content of a repeated message field."""
    copies = []
    for entry in kept:
        copy = type(entry)()
        copy.CopyFrom(entry)
        copies.append(copy)
    del entries[:]
    entries.extend(copies)


def edit(entries: Any, patch: Patch, holds: Any, *, anchored: bool, empty: Any) -> None:
    """Apply a patch to the entries of a repeated field: remove, merge, replace or insert."""
    if patch.operation == "REMOVE":
        _replace(entries, [entry for entry in entries if not holds(entry)])
    elif patch.operation in MERGES:
        for entry in entries:
            if holds(entry):
                _apply_merge(patch, entry)
    elif patch.operation == "REPLACE":
        made = value_of(patch, empty)
        if made is not None:
            for entry in entries:
                if holds(entry):
                    entry.CopyFrom(made)
    elif patch.operation in _INSERTS:
        made = value_of(patch, empty)
        if made is not None:
            insert(entries, patch, made, holds, anchored=anchored)


def _patch_route_config(patch: Patch, config: Any) -> None:
    match = patch.match
    if patch.apply_to == "ROUTE_CONFIGURATION":
        if patch.operation in MERGES:
            _apply_merge(patch, config)
        return
    if patch.apply_to == "VIRTUAL_HOST":
        edit(
            config.virtual_hosts,
            patch,
            lambda host: virtual_host_holds(match, host),
            anchored=bool(match.vhost or match.vhost_domain),
            empty=route_components_pb2.VirtualHost(),
        )
        return
    for host in config.virtual_hosts:
        if virtual_host_holds(match, host):
            edit(
                host.routes,
                patch,
                lambda route: route_holds(match, route),
                anchored=bool(match.route or match.route_action),
                empty=route_components_pb2.Route(),
            )


def patch_route_config(config: Any, patches: Iterable[Patch], context: str) -> None:
    """Apply the route patches to one table, in place."""
    for patch in patches:
        if _KINDS.get(patch.apply_to) != "route" or not context_holds(patch.match, context):
            continue
        if route_config_holds(patch.match, config, context == "GATEWAY"):
            _patch_route_config(patch, config)


def patch_routes(configs: list[Any], ir: ProxyIR) -> tuple[Resource, ...]:
    """Route tables with their patches."""
    context = "GATEWAY" if ir.gateway else "SIDECAR_OUTBOUND"
    for config in configs:
        patch_route_config(config, ir.patches, context)
    return to_resources(configs)


def patch_listeners(listeners: list[Any], ir: ProxyIR) -> tuple[Resource, ...]:
    """Listeners with their patches."""
    return to_resources(patched_listeners(listeners, ir, edit, patch_route_config))
