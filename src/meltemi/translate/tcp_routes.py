"""TCP and TLS rules of VirtualServices as filter chains."""

from __future__ import annotations

from meltemi.ir.listener import ChainMatch, FilterChain
from meltemi.ir.route import WeightedCluster
from meltemi.model.config import Config
from meltemi.model.names import outbound_cluster
from meltemi.model.service import Port, Service
from meltemi.model.traffic import L4MatchAttributes, TLSMatchAttributes, VirtualService
from meltemi.translate.build import Build
from meltemi.translate.destinations import weighted
from meltemi.translate.http_match import Place, gateways_apply
from meltemi.translate.network_filters import client_tcp
from meltemi.translate.scope import MESH_GATEWAY
from meltemi.translate.tcp_tuning import route_tuning, service_tuning

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


def tls_chains(
    build: Build, config: Config[VirtualService], place: Place, prefixes: tuple[str, ...] = ()
) -> list[FilterChain]:
    """Chains by SNI of the ``tls`` rules."""
    found: list[FilterChain] = []
    for index, rule in enumerate(config.spec.tls):
        for match_index, match in enumerate(rule.match):
            if not l4_applies(build, config, match, place) or not rule.route:
                continue
            clusters = weighted(build, config, rule.route, place.port)
            tuning = route_tuning(build, config, rule.route, place.port)
            origins = (
                config.origin(f"spec.tls[{index}].match[{match_index}]"),
                config.origin(f"spec.tls[{index}]"),
            )
            names = tuple(host for host in match.sni_hosts if host != "*")
            found.append(
                FilterChain(
                    name="",
                    match=ChainMatch(
                        prefixes=match.destination_subnets or prefixes,
                        server_names=names if len(names) == len(match.sni_hosts) else (),
                        transport_protocol="tls",
                    ),
                    filters=(client_tcp(build, clusters[0].cluster, clusters, origins, tuning),),
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
    return FilterChain(
        name=name,
        match=match,
        filters=(
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
