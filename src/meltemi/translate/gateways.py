"""A gateway's listeners: one per bound port, chains by SNI, HTTP by route table."""

from __future__ import annotations

import dataclasses

from meltemi.ir.listener import ChainMatch, FilterChain, Inspection, Listener, SniCluster
from meltemi.ir.route import RouteConfig, WeightedCluster
from meltemi.model.names import BLACKHOLE_CLUSTER
from meltemi.translate.authorization import policy_filters
from meltemi.translate.build import Build
from meltemi.translate.chain_conflicts import without_overlap
from meltemi.translate.gateway_http import gateway_route_config, shared_hosts
from meltemi.translate.gateway_servers import Bound, bound_servers, by_listener
from meltemi.translate.gateway_tls import server_tls
from meltemi.translate.http_match import Place
from meltemi.translate.network_filters import client_tcp, gateway_manager
from meltemi.translate.scope import bound_to
from meltemi.translate.tcp_routes import tcp_chains, tls_chains
from meltemi.translate.telemetry import listener_logs


def _server_names(server: Bound) -> tuple[str, ...]:
    """SNI names of a server; none when one of its hosts is ``*``."""
    names = tuple(dict.fromkeys(host for _, host in server.hosts))
    return () if "*" in names else names


def _https_chain(build: Build, server: Bound) -> FilterChain | None:
    tls = server.server.tls
    if tls is None:
        return None
    origins = (server.origin(),)
    return FilterChain(
        name=server.route_name,
        match=ChainMatch(server_names=_server_names(server), transport_protocol="tls"),
        filters=(
            gateway_manager(
                build, f"outbound_{server.bind}_{server.port}", server.route_name, origins
            ),
        ),
        tls=server_tls(tls, http=True),
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
        if not bound_to(config, server.gateway) or not shared_hosts(build, server, config):
            continue
        if server.is_tls and not server.terminates:
            found += tls_chains(build, config, place)
        else:
            found += tcp_chains(build, config, place)
            if server.is_tls:
                found += tls_chains(build, config, place)
    if not (server.is_tls and server.terminates and tls is not None):
        return found
    context = server_tls(tls, http=False)
    return [
        FilterChain(
            name=chain.name,
            match=ChainMatch(
                server_names=chain.match.server_names or _server_names(server),
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
    policy = policy_filters(build).tcp
    return [
        dataclasses.replace(chain, filters=(*policy, *chain.filters))
        for chain in _stream_chains(build, server)
    ]


def _auto_passthrough(build: Build, server: Bound) -> FilterChain:
    """East-west traffic: the SNI names the cluster."""
    return FilterChain(
        name="auto-passthrough",
        match=ChainMatch(server_names=_server_names(server), transport_protocol="tls"),
        filters=(
            SniCluster(),
            client_tcp(build, BLACKHOLE_CLUSTER, (WeightedCluster(BLACKHOLE_CLUSTER),)),
        ),
        origins=(server.origin(),),
    )


def _chains(build: Build, servers: list[Bound]) -> list[FilterChain]:
    """The chains of one port. Two servers with the same SNI clash; the older keeps it."""
    found: list[FilterChain] = []
    plain = [server for server in servers if server.is_plain_http]
    if plain:
        first = plain[0]
        origins = tuple(server.origin() for server in plain)
        manager = gateway_manager(
            build, f"outbound_{first.bind}_{first.port}", first.route_name, origins
        )
        found.append(FilterChain("", ChainMatch(), (manager,), origins=origins))
    for server in servers:
        if server.is_plain_http:
            continue
        chain = _https_chain(build, server) if server.is_https else None
        candidates = [chain] if chain is not None else _guarded(build, server)
        for candidate in candidates:
            kept = without_overlap(found, candidate)
            if kept is not None:
                found.append(kept)
            if kept is not candidate:
                build.report(
                    "MLT0104",
                    f"Gateway {server.gateway} repeats hosts of another server "
                    f"on port {server.port}; the older keeps them",
                    server.origin(),
                    "give the servers different hosts, or merge them",
                )
    return found


def _kind_conflicts(build: Build, servers: list[Bound]) -> list[Bound]:
    """Plain HTTP and TLS cannot share a port: the oldest server decides which it is."""
    wants_tls = servers[0].is_tls
    kept = []
    for server in servers:
        if server.is_tls == wants_tls:
            kept.append(server)
            continue
        build.report(
            "MLT0105",
            f"Gateway {server.gateway} wants {server.protocol} on port {server.port}, "
            f"where {servers[0].gateway} already has {servers[0].protocol}",
            server.origin(),
            "use another port",
        )
    return kept


def gateway_listeners(build: Build) -> tuple[list[Listener], list[RouteConfig]]:
    """All listeners of a gateway and the route tables they name."""
    listeners: list[Listener] = []
    tables: dict[str, list[Bound]] = {}
    mesh = build.context.mesh
    topology = mesh.default_config.gateway_topology
    for (bind, port), everyone in sorted(by_listener(bound_servers(build)).items()):
        servers = _kind_conflicts(build, everyone)
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
                    proxy_protocol=topology is not None and topology.proxy_protocol is not None,
                    tls=any(server.is_tls for server in servers),
                ),
                access_logs=listener_logs(build),
                origins=tuple(server.origin() for server in servers),
            )
        )
    routes = [gateway_route_config(build, name, group) for name, group in sorted(tables.items())]
    return listeners, routes
