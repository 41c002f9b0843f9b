"""HTTP connection managers and TCP proxies of sidecars and gateways, with their HTTP filters in order.

Order: peer metadata (of a sidecar's clients), authentication and authorization, ALPN, fault, CORS, router.
"""

from __future__ import annotations

from meltemi.ir import http_filter as filters
from meltemi.ir.listener import HttpManager, NetworkFilter, PeerFromCertificate, TcpProxy
from meltemi.ir.route import RouteConfig, WeightedCluster
from meltemi.ir.telemetry import Side, StatsKind
from meltemi.ir.value import Origins
from meltemi.model.mesh import MeshConfig
from meltemi.model.service import Resolution
from meltemi.translate.authorization import policy_filters
from meltemi.translate.build import Build
from meltemi.translate.edge import edge_of
from meltemi.translate.proxy_settings import shaped
from meltemi.translate.tcp_tuning import TcpTuning
from meltemi.translate.telemetry import client_logs, server_logs
from meltemi.translate.tracing import tracing_for

_TAIL = (filters.FaultFilter(), filters.CorsFilter(), filters.Router())


def _client_tail(build: Build) -> tuple[filters.HttpFilter, ...]:
    """The last filters towards services; names are resolved per request only where a service asks for it."""
    if build.scope.outbound.mode != "ALLOW_ANY_DYNAMIC_DNS" and not any(
        service.resolution is Resolution.DYNAMIC_DNS for service in build.scope.services
    ):
        return _TAIL
    return (*_TAIL[:-1], filters.ResolveName(), filters.Router())


def _normalization(mesh: MeshConfig) -> tuple[bool, bool, str]:
    """(normalize_path, merge_slashes, escaped slashes) by ``pathNormalization``; BASE unless told otherwise."""
    mode = mesh.path_normalization.normalization
    if mode == "NONE":
        return False, False, ""
    if mode == "MERGE_SLASHES":
        return True, True, ""
    if mode == "DECODE_AND_MERGE_SLASHES":
        return True, True, "UNESCAPE_AND_FORWARD"
    return True, False, ""


def outbound_manager(
    build: Build, stat_prefix: str, rds: str, origins: Origins = ()
) -> HttpManager:
    """A sidecar's HTTP towards services."""
    normalize, merge, escaped = _normalization(build.context.mesh)
    return shaped(
        build,
        HttpManager(
            stat_prefix=stat_prefix,
            filters=(filters.SendPeer(), filters.MeshAlpn(), *_client_tail(build)),
            rds=rds,
            access_logs=client_logs(build, StatsKind.HTTP),
            tracing=tracing_for(build, Side.CLIENT),
            http10=build.proxy.http10,
            normalize_path=normalize,
            merge_slashes=merge,
            escaped_slashes=escaped,
            stream_idle_timeout_s=0.0,
            origins=origins,
        ),
    )


def inbound_manager(
    build: Build, stat_prefix: str, routes: RouteConfig, *, mtls: bool, origins: Origins = ()
) -> HttpManager:
    """A sidecar's HTTP from clients to its workload."""
    normalize, merge, escaped = _normalization(build.context.mesh)
    return shaped(
        build,
        HttpManager(
            stat_prefix=stat_prefix,
            filters=(filters.ReceivePeer(trusted=mtls), *policy_filters(build).http, *_TAIL),
            routes=routes,
            access_logs=server_logs(build, StatsKind.HTTP, mtls=mtls),
            tracing=tracing_for(build, Side.SERVER),
            direction="INBOUND",
            forward_client_cert="APPEND_FORWARD",
            http10=build.proxy.http10,
            normalize_path=normalize,
            merge_slashes=merge,
            escaped_slashes=escaped,
            stream_idle_timeout_s=0.0,
            # The application's own server header is what its callers see (Istio keeps it, too).
            server_header="PASS_THROUGH",
            # Policies compare hosts, and a name with a dot at its end is the same host.
            strip_trailing_host_dot=True,
            origins=origins,
        ),
    )


def gateway_manager(
    build: Build, stat_prefix: str, rds: str, origins: Origins = (), *, grpc_web: bool = False
) -> HttpManager:
    """HTTP from outside. The edge trusts nothing: addresses, client certificates, peer headers."""
    normalize, merge, escaped = _normalization(build.context.mesh)
    edge = edge_of(build)
    return shaped(
        build,
        HttpManager(
            stat_prefix=stat_prefix,
            filters=(
                # Where the route leads out of the mesh nobody else would take off what a sidecar told.
                filters.ReceivePeer(trusted=False),
                *policy_filters(build).http,
                filters.SendPeer(),
                filters.MeshAlpn(),
                *((filters.GrpcWeb(),) if grpc_web else ()),
                *_client_tail(build),
            ),
            rds=rds,
            access_logs=client_logs(build, StatsKind.HTTP),
            tracing=tracing_for(build, Side.CLIENT),
            use_remote_address=True,
            trusted_hops=edge.trusted_hops,
            forward_client_cert=edge.client_cert,
            client_cert_details=("subject", "cert", "dns", "uri"),
            http10=build.proxy.http10,
            normalize_path=normalize,
            merge_slashes=merge,
            escaped_slashes=escaped,
            underscores="REJECT_REQUEST",
            strip_trailing_host_dot=True,
            # Bounds against slow and greedy clients: Envoy's advice for edge proxies.
            idle_timeout_s=3600.0,
            stream_idle_timeout_s=300.0,
            request_headers_timeout_s=60.0,
            max_concurrent_streams=1024,
            # How much of a body one stream, and one connection, may make this proxy hold.
            h2_stream_window=64 * 1024,
            h2_connection_window=1024 * 1024,
            origins=origins,
        ),
    )


def client_tcp(
    build: Build,
    stat_prefix: str,
    clusters: tuple[WeightedCluster, ...],
    origins: Origins = (),
    tuning: TcpTuning | None = None,
) -> TcpProxy:
    """Bytes towards a service. ``tuning`` is what its DestinationRule says about them."""
    rules = tuning or TcpTuning()
    return TcpProxy(
        stat_prefix=stat_prefix,
        clusters=clusters,
        access_logs=client_logs(build, StatsKind.TCP),
        idle_timeout_s=rules.idle_timeout_s,
        max_duration_s=rules.max_duration_s,
        hashes=rules.hashes,
        tunnel_host=rules.tunnel_host,
        tunnel_post=rules.tunnel_post,
        origins=origins,
    )


def server_tcp(
    build: Build,
    stat_prefix: str,
    cluster: str,
    *,
    mtls: bool,
    origins: Origins = (),
    tuning: TcpTuning | None = None,
) -> tuple[NetworkFilter, ...]:
    """Bytes from clients to the workload. With mTLS the peer is read from its certificate first."""
    rules = tuning or TcpTuning()
    proxy = TcpProxy(
        stat_prefix=stat_prefix,
        clusters=(WeightedCluster(cluster),),
        access_logs=server_logs(build, StatsKind.TCP, mtls=mtls),
        after_handshake=mtls,
        idle_timeout_s=rules.idle_timeout_s,
        max_duration_s=rules.max_duration_s,
        origins=origins,
    )
    policy = policy_filters(build).tcp
    return (PeerFromCertificate(), *policy, proxy) if mtls else (*policy, proxy)
