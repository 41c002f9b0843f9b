"""EnvoyFilters of a class as IR patches, in the order of application.

Order: the root namespace's before the proxy's own, lower priority first, then age. A patch that cannot be understood is a
finding, and leaves the others in place.
"""

from __future__ import annotations

import json

from meltemi.ir.patch import Patch, PatchMatch
from meltemi.model.config import Config
from meltemi.model.extensions import EnvoyConfigObjectMatch, EnvoyFilter
from meltemi.model.frozen import thaw
from meltemi.translate.build import Build

_SKIPPED = ("INVALID", "BOOTSTRAP")  # BOOTSTRAP patches are the agent's


def _match(match: EnvoyConfigObjectMatch | None) -> PatchMatch:
    if match is None:
        return PatchMatch()
    listener, route, cluster = match.listener, match.route_configuration, match.cluster
    chain = listener.filter_chain if listener is not None else None
    network = chain.filter if chain is not None else None
    host = route.vhost if route is not None else None
    return PatchMatch(
        context=match.context,
        listener=listener.name if listener is not None else "",
        listener_port=listener.port_number if listener is not None else 0,
        listener_filter=listener.listener_filter if listener is not None else "",
        chain=chain.name if chain is not None else "",
        chain_sni=chain.sni if chain is not None else "",
        chain_transport=chain.transport_protocol if chain is not None else "",
        chain_protocols=chain.application_protocols if chain is not None else "",
        chain_port=chain.destination_port if chain is not None else 0,
        filter=network.name if network is not None else "",
        sub_filter=network.sub_filter.name
        if network is not None and network.sub_filter is not None
        else "",
        route_config=route.name if route is not None else "",
        route_port=route.port_number if route is not None else 0,
        route_gateway=route.gateway if route is not None else "",
        vhost=host.name if host is not None else "",
        vhost_domain=host.domain_name if host is not None else "",
        route=host.route.name if host is not None and host.route is not None else "",
        route_action=host.route.action if host is not None and host.route is not None else "",
        cluster=cluster.name if cluster is not None else "",
        cluster_service=cluster.service if cluster is not None else "",
        cluster_subset=cluster.subset if cluster is not None else "",
        cluster_port=cluster.port_number if cluster is not None else 0,
    )


def _patch(config: Config[EnvoyFilter], index: int) -> Patch | None:
    entry = config.spec.config_patches[index]
    if entry.apply_to in _SKIPPED or entry.patch is None or entry.patch.operation == "INVALID":
        return None
    body = entry.patch.value
    return Patch(
        apply_to=entry.apply_to,
        operation=entry.patch.operation,
        match=_match(entry.match),
        body=json.dumps(thaw(body), sort_keys=True) if body is not None else "{}",
        filter_class=entry.patch.filter_class,
        origins=(config.origin(f"spec.configPatches[{index}]"),),
    )


def patches_for(build: Build) -> tuple[Patch, ...]:
    """The patches of a class. Which patches match the proxy was decided with the class."""
    chosen = {key for key, _ in build.proxy.patches}
    configs = {c.key: c for c in build.context.envoy_filters if c.key in chosen}
    root = build.context.root_namespace
    position = {key: index for index, key in enumerate(configs)}
    ordered = sorted(
        build.proxy.patches,
        key=lambda entry: (
            entry[0].namespace != root,
            configs[entry[0]].spec.priority,
            position[entry[0]],
            entry[1],
        ),
    )
    found = (_patch(configs[key], index) for key, index in ordered)
    return tuple(patch for patch in found if patch is not None)
