"""Connection pool, load balancer and outlier detection of a cluster, from a traffic policy."""

from __future__ import annotations

from meltemi.ir.cluster import (
    Balancer,
    Balancing,
    ClusterType,
    HttpOptions,
    HttpVersion,
    Keepalive,
    Outlier,
    Thresholds,
    Utilization,
    ZoneRouting,
)
from meltemi.ir.endpoint import LocalityPolicy
from meltemi.ir.route import HashPolicy
from meltemi.model.destination_rule import (
    BackendUtilizationLB,
    ConsistentHashLB,
    LocalityLbSetting,
    OutlierDetection,
    TcpKeepalive,
    TrafficPolicy,
    ZoneAwareLbSetting,
)
from meltemi.model.mesh import MeshConfig
from meltemi.model.service import PREFER_SAME_NODE, PREFER_SAME_ZONE, Port, Protocol, Service
from meltemi.push.classes import ProxyClass
from meltemi.translate.rules import balancer_of, pool_of

_SIMPLE = {
    "ROUND_ROBIN": Balancing.ROUND_ROBIN,
    "RANDOM": Balancing.RANDOM,
    "LEAST_REQUEST": Balancing.LEAST_REQUEST,
    "LEAST_CONN": Balancing.LEAST_REQUEST,
    "PASSTHROUGH": Balancing.CLUSTER_PROVIDED,
}
_MIN_RING = 1024  # Istio's default; Envoy's own is the same


def thresholds(policy: TrafficPolicy) -> Thresholds:
    """Circuit breaker limits; what is not set is unlimited."""
    tcp, http = pool_of(policy)
    none = Thresholds()
    budget = policy.retry_budget
    return Thresholds(
        max_connections=tcp.max_connections or none.max_connections,
        max_pending_requests=http.http1_max_pending_requests or none.max_pending_requests,
        max_requests=http.http2_max_requests or none.max_requests,
        max_retries=http.max_retries or none.max_retries,
        retry_budget_percent=budget.percent if budget is not None else None,
        retry_budget_min=budget.min_retry_concurrency or None if budget is not None else None,
        retry_budget_interval_s=budget.budget_interval if budget is not None else None,
    )


def keepalive(policy: TrafficPolicy, mesh: MeshConfig) -> Keepalive | None:
    """TCP keepalive from the rule, else from the mesh."""
    chosen: TcpKeepalive | None = pool_of(policy)[0].tcp_keepalive or mesh.tcp_keepalive
    if chosen is None:
        return None
    return Keepalive(
        probes=chosen.probes or None,
        time_s=round(chosen.time) if chosen.time is not None else None,
        interval_s=round(chosen.interval) if chosen.interval is not None else None,
    )


def http_version(policy: TrafficPolicy, mesh: MeshConfig, port: Port) -> HttpVersion:
    """What the cluster speaks: the port's protocol, the client's own, or HTTP/2 when upgrades are on."""
    http = pool_of(policy)[1]
    if http.use_client_protocol:
        return HttpVersion.DOWNSTREAM
    if port.protocol.is_http2:
        return HttpVersion.HTTP2
    upgrade = http.h2_upgrade_policy == "UPGRADE" or (
        http.h2_upgrade_policy == "DEFAULT" and mesh.h2_upgrade_policy == "UPGRADE"
    )
    if upgrade and (port.protocol is Protocol.HTTP or port.protocol.is_unknown):
        return HttpVersion.HTTP2
    if port.protocol.is_unknown:
        return HttpVersion.DOWNSTREAM
    return HttpVersion.NONE


def http_options(policy: TrafficPolicy, mesh: MeshConfig, port: Port) -> HttpOptions:
    """HTTP towards the endpoints."""
    tcp, http = pool_of(policy)
    pings = http.http2_keep_alive
    return HttpOptions(
        version=http_version(policy, mesh, port),
        max_requests_per_connection=http.max_requests_per_connection or None,
        idle_timeout_s=http.idle_timeout,
        max_connection_duration_s=tcp.max_connection_duration,
        max_concurrent_streams=http.max_concurrent_streams or None,
        h2_keepalive_interval_s=pings.interval if pings is not None else None,
        h2_keepalive_timeout_s=pings.timeout if pings is not None else None,
        error_codes=policy.outlier_detection.outlier_detection_http_error_codes
        if policy.outlier_detection is not None
        else (),
    )


def outlier(rule: OutlierDetection | None) -> Outlier | None:
    """Outlier detection. Istio reads a gateway error count of 0 as off, and 5xx as off unless it is given."""
    if rule is None:
        return None
    gateway = rule.consecutive_gateway_errors
    five = rule.consecutive_5xx_errors
    if five is None and rule.consecutive_errors:
        five = rule.consecutive_errors
    return Outlier(
        # Istio's default of five applies when neither count is given.
        consecutive_5xx=5 if five is None and not gateway else five,
        consecutive_gateway=gateway,
        consecutive_local_origin=rule.consecutive_local_origin_failures,
        split_local_origin=rule.split_external_local_origin_errors,
        interval_s=rule.interval,
        base_ejection_s=rule.base_ejection_time,
        max_ejection_percent=rule.max_ejection_percent or None,
        min_health_percent=rule.min_health_percent or None,
        failure_percent=rule.failure_percentage_threshold,
    )


def zone_setting(policy: TrafficPolicy, mesh: MeshConfig) -> ZoneAwareLbSetting | None:
    """The zone-aware settings that hold, or None. A rule's locality settings win over the mesh's zone-aware ones."""
    own = balancer_of(policy)
    chosen = own.zone_aware_lb_setting
    if chosen is None and own.locality_lb_setting is None:
        chosen = mesh.zone_aware_lb_setting
    return chosen if chosen is not None and chosen.enabled is not False else None


def locality_setting(policy: TrafficPolicy, mesh: MeshConfig) -> LocalityLbSetting | None:
    """The locality settings that hold, or None when they are off, as where zone-aware ones hold."""
    if zone_setting(policy, mesh) is not None:
        return None
    own = balancer_of(policy).locality_lb_setting
    chosen = own if own is not None else mesh.locality_lb_setting
    if chosen is None or chosen.enabled is False:
        return None
    return chosen


def _zones(policy: TrafficPolicy, mesh: MeshConfig, proxy: ProxyClass) -> ZoneRouting | None:
    """Zone-aware routing; off must be said to proxies that would do it unasked."""
    setting = zone_setting(policy, mesh)
    if setting is None:
        return ZoneRouting(enabled=False) if proxy.own_pods is not None else None
    return ZoneRouting(min_cluster_size=setting.min_cluster_size)


def balancer(
    policy: TrafficPolicy, mesh: MeshConfig, kind: ClusterType, proxy: ProxyClass
) -> Balancer:
    """How an endpoint is chosen."""
    settings = balancer_of(policy)
    if kind in (ClusterType.ORIGINAL_DST, ClusterType.BY_NAME):
        return Balancer(policy=Balancing.CLUSTER_PROVIDED)
    weighted = locality_setting(policy, mesh) is not None
    if settings.consistent_hash is not None:
        return _hashing(settings.consistent_hash, weighted)
    if settings.backend_utilization is not None:
        return _by_utilization(settings.backend_utilization)
    warm = settings.warmup
    return Balancer(
        policy=_SIMPLE.get(settings.simple or "", Balancing.LEAST_REQUEST),
        warmup_s=warm.duration if warm is not None else settings.warmup_duration_secs,
        warmup_aggression=warm.aggression if warm is not None else None,
        warmup_min_percent=warm.minimum_percent if warm is not None else None,
        locality_weighted=weighted,
        zones=None if weighted else _zones(policy, mesh, proxy),
    )


def _by_utilization(settings: BackendUtilizationLB) -> Balancer:
    """Weights come from the endpoints' own reports, so localities get none."""
    penalty = settings.error_utilization_penalty_percent
    return Balancer(
        policy=Balancing.UTILIZATION,
        utilization=Utilization(
            blackout_s=settings.weight_stabilization_period,
            expiration_s=settings.weight_expiration_period,
            update_s=settings.weight_update_period,
            error_penalty=penalty / 100 if penalty else None,
            metrics=settings.metric_names_for_computing_utilization,
        ),
    )


def _hashing(settings: ConsistentHashLB, weighted: bool) -> Balancer:
    if settings.maglev is not None:
        return Balancer(
            policy=Balancing.MAGLEV,
            table_size=settings.maglev.table_size or None,
            locality_weighted=weighted,
        )
    ring = settings.ring_hash.minimum_ring_size if settings.ring_hash is not None else 0
    return Balancer(
        policy=Balancing.RING_HASH,
        min_ring_size=ring or settings.minimum_ring_size or _MIN_RING,
        locality_weighted=weighted,
    )


def hash_policy(policy: TrafficPolicy) -> HashPolicy | None:
    """What routes to the cluster must hash on, if it balances by hash."""
    settings = balancer_of(policy).consistent_hash
    if settings is None:
        return None
    if settings.http_header_name:
        return HashPolicy("header", settings.http_header_name)
    if settings.http_cookie is not None:
        cookie = settings.http_cookie
        return HashPolicy(
            "cookie",
            cookie.name,
            path=cookie.path,
            ttl_s=cookie.ttl,
            attributes=tuple((entry.name, entry.value) for entry in cookie.attributes),
        )
    if settings.use_source_ip:
        return HashPolicy("source_ip")
    if settings.http_query_parameter_name:
        return HashPolicy("query", settings.http_query_parameter_name)
    return None


def _distribution_of(
    policy: TrafficPolicy, service: Service, proxy: ProxyClass
) -> LocalityPolicy | None:
    """What the Service's trafficDistribution asks for; a DestinationRule's own locality settings win."""
    own = balancer_of(policy)
    if own.locality_lb_setting is not None or own.zone_aware_lb_setting is not None:
        return None
    if service.traffic_distribution == PREFER_SAME_NODE:
        return LocalityPolicy(enabled=True, node=proxy.node)
    if service.traffic_distribution in PREFER_SAME_ZONE:
        return LocalityPolicy(enabled=True)
    return None


def locality_policy(
    policy: TrafficPolicy, mesh: MeshConfig, proxy: ProxyClass, service: Service
) -> LocalityPolicy:
    """The ranking of endpoints. Failover needs outlier detection; distribution does not."""
    asked = _distribution_of(policy, service, proxy)
    if asked is not None:
        return asked
    zones = zone_setting(policy, mesh)
    if zones is not None:
        return LocalityPolicy(
            enabled=True,
            by_region=True,
            failover=tuple((entry.from_, entry.to) for entry in zones.failover),
            priority_labels=tuple(_priority(entry, proxy) for entry in zones.failover_priority),
        )
    setting = locality_setting(policy, mesh)
    if setting is None:
        return LocalityPolicy()
    distribute: tuple[tuple[str, int], ...] = ()
    for entry in setting.distribute:
        prefix = entry.from_.rstrip("*").rstrip("/")
        if not prefix or proxy.locality == prefix or proxy.locality.startswith(prefix + "/"):
            distribute = tuple(sorted(entry.to.items()))
            break
    if distribute:
        return LocalityPolicy(enabled=True, distribute=distribute)
    if policy.outlier_detection is None:
        return LocalityPolicy()
    return LocalityPolicy(
        enabled=True,
        failover=tuple((entry.from_, entry.to) for entry in setting.failover),
        priority_labels=tuple(_priority(entry, proxy) for entry in setting.failover_priority),
    )


def _priority(entry: str, proxy: ProxyClass) -> tuple[str, str]:
    """A label to compare, with the value to compare to: ``label=value`` or the proxy's own."""
    name, given, value = entry.partition("=")
    return (name, value) if given else (name, dict(proxy.label_values).get(name, ""))
