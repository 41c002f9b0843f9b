"""DestinationRule: load balancing, circuit breaking, TLS and subsets of a destination.

In: nothing; these are types (networking.istio.io v1, v1beta1 and v1alpha3). Same promises as ``model.traffic``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from meltemi.model.fields import Duration, Int32, PortNumber, Spec, UInt32
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.traffic import LabelSelector, PortSelector, StringMap, Strings


class HTTPCookie(Spec, frozen=True):
    """A cookie to hash on; made by the proxy when ``ttl`` is set and the request has none."""

    REQUIRED: ClassVar = ("name",)
    name: str = ""
    path: str = ""
    ttl: Duration | None = None
    attributes: tuple[CookieAttribute, ...] = ()


class CookieAttribute(Spec, frozen=True):
    """A further attribute of a generated cookie."""

    REQUIRED: ClassVar = ("name",)
    name: str = ""
    value: str = ""


class RingHash(Spec, frozen=True):
    """Ketama hashing."""

    minimum_ring_size: Annotated[int, Meta(ge=0)] = 0


class Maglev(Spec, frozen=True):
    """Maglev hashing."""

    table_size: Annotated[int, Meta(ge=0)] = 0


class ConsistentHashLB(Spec, frozen=True):
    """Send equal keys to the same endpoint.

    minimum_ring_size: Deprecated; use ringHash.
    """

    ONE_OF: ClassVar = (
        ("http_header_name", "http_cookie", "use_source_ip", "http_query_parameter_name"),
        ("ring_hash", "maglev"),
    )
    http_header_name: str | None = None
    http_cookie: HTTPCookie | None = None
    use_source_ip: bool | None = None
    http_query_parameter_name: str | None = None
    ring_hash: RingHash | None = None
    maglev: Maglev | None = None
    minimum_ring_size: Annotated[int, Meta(ge=0)] = 0


class BackendUtilizationLB(Spec, frozen=True):
    """Weigh endpoints by the load that they report (ORCA); those that say nothing get the average weight.

    weight_stabilization_period: How long reports are not yet trusted; 10s when not set.
    weight_expiration_period: When silence ends an endpoint's own weight; 3m when not set.
    weight_update_period: How often weights are computed; 1s when not set.
    error_utilization_penalty_percent: How much errors count; 100 counts the error rate once.
    metric_names_for_computing_utilization: ORCA metrics that count in place of application_utilization.
    """

    weight_stabilization_period: Duration | None = None
    weight_expiration_period: Duration | None = None
    weight_update_period: Duration | None = None
    error_utilization_penalty_percent: UInt32 = 0
    metric_names_for_computing_utilization: Strings = ()


class LocalityDistribute(Spec, frozen=True):
    """Share of the traffic from one locality to others; ``to`` sums up to 100."""

    from_: str = field(default="", name="from")
    to: Mapping[str, UInt32] = field(default_factory=lambda: EMPTY_MAP)


class LocalityFailover(Spec, frozen=True):
    """Where traffic of one region goes when its endpoints are unhealthy."""

    from_: str = field(default="", name="from")
    to: str = ""


class LocalityLbSetting(Spec, frozen=True):
    """Locality-aware load balancing; needs outlier detection to fail over."""

    ONE_OF: ClassVar = (("distribute", "failover"), ("distribute", "failover_priority"))
    distribute: tuple[LocalityDistribute, ...] = ()
    failover: tuple[LocalityFailover, ...] = ()
    failover_priority: Strings = ()
    enabled: bool | None = None


class ZoneAwareLbSetting(Spec, frozen=True):
    """Zone-aware load balancing."""

    enabled: bool | None = None
    failover: tuple[LocalityFailover, ...] = ()
    failover_priority: Strings = ()
    min_cluster_size: UInt32 | None = None


class WarmupConfiguration(Spec, frozen=True):
    """Ramp up traffic to new endpoints."""

    REQUIRED: ClassVar = ("duration",)
    duration: Duration | None = None
    minimum_percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    aggression: Annotated[float, Meta(ge=1)] | None = None


class LoadBalancerSettings(Spec, frozen=True):
    """How an endpoint is chosen.

    simple: LEAST_REQUEST is the default; LEAST_CONN is its deprecated name.
    warmup_duration_secs: Deprecated; use warmup.
    """

    ONE_OF: ClassVar = (
        ("simple", "consistent_hash", "backend_utilization"),
        ("locality_lb_setting", "zone_aware_lb_setting"),
    )
    simple: (
        Literal[
            "UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"
        ]
        | None
    ) = None
    consistent_hash: ConsistentHashLB | None = None
    backend_utilization: BackendUtilizationLB | None = None
    locality_lb_setting: LocalityLbSetting | None = None
    zone_aware_lb_setting: ZoneAwareLbSetting | None = None
    warmup: WarmupConfiguration | None = None
    warmup_duration_secs: Duration | None = None


class TcpKeepalive(Spec, frozen=True):
    """TCP keepalive; the system's defaults hold for what is not set."""

    probes: UInt32 = 0
    time: Duration | None = None
    interval: Duration | None = None


class TCPSettings(Spec, frozen=True):
    """Connection limits for TCP and HTTP alike."""

    max_connections: Int32 = 0
    connect_timeout: Duration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: Duration | None = None


class Http2KeepAlive(Spec, frozen=True):
    """HTTP/2 PING keepalive to the upstream."""

    interval: Duration | None = None
    timeout: Duration | None = None


class HTTPSettings(Spec, frozen=True):
    """Limits for HTTP connections.

    max_requests_per_connection: 1 turns keep-alive off.
    h2_upgrade_policy: Whether HTTP/1.1 is upgraded to HTTP/2 between proxies.
    """

    http1_max_pending_requests: Int32 = 0
    http2_max_requests: Int32 = 0
    max_requests_per_connection: Int32 = 0
    max_retries: Int32 = 0
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: Int32 = 0
    http2_keep_alive: Http2KeepAlive | None = None


class ConnectionPoolSettings(Spec, frozen=True):
    """Circuit breaking: limits on connections and requests."""

    tcp: TCPSettings | None = None
    http: HTTPSettings | None = None


class OutlierDetection(Spec, frozen=True):
    """Eject endpoints that keep failing.

    consecutive_errors: Deprecated; use consecutive5xxErrors.
    failure_percentage_threshold: Share of failures that ejects, in a row or not.
    """

    consecutive_errors: Int32 = 0
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive_5xx_errors: UInt32 | None = field(default=None, name="consecutive5xxErrors")
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    min_health_percent: Annotated[int, Meta(ge=0, le=100)] = 0
    outlier_detection_http_error_codes: tuple[Annotated[int, Meta(ge=100, le=599)], ...] = ()
    failure_percentage_threshold: Annotated[int, Meta(ge=0, le=100)] | None = None


class ClientTLSSettings(Spec, frozen=True):
    """TLS towards the upstream.

    mode: ISTIO_MUTUAL uses the workload's own certificate.
    credential_name: Secret with tls.key, tls.crt and ca.crt, in the client's namespace. For gateways; for sidecars when
        the rule has a workloadSelector and their service account may list Secrets there.
    ca_cert_credential_name: Secret that holds the authorities instead, in ca.crt.
    """

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    credential_name: str = ""
    subject_alt_names: Strings = ()
    sni: str = ""
    insecure_skip_verify: bool | None = None
    ca_crl: str = ""
    ca_cert_credential_name: str = ""


class PortTrafficPolicy(Spec, frozen=True):
    """Settings of one port; they replace the destination's own, they do not merge."""

    port: PortSelector | None = None
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None


class TunnelSettings(Spec, frozen=True):
    """Tunnel TCP through an HTTP CONNECT or POST proxy."""

    REQUIRED: ClassVar = ("target_host", "target_port")
    protocol: str = ""
    target_host: str = ""
    target_port: PortNumber = 0


class ProxyProtocol(Spec, frozen=True):
    """Send the PROXY protocol upstream."""

    version: Literal["V1", "V2"] = "V1"


class RetryBudget(Spec, frozen=True):
    """Limit concurrent retries to a share of the active requests."""

    percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    min_retry_concurrency: UInt32 = 0
    budget_interval: Duration | None = None


class TrafficPolicy(Spec, frozen=True):
    """Settings of the connections to a destination."""

    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    tunnel: TunnelSettings | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


class Subset(Spec, frozen=True):
    """A named part of a service's endpoints, chosen by labels.

    traffic_policy: Overrides the rule's own, field by field.
    """

    REQUIRED: ClassVar = ("name",)
    name: str = ""
    labels: StringMap = field(default_factory=lambda: EMPTY_MAP)
    traffic_policy: TrafficPolicy | None = None


class DestinationRule(Spec, frozen=True):
    """How traffic to a host is sent, after routing chose it.

    host: A service of the mesh; a short name is a Service of this object's namespace.
    workload_selector: Client workloads that the rule is for; all when not set.
    """

    REQUIRED: ClassVar = ("host",)
    host: str = ""
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: Strings = ()
    workload_selector: LabelSelector | None = None
