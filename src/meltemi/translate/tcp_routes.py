"""TCP and TLS rules of VirtualServices as filter chains."""

from __future__ import annotations

from collections.abc import Collection

from meltemi.ir.listener import ChainMatch, FilterChain, NetworkFilter, ResolveSni
from meltemi.ir.route import WeightedCluster
from meltemi.model.config import Config
from meltemi.model.names import outbound_cluster
from meltemi.model.service import Port, Resolution, Service
from meltemi.model.traffic import (
    L4MatchAttributes,
    RouteDestination,
    TLSMatchAttributes,
    VirtualService,
)
from meltemi.translate.build import Build
from meltemi.translate.destinations import port_of, service_of, weighted
from meltemi.translate.http_match import Place, gateways_apply
from meltemi.translate.network_filters import client_tcp
from meltemi.translate.scope import MESH_GATEWAY
from meltemi.translate.tcp_tuning import route_tuning, service_tuning
from meltemi.translate.visibility import narrower

_AnyL4 = L4MatchAttributes | TLSMatchAttributes
_NO_CONDITIONS = L4MatchAttributes()


def l4_applies(build: Build, config: Config[VirtualService], match: _AnyL4, place: Place) -> bool:
    """Conditions on gateways, port and source that are decided here."""
    named = match.gateways or config.spec.gateways or (MESH_GATEWAY,)
    if not gateways_apply(named, config.meta.namespace, place):
        return False
    if match.port and match.port != place.port:
        return False
    if not place.in_mesh:
        return True
    if match.source_namespace and match.source_namespace != build.proxy.namespace:
        return False
    return build.proxy.matches(match.source_labels)


def _by_name(
    build: Build,
    config: Config[VirtualService],
    targets: tuple[RouteDestination, ...],
    place: Place,
) -> tuple[ResolveSni, ...]:
    """The filter that resolves the SNI, when the (first) destination wants that."""
    _, service = service_of(build, targets[0].destination, config.meta.namespace)
    if service is None or service.resolution is not Resolution.DYNAMIC_DNS:
        return ()
    return (ResolveSni(port_of(targets[0].destination, service, place.port)),)


def _sni_names(match: TLSMatchAttributes, hosts: Collection[str] | None) -> tuple[str, ...] | None:
    """Server names of a condition, empty for any; None when nothing is left of it. ``hosts`` are those that may be served."""
    if hosts is None:
        return () if "*" in match.sni_hosts else match.sni_hosts
    found = [
        both
        for name in match.sni_hosts
        for host in hosts
        if (both := narrower(host, name)) is not None
    ]
    if not found:
        return None
    return () if "*" in found else tuple(dict.fromkeys(found))


def tls_chains(
    build: Build,
    config: Config[VirtualService],
    place: Place,
    prefixes: tuple[str, ...] = (),
    hosts: Collection[str] | None = None,
) -> list[FilterChain]:
    """Chains by SNI of the ``tls`` rules. ``hosts``: only for these (those of a gateway's server)."""
    found: list[FilterChain] = []
    for index, rule in enumerate(config.spec.tls):
        for match_index, match in enumerate(rule.match):
            names = _sni_names(match, hosts)
            if names is None or not rule.route or not l4_applies(build, config, match, place):
                continue
            clusters = weighted(build, config, rule.route, place.port)
            tuning = route_tuning(build, config, rule.route, place.port)
            origins = (
                config.origin(f"spec.tls[{index}].match[{match_index}]"),
                config.origin(f"spec.tls[{index}]"),
            )
            found.append(
                FilterChain(
                    name="",
                    match=ChainMatch(
                        prefixes=match.destination_subnets or prefixes,
                        server_names=names,
                        transport_protocol="tls",
                    ),
                    filters=(
                        *_by_name(build, config, rule.route, place),
                        client_tcp(build, clusters[0].cluster, clusters, origins, tuning),
                    ),
                    origins=origins,
                )
            )
    return found


def tcp_chains(
    build: Build, config: Config[VirtualService], place: Place, prefixes: tuple[str, ...] = ()
) -> list[FilterChain]:
    """Chains of the ``tcp`` rules; the first without conditions ends them."""
    found: list[FilterChain] = []
    for index, rule in enumerate(config.spec.tcp):
        for match in rule.match or (_NO_CONDITIONS,):
            if not l4_applies(build, config, match, place) or not rule.route:
                continue
            clusters = weighted(build, config, rule.route, place.port)
            tuning = route_tuning(build, config, rule.route, place.port)
            origins = (config.origin(f"spec.tcp[{index}]"),)
            source = (match.source_subnet,) if match.source_subnet else ()
            chain = FilterChain(
                name="",
                match=ChainMatch(
                    prefixes=match.destination_subnets or prefixes, source_prefixes=source
                ),
                filters=(client_tcp(build, clusters[0].cluster, clusters, origins, tuning),),
                origins=origins,
            )
            if all(chain.match != other.match for other in found):
                found.append(chain)
    return found


def service_chain(
    build: Build, service: Service, port: Port, match: ChainMatch, name: str = ""
) -> FilterChain:
    """Everything to the service itself."""
    cluster = outbound_cluster(service.hostname, port.number)
    origins = (service.origin,)
    by_name: tuple[NetworkFilter, ...] = ()
    if service.resolution is Resolution.DYNAMIC_DNS:
        by_name = (ResolveSni(port.target_port or port.number),)
        if not port.protocol.is_tls:
            build.report(
                "MLT0202",
                f"port {port.number} of {service.hostname} carries no name that could be resolved; "
                "DYNAMIC_DNS serves HTTP and TLS only",
                service.origin,
                "declare the port's protocol HTTP or TLS, or use resolution NONE",
            )
    return FilterChain(
        name=name,
        match=match,
        filters=(
            *by_name,
            client_tcp(
                build,
                cluster,
                (WeightedCluster(cluster),),
                origins,
                service_tuning(build, service, port.number),
            ),
        ),
        origins=origins,
    )
