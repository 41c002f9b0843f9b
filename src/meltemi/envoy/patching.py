"""EnvoyFilter patches on clusters, route tables and filters that are delivered by name; listeners have ``patch_listeners``.

In: messages of one proxy class, its patches and the record of what came of them. Out: resources.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.route.v3 import route_components_pb2

from meltemi.envoy.patch_edit import MERGES, Editor, PatchRecord
from meltemi.envoy.patch_listeners import patched_listeners
from meltemi.envoy.patch_match import (
    added_here,
    cluster_holds,
    context_holds,
    route_config_holds,
    route_holds,
    virtual_host_holds,
)
from meltemi.ir.patch import Patch
from meltemi.ir.proxy import ProxyIR
from meltemi.model.resource import Resource, resource_of

KINDS = {
    "CLUSTER": "cluster",
    "LISTENER": "listener",
    "FILTER_CHAIN": "listener",
    "NETWORK_FILTER": "listener",
    "HTTP_FILTER": "listener",
    "LISTENER_FILTER": "listener",
    "ROUTE_CONFIGURATION": "route",
    "VIRTUAL_HOST": "route",
    "HTTP_ROUTE": "route",
    "EXTENSION_CONFIG": "extension",
    "BOOTSTRAP": "bootstrap",
}


def patched_kinds(patches: Iterable[Patch]) -> frozenset[str]:
    """Which of cluster, listener, route, extension and bootstrap any patch touches."""
    found = {KINDS[patch.apply_to] for patch in patches if patch.apply_to in KINDS}
    # Inbound route tables are inside their listeners.
    return frozenset(found | {"listener"} if "route" in found else found)


def to_resources(messages: Iterable[Any]) -> tuple[Resource, ...]:
    """Messages as named resources."""
    return tuple(
        resource_of(message.name, message.SerializeToString(deterministic=True))
        for message in messages
    )


def patch_clusters(clusters: list[Any], ir: ProxyIR, record: PatchRecord) -> tuple[Resource, ...]:
    """Clusters with their patches, in order."""
    current, editor = list(clusters), Editor(record)
    for patch in ir.patches:
        if patch.apply_to != "CLUSTER":
            continue
        if patch.operation in ("REMOVE", *MERGES):
            editor.edit(
                current,
                patch,
                partial(cluster_holds, patch.match, gateway=ir.gateway),
                anchored=True,
                empty=cluster_pb2.Cluster(),
            )
        elif patch.operation == "ADD" and added_here(patch.match, ir.gateway):
            editor.add_named(current, patch, cluster_pb2.Cluster())
        elif patch.operation != "ADD":
            record.problem(
                patch, f"clusters know no operation {patch.operation}", "use ADD, MERGE or REMOVE"
            )
    return to_resources(current)


def extension_configs(ir: ProxyIR, record: PatchRecord) -> tuple[Resource, ...]:
    """Filters that HTTP_FILTER patches refer to by name (``config_discovery``)."""
    found: list[Any] = []
    editor = Editor(record)
    for patch in ir.patches:
        if patch.apply_to != "EXTENSION_CONFIG":
            continue
        if patch.operation != "ADD":
            text = f"filters that are delivered by name know no operation {patch.operation}"
            record.problem(patch, text, "use ADD")
        elif added_here(patch.match, ir.gateway):
            editor.add_named(found, patch, extension_pb2.TypedExtensionConfig())
    return to_resources(found)


def _patch_route_config(patch: Patch, config: Any, editor: Editor) -> None:
    match = patch.match
    if patch.apply_to == "ROUTE_CONFIGURATION":
        if patch.operation in MERGES:
            editor.merge(patch, config)
        else:
            text = f"route configurations know no operation {patch.operation}"
            editor.record.problem(patch, text, "use MERGE")
        return
    if patch.apply_to == "VIRTUAL_HOST":
        editor.edit(
            config.virtual_hosts,
            patch,
            lambda host: virtual_host_holds(match, host),
            anchored=bool(match.vhost or match.vhost_domain),
            empty=route_components_pb2.VirtualHost(),
        )
        return
    for host in config.virtual_hosts:
        if virtual_host_holds(match, host):
            editor.edit(
                host.routes,
                patch,
                lambda route: route_holds(match, route),
                anchored=bool(match.route or match.route_action),
                empty=route_components_pb2.Route(),
            )


def patch_route_config(
    config: Any, patches: Iterable[Patch], context: str, record: PatchRecord
) -> None:
    """Apply the route patches to one table, in place."""
    editor = Editor(record)
    for patch in patches:
        if KINDS.get(patch.apply_to) != "route" or not context_holds(patch.match, context):
            continue
        if route_config_holds(patch.match, config, context == "GATEWAY"):
            _patch_route_config(patch, config, editor)


def patch_routes(configs: list[Any], ir: ProxyIR, record: PatchRecord) -> tuple[Resource, ...]:
    """Route tables with their patches."""
    context = "GATEWAY" if ir.gateway else "SIDECAR_OUTBOUND"
    for config in configs:
        patch_route_config(config, ir.patches, context, record)
    return to_resources(configs)


def patch_listeners(listeners: list[Any], ir: ProxyIR, record: PatchRecord) -> tuple[Resource, ...]:
    """Listeners with their patches."""
    return to_resources(patched_listeners(listeners, ir, record, patch_route_config))
