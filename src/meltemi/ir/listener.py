"""Listeners: which connection goes to which filter chain, and what the chain does."""

from __future__ import annotations

from meltemi.ir.authorization import ExtAuthz, Rbac
from meltemi.ir.http_filter import HttpFilter
from meltemi.ir.route import HashPolicy, RouteConfig, WeightedCluster
from meltemi.ir.telemetry import AccessLog, Tracing
from meltemi.ir.tls import DownstreamTls
from meltemi.ir.value import Origins, origins_field, value


@value
class ChainMatch:
    """Which connections a chain takes; empty fields do not restrict. ``prefixes`` are CIDRs of the destination."""

    destination_port: int = 0
    prefixes: tuple[str, ...] = ()
    source_prefixes: tuple[str, ...] = ()
    server_names: tuple[str, ...] = ()
    transport_protocol: str = ""
    application_protocols: tuple[str, ...] = ()


@value
class HttpManager:
    """An HTTP connection manager. Routes come by name (``rds``) or inline (``routes``)."""

    stat_prefix: str
    filters: tuple[HttpFilter, ...]
    rds: str = ""
    routes: RouteConfig | None = None
    access_logs: tuple[AccessLog, ...] = ()
    direction: str = "OUTBOUND"
    use_remote_address: bool = False
    trusted_hops: int = 0
    forward_client_cert: str = (
        ""  # SANITIZE | APPEND_FORWARD | SANITIZE_SET | FORWARD_ONLY | ALWAYS_FORWARD_ONLY
    )
    server_name: str = "istio-envoy"
    server_header: str = ""  # '' overwrites; APPEND_IF_ABSENT or PASS_THROUGH
    normalize_path: bool = False
    merge_slashes: bool = False
    escaped_slashes: str = ""  # UNESCAPE_AND_FORWARD for DECODE_AND_MERGE_SLASHES
    underscores: str = ""  # '' allows; REJECT_REQUEST or DROP_HEADER
    strip_trailing_host_dot: bool = False
    strip_host_port: bool = False
    http10: bool = False
    idle_timeout_s: float | None = None
    stream_idle_timeout_s: float | None = None
    request_headers_timeout_s: float | None = None
    max_concurrent_streams: int | None = None
    preserve_request_id: bool = False
    websocket: bool = True
    # What is told of the client's certificate; cert and chain are the others.
    client_cert_details: tuple[str, ...] = ("subject", "dns", "uri")
    generate_request_id: bool = True
    preserve_header_case: bool = False  # of HTTP/1.1
    append_forwarded_port: bool = False
    max_connection_duration_s: float | None = None
    max_stream_duration_s: float | None = None
    request_timeout_s: float | None = None
    drain_timeout_s: float | None = None
    h2_stream_window: int | None = None
    h2_connection_window: int | None = None
    tracing: Tracing | None = None
    origins: Origins = origins_field()


@value
class TcpProxy:
    """Byte-level proxying. ``after_handshake`` connects upstream only when the client is known."""

    stat_prefix: str
    clusters: tuple[WeightedCluster, ...]
    access_logs: tuple[AccessLog, ...] = ()
    idle_timeout_s: float | None = None
    after_handshake: bool = False
    hashes: tuple[HashPolicy, ...] = ()
    max_duration_s: float | None = None
    tunnel_host: str = ""  # host:port that an HTTP proxy (the cluster) is asked to connect to
    tunnel_post: bool = False  # by POST instead of CONNECT
    origins: Origins = origins_field()


@value
class PeerFromCertificate:
    """Names the source namespace and account of a TCP connection from its certificate."""


@value
class SniCluster:
    """Routes to the cluster that the SNI names (east-west gateways)."""


@value
class MongoStats:
    """Counts what MongoDB clients ask for; other bytes pass."""

    stat_prefix: str


@value
class ResolveSni:
    """Resolves the SNI for the cluster of type BY_NAME that follows, which connects to ``port`` of it."""

    port: int


NetworkFilter = (
    HttpManager
    | TcpProxy
    | PeerFromCertificate
    | SniCluster
    | MongoStats
    | ResolveSni
    | Rbac
    | ExtAuthz
)


@value
class FilterChain:
    """A chain of network filters, behind TLS when ``tls`` is set."""

    name: str
    match: ChainMatch
    filters: tuple[NetworkFilter, ...]
    tls: DownstreamTls | None = None
    handshake_timeout_s: float | None = None
    origins: Origins = origins_field()


@value
class Inspection:
    """Listener filters. ``*_skip_ports`` are ports on which an inspector must not wait for bytes."""

    original_dst: bool = False
    proxy_protocol: bool = False
    tls: bool = False
    tls_skip_ports: tuple[int, ...] = ()
    http: bool = False
    http_skip_ports: tuple[int, ...] = ()
    timeout_s: float | None = None


@value
class Listener:
    """One listener. ``pod_only`` marks the overlay of a single pod (headless services)."""

    name: str
    address: str
    port: int
    chains: tuple[FilterChain, ...]
    default_chain: FilterChain | None = None
    direction: str = "OUTBOUND"
    bind_to_port: bool = False
    use_original_dst: bool = False
    inspection: Inspection = Inspection()
    access_logs: tuple[AccessLog, ...] = ()
    extra_addresses: tuple[str, ...] = ()
    buffer_limit: int | None = None  # bytes per connection
    pod_only: str = ""  # the pod address for which this listener must be left out
    origins: Origins = origins_field()
