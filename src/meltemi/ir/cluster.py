"""Clusters: a destination, how its endpoints are found, and how connections to them behave.

Durations are seconds. ``None`` means that the field is left to Envoy's own default.
"""

from __future__ import annotations

import enum

from meltemi.ir.tls import UpstreamTls
from meltemi.ir.value import Origins, Pairs, origins_field, value


class ClusterType(enum.Enum):
    """Envoy's discovery type."""

    EDS = "EDS"
    STATIC = "STATIC"
    STRICT_DNS = "STRICT_DNS"
    LOGICAL_DNS = "LOGICAL_DNS"
    ORIGINAL_DST = "ORIGINAL_DST"
    BY_NAME = "BY_NAME"  # each request is resolved by the name it asks for (dynamic forward proxy)


class HttpVersion(enum.Enum):
    """What a cluster speaks to its endpoints."""

    NONE = "none"  # no HTTP options at all: HTTP/1.1 if HTTP, or plain TCP
    HTTP1 = "http1"
    HTTP2 = "http2"
    DOWNSTREAM = "downstream"  # as the client spoke to us
    AUTO = "auto"  # by ALPN


@value
class Thresholds:
    """Circuit breaker limits; Istio's default is no limit."""

    max_connections: int = 2**32 - 1
    max_pending_requests: int = 2**32 - 1
    max_requests: int = 2**32 - 1
    max_retries: int = 2**32 - 1
    retry_budget_percent: float | None = None
    retry_budget_min: int | None = None
    retry_budget_interval_s: float | None = None


@value
class Keepalive:
    """TCP keepalive, in Envoy's units."""

    probes: int | None = None
    time_s: int | None = None
    interval_s: int | None = None


@value
class HttpOptions:
    """How HTTP is spoken to endpoints."""

    version: HttpVersion = HttpVersion.NONE
    max_requests_per_connection: int | None = None
    idle_timeout_s: float | None = None
    max_connection_duration_s: float | None = None
    max_concurrent_streams: int | None = None
    h2_keepalive_interval_s: float | None = None
    h2_keepalive_timeout_s: float | None = None
    auto_sni: bool = False  # SNI from the request's host
    auto_san: bool = False  # and the certificate must be for it
    preserve_header_case: bool = False  # of HTTP/1.1
    error_codes: tuple[int, ...] = ()  # statuses that outlier detection counts; empty: 5xx


@value
class Outlier:
    """Outlier detection. Percentages are whole numbers."""

    consecutive_5xx: int | None = None
    consecutive_gateway: int | None = None
    consecutive_local_origin: int | None = None
    split_local_origin: bool = False
    interval_s: float | None = None
    base_ejection_s: float | None = None
    max_ejection_percent: int | None = None
    min_health_percent: int | None = None
    failure_percent: int | None = None


class Balancing(enum.Enum):
    """The load balancing policy."""

    LEAST_REQUEST = "LEAST_REQUEST"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    RING_HASH = "RING_HASH"
    MAGLEV = "MAGLEV"
    UTILIZATION = "UTILIZATION"  # by the load that endpoints report
    CLUSTER_PROVIDED = "CLUSTER_PROVIDED"


@value
class Utilization:
    """How reported load becomes weight; ``error_penalty`` is a factor of the error rate."""

    blackout_s: float | None = None
    expiration_s: float | None = None
    update_s: float | None = None
    error_penalty: float | None = None
    metrics: tuple[str, ...] = ()


@value
class ZoneRouting:
    """Envoy's zone-aware routing: as much as possible stays in the caller's zone, spread as its own service is.

    Envoy does it unasked where a proxy knows its own service, so that ``enabled`` False is said, too.
    """

    enabled: bool = True
    min_cluster_size: int | None = None


@value
class Balancer:
    """The policy and its settings. ``warmup_s`` is slow start; ``locality_weighted`` needs locality weights."""

    policy: Balancing = Balancing.LEAST_REQUEST
    min_ring_size: int | None = None
    table_size: int | None = None
    warmup_s: float | None = None
    warmup_aggression: float | None = None
    warmup_min_percent: float | None = None
    locality_weighted: bool = False
    zones: ZoneRouting | None = None  # never together with locality_weighted
    panic_threshold: float | None = 0.0
    override_host: bool = False
    utilization: Utilization | None = None


@value
class StaticEndpoint:
    """An endpoint that is part of its cluster (STATIC and DNS types). ``path`` is a Unix socket."""

    address: str
    port: int
    path: str = ""
    weight: int = 1
    priority: int = 0
    locality: str = ""
    locality_weight: int = 0
    mesh: Pairs = ()
    tls_mode: str = "disabled"


@value
class Cluster:
    """One destination.

    ``tls`` applies to every endpoint; ``auto_tls`` only to endpoints that say ``tlsMode: istio``, the others
    get plaintext (or ``tls``). ``service`` is (host, name, namespace) for telemetry.
    """

    name: str
    type: ClusterType
    stat_name: str = ""  # in statistics, in place of the name
    connect_timeout_s: float = 10.0
    balancer: Balancer = Balancer()
    thresholds: Thresholds = Thresholds()
    http: HttpOptions = HttpOptions()
    outlier: Outlier | None = None
    keepalive: Keepalive | None = None
    tls: UpstreamTls | None = None
    auto_tls: UpstreamTls | None = None
    endpoints: tuple[StaticEndpoint, ...] = ()
    dns_family: str = "V4_ONLY"
    dns_refresh_s: float | None = None
    respect_dns_ttl: bool = True
    bind_address: str = ""
    socket_mark: int = 0
    tcp_idle_timeout_s: float | None = None
    proxy_protocol: int = 0  # 1 or 2: send a PROXY header
    buffer_limit: int | None = None  # bytes per connection
    original_dst_header: str = ""
    original_dst_port: int = 0  # instead of the port that was called
    service: tuple[str, str, str] | None = None
    rule: str = ""  # API path of the DestinationRule that shaped it
    external: bool = False
    origins: Origins = origins_field()
