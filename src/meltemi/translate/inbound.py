"""A sidecar's inbound side: virtualInbound with chains per port of the workload, and what catches the rest."""

from __future__ import annotations

from dataclasses import replace

from meltemi.ir.cluster import Cluster
from meltemi.ir.listener import ChainMatch, FilterChain, Inspection, Listener, NetworkFilter
from meltemi.ir.route import Forward, Route, RouteConfig, VirtualHost, WeightedCluster
from meltemi.ir.telemetry import Side
from meltemi.ir.tls import WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS, DownstreamTls, SanMatch
from meltemi.ir.value import Origins
from meltemi.model.names import (
    BLACKHOLE_CLUSTER,
    INBOUND_PASSTHROUGH_CLUSTER,
    VIRTUAL_INBOUND,
    inbound_cluster,
)
from meltemi.model.service import Protocol
from meltemi.translate.build import Build
from meltemi.translate.credentials import known_ciphers
from meltemi.translate.http_match import MATCH_ALL
from meltemi.translate.inbound_clusters import inbound_service_cluster, inbound_tuning
from meltemi.translate.inbound_ports import InboundPort, inbound_ports
from meltemi.translate.mtls import Mode, PeerPolicy, peer_policy
from meltemi.translate.network_filters import inbound_manager, server_tcp
from meltemi.translate.outbound import PLAINTEXT_HTTP, WILDCARD
from meltemi.translate.tcp_tuning import TcpTuning
from meltemi.translate.telemetry import listener_logs

# What our proxies offer as ALPN (see upstream_tls): HTTP inside, or anything of the mesh.
MESH_HTTP = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
MESH_ANY = ("istio-peer-exchange", "istio")
# A client that speaks second must not wait for ever to be recognised.
DETECTION_FALLBACK_S = 5.0
_HTTP_ALPN = ("h2", "istio-http/1.1", "http/1.1", "istio")
_TCP_ALPN = ("istio-peer-exchange", "istio")


def trust_domains(build: Build) -> tuple[str, ...]:
    """Trust domains whose members may connect: the mesh's own, its aliases, and those of further roots."""
    mesh = build.context.mesh
    foreign = (domain for entry in mesh.ca_certificates for domain in entry.trust_domains)
    return tuple(dict.fromkeys((*mesh.trust_domains, *foreign)))


def _tls(build: Build, *, http: bool) -> DownstreamTls:
    defaults = build.context.mesh.mesh_mtls
    return DownstreamTls(
        certificates=(WORKLOAD_CERTIFICATE,),
        roots=WORKLOAD_ROOTS,
        client_certificate="required",
        sans=tuple(SanMatch("uri", "prefix", f"spiffe://{d}/") for d in trust_domains(build)),
        alpn=_HTTP_ALPN if http else _TCP_ALPN,
        min_version=defaults.min_protocol_version
        if defaults is not None and defaults.min_protocol_version != "TLS_AUTO"
        else "TLSV1_2",
        max_version="TLSV1_3",
        cipher_suites=known_ciphers(defaults.cipher_suites if defaults is not None else ()),
    )


class _Port:
    """Chains of one port (0 is every other port), by what comes in."""

    def __init__(
        self,
        build: Build,
        port: int,
        cluster: str,
        decorator: str,
        origins: Origins,
        tuning: TcpTuning | None = None,
    ):
        self.build = build
        self.port = port
        self.cluster = cluster
        self.decorator = decorator
        self.origins = origins
        self.tuning = tuning
        self.label = str(port) if port else "catchall"

    def _routes(self) -> RouteConfig:
        route = Route(
            "default",
            MATCH_ALL,
            Forward((WeightedCluster(self.cluster),)),
            decorator=self.decorator,
            origins=self.origins,
        )
        host = VirtualHost(
            f"inbound|http|{self.port}", ("*",), (route,), attempt_count=False, origins=self.origins
        )
        return RouteConfig(self.cluster, (host,), origins=self.origins)

    def _filters(self, *, http: bool, mtls: bool) -> tuple[NetworkFilter, ...]:
        prefix = f"inbound_{WILDCARD}_{self.label}"
        if http:
            return (
                inbound_manager(
                    self.build, prefix, self._routes(), mtls=mtls, origins=self.origins
                ),
            )
        return server_tcp(
            self.build,
            prefix,
            self.cluster,
            mtls=mtls,
            origins=self.origins,
            tuning=self.tuning,
        )

    def mtls(self, *, http: bool, protocols: tuple[str, ...]) -> FilterChain:
        """mTLS from another proxy."""
        kind = "http" if http else "tcp"
        return FilterChain(
            name=f"{self.label}-mtls-{kind}",
            match=ChainMatch(
                destination_port=self.port,
                transport_protocol="tls",
                application_protocols=protocols,
            ),
            filters=self._filters(http=http, mtls=True),
            tls=_tls(self.build, http=http),
            origins=self.origins,
        )

    def plain(self, *, http: bool, transport: str, protocols: tuple[str, ...] = ()) -> FilterChain:
        """Anything that is not mTLS of the mesh."""
        kind = "http" if http else ("tls" if transport == "tls" else "tcp")
        return FilterChain(
            name=f"{self.label}-plain-{kind}",
            match=ChainMatch(
                destination_port=self.port,
                transport_protocol=transport,
                application_protocols=protocols,
            ),
            filters=self._filters(http=http, mtls=False),
            origins=self.origins,
        )


def _http_chains(port: _Port, mode: Mode) -> list[FilterChain]:
    if mode == "STRICT":
        return [port.mtls(http=True, protocols=())]
    if mode == "DISABLE":
        return [port.plain(http=True, transport="")]
    return [
        port.mtls(http=True, protocols=(*MESH_HTTP, *MESH_ANY)),
        port.plain(http=True, transport="raw_buffer"),
    ]


def _tcp_chains(port: _Port, mode: Mode) -> list[FilterChain]:
    if mode == "STRICT":
        return [port.mtls(http=False, protocols=())]
    if mode == "DISABLE":
        return [port.plain(http=False, transport="")]
    return [
        port.mtls(http=False, protocols=MESH_ANY),
        port.plain(http=False, transport="tls"),
        port.plain(http=False, transport="raw_buffer"),
    ]


def _sniffed_chains(port: _Port, mode: Mode) -> list[FilterChain]:
    if mode == "STRICT":
        return [
            port.mtls(http=True, protocols=MESH_HTTP),
            port.mtls(http=False, protocols=()),
        ]
    plain = [
        port.plain(http=True, transport="raw_buffer", protocols=PLAINTEXT_HTTP),
        port.plain(http=False, transport="raw_buffer"),
        port.plain(http=False, transport="tls"),
    ]
    if mode == "DISABLE":
        return plain
    return [
        port.mtls(http=True, protocols=MESH_HTTP),
        port.mtls(http=False, protocols=MESH_ANY),
        *plain,
    ]


def _port_chains(port: _Port, protocol: Protocol, mode: Mode) -> list[FilterChain]:
    if protocol.is_http:
        return _http_chains(port, mode)
    if protocol.is_unknown:
        return _sniffed_chains(port, mode)
    return _tcp_chains(port, mode)


def _catch_all(build: Build, policy: PeerPolicy, served: frozenset[int]) -> list[FilterChain]:
    """Ports that no service names, and those of them that have a mode of their own."""
    passthrough = INBOUND_PASSTHROUGH_CLUSTER
    mesh = build.context.mesh
    found = [
        FilterChain(
            name="virtualInbound-blackhole",
            match=ChainMatch(destination_port=mesh.proxy_inbound_listen_port),
            filters=server_tcp(build, "InboundBlackHole", BLACKHOLE_CLUSTER, mtls=False),
        )
    ]
    for number, mode in policy.ports:
        if number not in served:
            port = _Port(build, number, passthrough, f":{number}/*", policy.origins)
            found += _sniffed_chains(port, mode)
    rest = _Port(build, 0, passthrough, "", policy.origins)
    return found + _sniffed_chains(rest, policy.default)


def _inspection(
    build: Build, policy: PeerPolicy, ports: list[InboundPort], *, captured: bool = True
) -> Inspection:
    """Ports whose protocol is declared need no guess, and must not wait for one (server-first protocols)."""
    known = [port for port in ports if not port.target.protocol.is_unknown]
    declared = sorted(port.number for port in known)
    plain = sorted(
        port.number for port in known if policy.at(port.number) == "DISABLE" and port.tls is None
    )
    return Inspection(
        original_dst=captured,
        tls=True,
        tls_skip_ports=tuple(dict.fromkeys(plain)),
        http=True,
        http_skip_ports=tuple(dict.fromkeys(declared)),
        timeout_s=build.context.mesh.protocol_detection_timeout or DETECTION_FALLBACK_S,
    )


def _chains(build: Build, port: InboundPort, policy: PeerPolicy) -> list[FilterChain]:
    """The chains of one port, by the mode that its policy asks for."""
    target = port.target
    made = _Port(
        build,
        port.number,
        inbound_cluster(port.number),
        f"{target.hostname}:{target.port}/*" if target.hostname else f":{port.number}/*",
        (*port.origins, *policy.origins),
        inbound_tuning(build, port.listener),
    )
    chains = _port_chains(made, target.protocol, policy.at(port.number))
    if port.tls is not None:
        chains = [
            replace(
                chain,
                tls=port.tls,
                match=replace(chain.match, transport_protocol="tls", application_protocols=()),
            )
            for chain in chains[:1]
        ]
    if not port.captured:
        # A listener of its own has no other port to tell apart.
        chains = [
            replace(chain, match=replace(chain.match, destination_port=0)) for chain in chains
        ]
    return chains


def _own_listener(build: Build, port: InboundPort, policy: PeerPolicy) -> Listener:
    """An inbound port that clients connect to directly, without capture."""
    bind = port.bind or WILDCARD
    # The outbound listener of services with this port number has the plain name.
    prefix = "inbound_" if bind == WILDCARD else ""
    return Listener(
        name=f"{prefix}{bind}_{port.number}",
        address=bind,
        port=port.number,
        chains=tuple(_chains(build, port, policy)),
        direction="INBOUND",
        bind_to_port=True,
        inspection=_inspection(build, policy, [port], captured=False),
        origins=port.origins,
    )


def inbound_listeners(build: Build) -> tuple[list[Listener], list[Cluster]]:
    """The inbound listeners and the clusters they name: virtualInbound, and one per port that is not captured."""
    policy = peer_policy(build.context, build.proxy)
    ports = inbound_ports(build, policy)
    captured = [port for port in ports if port.captured]
    listeners = [_own_listener(build, port, policy) for port in ports if not port.captured]
    clusters = [
        inbound_service_cluster(
            build,
            port.target,
            port.listener,
            captured=port.captured,
            origins=port.origins,
        )
        for port in ports
    ]
    if build.proxy.interception == "NONE":
        return listeners, clusters
    chains = _catch_all(build, policy, frozenset(port.number for port in captured))
    for port in captured:
        chains += _chains(build, port, policy)
    mesh = build.context.mesh
    listener = Listener(
        name=VIRTUAL_INBOUND,
        address=WILDCARD,
        port=mesh.proxy_inbound_listen_port,
        chains=tuple(chains),
        direction="INBOUND",
        bind_to_port=True,
        inspection=_inspection(build, policy, captured),
        access_logs=listener_logs(build, Side.SERVER),
        origins=policy.origins,
    )
    return [listener, *listeners], clusters
