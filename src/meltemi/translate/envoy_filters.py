"""EnvoyFilters of a class as IR patches, in the order of application.

Order: the root namespace's before the proxy's own, lower priority first, then age. A patch that cannot be understood is a
finding, and leaves the others in place.
"""

from __future__ import annotations

import json

from meltemi.ir.patch import Patch, PatchMatch
from meltemi.model.config import Config
from meltemi.model.extensions import (
    EnvoyConfigObjectMatch,
    EnvoyFilter,
    FilterChainMatch,
    FilterMatch,
    ListenerMatch,
    RouteConfigurationMatch,
    RouteMatch,
    VirtualHostMatch,
)
from meltemi.model.frozen import thaw
from meltemi.model.names import BOOTSTRAP_XDS
from meltemi.translate.build import Build
from meltemi.translate.gateway_servers import bound_servers

_NO_PORT = (-1,)


def _listener_ports(
    build: Build, listener: ListenerMatch
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(outbound or gateway ports, inbound ports) that a listener match names, by number or by a port's name."""
    number, wanted = listener.port_number, listener.port_name.lower()
    if not number and not wanted:
        return (), ()
    if build.proxy.is_gateway:
        ports = {
            bound.port
            for bound in bound_servers(build, quiet=True)
            if (bound.number == number if number else bound.port_name.lower() == wanted)
        }
        return tuple(sorted(ports | {number} - {0})) or _NO_PORT, _NO_PORT
    if number:
        return (number,), (number,)
    outbound = {
        port.number
        for service in build.scope.services
        for port in service.ports
        if port.name.lower() == wanted
    }
    inbound = {t.target_port for t in build.proxy.targets if t.port_name.lower() == wanted}
    return tuple(sorted(outbound)) or _NO_PORT, tuple(sorted(inbound)) or _NO_PORT


def _gateway_ports(build: Build, route: RouteConfigurationMatch) -> tuple[int, ...]:
    """Ports of the plaintext servers that a route match names by gateway or by port name."""
    if not route.gateway and not route.port_name:
        return ()
    namespace, _, name = route.gateway.rpartition("/")
    ports = {
        bound.port
        for bound in bound_servers(build, quiet=True)
        if name in ("", bound.config.meta.name)
        and namespace in ("", bound.config.meta.namespace)
        and route.port_name in ("", bound.port_name)
    }
    return tuple(sorted(ports)) or _NO_PORT


def _listener(build: Build, listener: ListenerMatch) -> dict[str, object]:
    chain = listener.filter_chain or FilterChainMatch()
    network = chain.filter or FilterMatch()
    outbound, inbound = _listener_ports(build, listener)
    return {
        "listener": listener.name,
        "listener_ports": outbound,
        "inbound_ports": inbound,
        "listener_filter": listener.listener_filter,
        "chain": chain.name,
        "chain_sni": chain.sni,
        "chain_transport": chain.transport_protocol,
        "chain_socket": chain.transport_socket,
        "chain_protocols": chain.application_protocols,
        "chain_port": chain.destination_port,
        "filter": network.name,
        "sub_filter": network.sub_filter.name if network.sub_filter is not None else "",
    }


def _routes(build: Build, route: RouteConfigurationMatch) -> dict[str, object]:
    host = route.vhost or VirtualHostMatch()
    wanted = host.route or RouteMatch()
    return {
        "route_config": route.name,
        "route_port": route.port_number,
        "route_port_name": route.port_name,
        "route_gateway": route.gateway,
        "gateway_ports": _gateway_ports(build, route),
        "vhost": host.name,
        "vhost_domain": host.domain_name,
        "route": wanted.name,
        "route_action": wanted.action if host.route is not None else "",
    }


def _match(build: Build, match: EnvoyConfigObjectMatch | None) -> PatchMatch:
    if match is None:
        return PatchMatch()
    fields: dict[str, object] = {"context": match.context}
    if match.listener is not None:
        fields |= _listener(build, match.listener)
    if match.route_configuration is not None:
        fields |= _routes(build, match.route_configuration)
    if match.cluster is not None:
        fields |= {
            "cluster": match.cluster.name,
            "cluster_service": match.cluster.service,
            "cluster_subset": match.cluster.subset,
            "cluster_port": match.cluster.port_number,
        }
    return PatchMatch(**fields)  # type: ignore[arg-type]


def _patch(build: Build, config: Config[EnvoyFilter], index: int) -> Patch | None:
    entry = config.spec.config_patches[index]
    if entry.apply_to == "INVALID" or entry.patch is None or entry.patch.operation == "INVALID":
        return None
    if entry.apply_to == "BOOTSTRAP" and not build.proxy.takes_bootstrap:
        build.report(
            "MLT0110",
            "the patch has no effect: the proxy does not ask for patches of its start configuration",
            config.origin(f"spec.configPatches[{index}].applyTo"),
            f'set {BOOTSTRAP_XDS}: "true" in the proxyMetadata of the mesh or of the pod',
        )
        return None
    body = entry.patch.value
    return Patch(
        apply_to=entry.apply_to,
        operation=entry.patch.operation,
        match=_match(build, entry.match),
        body=json.dumps(thaw(body), sort_keys=True) if body is not None else "{}",
        filter_class=entry.patch.filter_class,
        filter=f"{config.meta.namespace}/{config.meta.name}",
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
    found = (_patch(build, configs[key], index) for key, index in ordered)
    return tuple(patch for patch in found if patch is not None)
