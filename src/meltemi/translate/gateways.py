"""A gateway's listeners: one per bound port, chains by SNI, HTTP by route table."""

from __future__ import annotations

import dataclasses

from meltemi.ir.listener import (
    ChainMatch,
    FilterChain,
    Inspection,
    Listener,
    MongoStats,
    NetworkFilter,
    SniCluster,
)
from meltemi.ir.route import RouteConfig, WeightedCluster
from meltemi.model.names import BLACKHOLE_CLUSTER
from meltemi.translate.authorization import policy_filters
from meltemi.translate.build import Build
from meltemi.translate.chain_conflicts import without_overlap
from meltemi.translate.edge import edge_of
from meltemi.translate.gateway_http import gateway_route_config, shared_hosts
from meltemi.translate.gateway_servers import (
    GRPC_WEB,
    Bound,
    bound_servers,
    by_listener,
    compatible,
)
from meltemi.translate.gateway_tls import server_tls
from meltemi.translate.http_match import Place
from meltemi.translate.network_filters import client_tcp, gateway_manager
from meltemi.translate.scope import bound_to
from meltemi.translate.tcp_routes import tcp_chains, tls_chains
from meltemi.translate.telemetry import listener_logs


def _https_chain(build: Build, server: Bound) -> FilterChain | None:
    tls = server.server.tls
    if tls is None:
        return None
    origins = (server.origin(),)
    return FilterChain(
        name=server.route_name,
        match=ChainMatch(server_names=server.server_names, transport_protocol="tls"),
        filters=(
            gateway_manager(
                build,
                server.stat_prefix,
                server.route_name,
                origins,
                grpc_web=server.protocol == GRPC_WEB,
            ),
        ),
        tls=server_tls(tls, build.context.mesh, http=True),
        handshake_timeout_s=15.0,
        origins=origins,
    )


def _stream_chains(build: Build, server: Bound) -> list[FilterChain]:
    """Chains of TCP servers, and of TLS that is passed through or ends here with TCP inside."""
    tls = server.server.tls
    if tls is not None and tls.mode == "AUTO_PASSTHROUGH":
        return [_auto_passthrough(build, server)]
    place = Place(frozenset({server.gateway}), server.number)
    found: list[FilterChain] = []
    for config in build.scope.virtual_services:
        hosts = shared_hosts(build, server, config)
        if not bound_to(config, server.gateway) or not hosts:
            continue
        if server.is_tls and not server.terminates:
            found += tls_chains(build, config, place, hosts=hosts)
        else:
            found += tcp_chains(build, config, place)
            if server.is_tls:
                found += tls_chains(build, config, place, hosts=hosts)
    if not (server.is_tls and server.terminates and tls is not None):
        return found
    context = server_tls(tls, build.context.mesh, http=False)
    return [
        FilterChain(
            name=chain.name,
            match=ChainMatch(
                server_names=chain.match.server_names or server.server_names,
                transport_protocol="tls",
                prefixes=chain.match.prefixes,
                source_prefixes=chain.match.source_prefixes,
            ),
            filters=chain.filters,
            tls=context,
            handshake_timeout_s=15.0,
            origins=(*chain.origins, server.origin()),
        )
        for chain in found
    ]


def _guarded(build: Build, server: Bound) -> list[FilterChain]:
    """The chains of a TCP or TLS server, behind the gateway's policies."""
    first: tuple[NetworkFilter, ...] = policy_filters(build).tcp
    if server.protocol == "MONGO":
        first = (*first, MongoStats(server.stat_prefix))
    return [
        dataclasses.replace(chain, filters=(*first, *chain.filters))
        for chain in _stream_chains(build, server)
    ]


def _auto_passthrough(build: Build, server: Bound) -> FilterChain:
    """East-west traffic: the SNI names the cluster."""
    return FilterChain(
        name="auto-passthrough",
        match=ChainMatch(server_names=server.server_names, transport_protocol="tls"),
        filters=(
            SniCluster(),
            client_tcp(build, BLACKHOLE_CLUSTER, (WeightedCluster(BLACKHOLE_CLUSTER),)),
        ),
        origins=(server.origin(),),
    )


def _plain_http(build: Build, servers: list[Bound]) -> FilterChain:
    """The one chain of all plain HTTP servers of a port."""
    first = servers[0]
    origins = tuple(server.origin() for server in servers)
    manager = gateway_manager(
        build,
        first.stat_prefix,
        first.route_name,
        origins,
        grpc_web=any(server.protocol == GRPC_WEB for server in servers),
    )
    return FilterChain("", ChainMatch(), (manager,), origins=origins)


def _chains(build: Build, servers: list[Bound]) -> list[FilterChain]:
    """The chains of one port. Of two rules for the same connections the first counts."""
    if servers[0].is_plain_http:
        return [_plain_http(build, servers)]
    found: list[FilterChain] = []
    for server in servers:
        chain = _https_chain(build, server) if server.is_https else None
        candidates = [chain] if chain is not None else _guarded(build, server)
        for candidate in candidates:
            kept = without_overlap(found, candidate)
            if kept is not None:
                found.append(kept)
            if kept is not candidate:
                _report_overlap(build, server, found, candidate)
    return found


def _report_overlap(
    build: Build, server: Bound, known: list[FilterChain], late: FilterChain
) -> None:
    """Tell both of two rules that some connections belong to both."""
    first = next((chain for chain in known if without_overlap([chain], late) is not late), late)
    winner, loser = first.origins[0], late.origins[0]
    for origin in dict.fromkeys((loser, winner)):
        build.report(
            "MLT0104",
            f"{loser} and {winner} take the same connections on port {server.number}; the latter comes first",
            origin,
            "give them different hosts or conditions, or join them",
        )


def gateway_listeners(build: Build) -> tuple[list[Listener], list[RouteConfig]]:
    """All listeners of a gateway and the route tables they name."""
    listeners: list[Listener] = []
    tables: dict[str, list[Bound]] = {}
    for (bind, port), everyone in sorted(by_listener(bound_servers(build)).items()):
        servers = compatible(build, everyone)
        for server in servers:
            if server.is_plain_http or server.is_https:
                tables.setdefault(server.route_name, []).append(server)
        chains = _chains(build, servers)
        if not chains:
            continue
        listeners.append(
            Listener(
                name=f"{bind}_{port}",
                address=bind,
                port=port,
                chains=tuple(chains),
                bind_to_port=True,
                inspection=Inspection(
                    proxy_protocol=edge_of(build).proxy_protocol,
                    tls=any(server.is_tls for server in servers),
                ),
                access_logs=listener_logs(build),
                origins=tuple(server.origin() for server in servers),
            )
        )
    routes = [gateway_route_config(build, name, group) for name, group in sorted(tables.items())]
    return listeners, routes
