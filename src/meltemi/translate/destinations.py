"""Destinations of routes -> cluster names."""

from __future__ import annotations

from collections.abc import Iterable

from meltemi.ir.route import HashPolicy, WeightedCluster
from meltemi.model.config import Config
from meltemi.model.names import outbound_cluster, resolve_short_name
from meltemi.model.service import Port, Service
from meltemi.model.traffic import (
    Destination,
    HTTPRouteDestination,
    RouteDestination,
    VirtualService,
)
from meltemi.translate.build import Build
from meltemi.translate.cluster_policy import hash_policy
from meltemi.translate.header_ops import header_ops
from meltemi.translate.rules import effective_policy, pool_of, rule_for


def service_of(
    build: Build, destination: Destination, namespace: str
) -> tuple[str, Service | None]:
    """The host name of a destination's service, and the service when there is one in scope (an alias's target)."""
    host = resolve_short_name(destination.host, namespace, build.proxy.dns_domain)
    service = build.scope.by_host.get(host)
    return (service.hostname if service is not None else host), service


def port_of(destination: Destination, service: Service | None, listen_port: int) -> int:
    """The destination's port: as written, else the service's only one, else the port that was addressed."""
    if destination.port is not None and destination.port.number:
        return destination.port.number
    if service is not None and len(service.ports) == 1:
        return service.ports[0].number
    return listen_port


def cluster_of(build: Build, destination: Destination, namespace: str, listen_port: int) -> str:
    """The cluster's name. A service that does not exist gives a name that no cluster has: 503."""
    host, service = service_of(build, destination, namespace)
    return outbound_cluster(host, port_of(destination, service, listen_port), destination.subset)


def weighted(
    build: Build,
    config: Config[VirtualService],
    targets: Iterable[HTTPRouteDestination | RouteDestination],
    listen_port: int,
) -> tuple[WeightedCluster, ...]:
    """Targets with their weights. A single one gets everything; weight 0 among several gets nothing."""
    entries = list(targets)
    namespace = config.meta.namespace
    if len(entries) > 1:
        kept = [target for target in entries if target.weight > 0]
        entries = kept or entries
    return tuple(
        WeightedCluster(
            cluster=cluster_of(build, target.destination, namespace, listen_port),
            weight=(target.weight or 1) if len(entries) > 1 else 100,
            headers=header_ops(
                target.headers if isinstance(target, HTTPRouteDestination) else None
            ),
        )
        for target in entries
    )


def hashes_for(
    build: Build,
    config: Config[VirtualService],
    targets: Iterable[HTTPRouteDestination],
    listen_port: int,
) -> tuple[HashPolicy, ...]:
    """Hash policies that the destinations' load balancers need."""
    found: dict[HashPolicy, None] = {}
    for target in targets:
        _, service = service_of(build, target.destination, config.meta.namespace)
        if service is not None:
            port = port_of(target.destination, service, listen_port)
            policy = service_hash(build, service, port, target.destination.subset)
            if policy is not None:
                found[policy] = None
    return tuple(found)


def service_hash(build: Build, service: Service, port: int, subset: str = "") -> HashPolicy | None:
    """The hash policy of one service port."""
    rule = rule_for(build, service)
    if rule is None:
        return None
    chosen = next((entry for entry, _, _ in rule.subsets if entry.name == subset), None)
    return hash_policy(effective_policy(build, rule, port, chosen))


def all_external(
    build: Build, config: Config[VirtualService], targets: Iterable[HTTPRouteDestination]
) -> bool:
    """Whether every destination is outside the mesh."""
    found = [service_of(build, t.destination, config.meta.namespace)[1] for t in targets]
    return bool(found) and all(service is not None and service.mesh_external for service in found)


def version_unknown(build: Build, service: Service, port: Port, subset: str = "") -> bool:
    """Whether only a request tells which HTTP version its destination gets: sniffed ports, useClientProtocol."""
    if service.mesh_external:
        return False
    if port.protocol.is_unknown:
        return True
    rule = rule_for(build, service)
    if rule is None:
        return False
    chosen = next((entry for entry, _, _ in rule.subsets if entry.name == subset), None)
    return pool_of(effective_policy(build, rule, port.number, chosen))[1].use_client_protocol


def any_version_unknown(
    build: Build,
    config: Config[VirtualService],
    targets: Iterable[HTTPRouteDestination],
    listen_port: int,
) -> bool:
    """Whether ``version_unknown`` holds for any destination."""
    for target in targets:
        _, service = service_of(build, target.destination, config.meta.namespace)
        if service is None:
            continue
        port = service.port(port_of(target.destination, service, listen_port))
        if port is not None and version_unknown(build, service, port, target.destination.subset):
            return True
    return False
