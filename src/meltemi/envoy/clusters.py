"""Clusters as Envoy messages. In: one ``ir.cluster.Cluster``. Out: one message, built from a template."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.common.matcher.v3 import matcher_pb2 as match_predicate_pb2
from envoy.config.core.v3 import (
    address_pb2,
    base_pb2,
    config_source_pb2,
    protocol_pb2,
    socket_option_pb2,
)
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.clusters.dynamic_forward_proxy.v3 import cluster_pb2 as forward_cluster_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import wrappers_pb2

from meltemi.envoy.anys import (
    duration,
    maybe_duration,
    pack,
    struct,
    uint32,
)
from meltemi.envoy.dynamic_dns import dns_cache
from meltemi.envoy.endpoints import priority_groups
from meltemi.envoy.header_case import preserved_header_case
from meltemi.envoy.tls import plaintext_socket, upstream_socket, with_proxy_protocol
from meltemi.envoy.wire import field_bytes
from meltemi.ir.cluster import (
    Balancer,
    Balancing,
    Cluster,
    ClusterType,
    HttpOptions,
    HttpVersion,
    Outlier,
    Thresholds,
    Utilization,
)
from meltemi.model.names import MESH_METADATA

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TYPES = {
    kind: cluster_pb2.Cluster.DiscoveryType.Value(kind.value)
    for kind in ClusterType
    if kind is not ClusterType.BY_NAME
}
_POLICIES: dict[Balancing, Any] = {
    kind: cluster_pb2.Cluster.LbPolicy.Value(kind.value)
    for kind in Balancing
    if kind is not Balancing.UTILIZATION  # an extension
}
SOL_SOCKET, SO_MARK = 1, 36


@lru_cache(maxsize=64)
def _template(kind: ClusterType) -> Any:
    """What all clusters of a type share."""
    if kind is ClusterType.BY_NAME:
        return cluster_pb2.Cluster(
            cluster_type=cluster_pb2.Cluster.CustomClusterType(
                name="envoy.clusters.dynamic_forward_proxy",
                typed_config=pack(
                    forward_cluster_pb2.ClusterConfig(
                        dns_cache_config=dns_cache(), allow_insecure_cluster_options=True
                    )
                ),
            )
        )
    made = cluster_pb2.Cluster(type=_TYPES[kind])
    if kind is ClusterType.EDS:
        made.eds_cluster_config.eds_config.CopyFrom(
            config_source_pb2.ConfigSource(
                ads=config_source_pb2.AggregatedConfigSource(),
                resource_api_version=config_source_pb2.V3,
                initial_fetch_timeout=duration(0),
            )
        )
    return made


@lru_cache(maxsize=1024)
def _thresholds(limits: Thresholds) -> Any:
    made = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=uint32(limits.max_connections),
        max_pending_requests=uint32(limits.max_pending_requests),
        max_requests=uint32(limits.max_requests),
        max_retries=uint32(limits.max_retries),
        track_remaining=True,
    )
    if limits.retry_budget_percent is not None or limits.retry_budget_min is not None:
        made.ClearField("max_retries")
        if limits.retry_budget_percent is not None:
            made.retry_budget.budget_percent.value = limits.retry_budget_percent
        if limits.retry_budget_min is not None:
            made.retry_budget.min_retry_concurrency.value = limits.retry_budget_min
        if limits.retry_budget_interval_s is not None:
            # Newer than the installed type: ``budget_interval`` is field 3.
            interval = duration(limits.retry_budget_interval_s).SerializeToString()
            made.retry_budget.MergeFromString(field_bytes(3, interval))
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[made])


def _http2(options: HttpOptions) -> Any:
    made = protocol_pb2.Http2ProtocolOptions(
        max_concurrent_streams=uint32(options.max_concurrent_streams)
    )
    if options.h2_keepalive_interval_s is not None:
        made.connection_keepalive.interval.CopyFrom(duration(options.h2_keepalive_interval_s))
    if options.h2_keepalive_timeout_s is not None:
        made.connection_keepalive.timeout.CopyFrom(duration(options.h2_keepalive_timeout_s))
    return made


def _http1(options: HttpOptions) -> Any:
    made = protocol_pb2.Http1ProtocolOptions()
    if options.preserve_header_case:
        made.header_key_format.CopyFrom(preserved_header_case())
    return made


def _statuses(codes: tuple[int, ...]) -> Any:
    """A response matcher for any of these status codes."""
    rules = [
        match_predicate_pb2.MatchPredicate(
            http_response_headers_match=match_predicate_pb2.HttpHeadersMatch(
                headers=[
                    route_components_pb2.HeaderMatcher(
                        name=":status", string_match=string_pb2.StringMatcher(exact=str(code))
                    )
                ]
            )
        )
        for code in codes
    ]
    if len(rules) == 1:
        return rules[0]
    return match_predicate_pb2.MatchPredicate(
        or_match=match_predicate_pb2.MatchPredicate.MatchSet(rules=rules)
    )


@lru_cache(maxsize=1024)
def _http_options(options: HttpOptions) -> Any:
    """The packed HttpProtocolOptions, or None when nothing is set."""
    if options == HttpOptions():
        return None
    made = http_protocol_options_pb2.HttpProtocolOptions()
    common = made.common_http_protocol_options
    if options.idle_timeout_s is not None:
        common.idle_timeout.CopyFrom(duration(options.idle_timeout_s))
    if options.max_connection_duration_s is not None:
        common.max_connection_duration.CopyFrom(duration(options.max_connection_duration_s))
    if options.max_requests_per_connection is not None:
        common.max_requests_per_connection.value = options.max_requests_per_connection
    if not made.common_http_protocol_options.ListFields():
        made.ClearField("common_http_protocol_options")
    if options.auto_sni:
        made.upstream_http_protocol_options.auto_sni = True
        made.upstream_http_protocol_options.auto_san_validation = options.auto_san
    if options.error_codes:
        made.outlier_detection.error_matcher.CopyFrom(_statuses(options.error_codes))
    if options.version is HttpVersion.HTTP2:
        made.explicit_http_config.http2_protocol_options.CopyFrom(_http2(options))
    elif options.version is HttpVersion.DOWNSTREAM:
        made.use_downstream_protocol_config.http_protocol_options.CopyFrom(_http1(options))
        made.use_downstream_protocol_config.http2_protocol_options.CopyFrom(_http2(options))
    elif options.version is HttpVersion.AUTO:
        made.auto_config.http2_protocol_options.CopyFrom(_http2(options))
    else:
        made.explicit_http_config.http_protocol_options.CopyFrom(_http1(options))
    return pack(made)


@lru_cache(maxsize=1024)
def _outlier(rule: Outlier) -> Any:
    made = outlier_detection_pb2.OutlierDetection(
        consecutive_5xx=uint32(rule.consecutive_5xx),
        interval=maybe_duration(rule.interval_s),
        base_ejection_time=maybe_duration(rule.base_ejection_s),
        max_ejection_percent=uint32(rule.max_ejection_percent),
        enforcing_success_rate=uint32(0),
        split_external_local_origin_errors=rule.split_local_origin,
    )
    made.enforcing_consecutive_5xx.value = 100 if (rule.consecutive_5xx or 0) > 0 else 0
    if rule.consecutive_gateway is not None:
        made.consecutive_gateway_failure.value = rule.consecutive_gateway
        made.enforcing_consecutive_gateway_failure.value = 100 if rule.consecutive_gateway else 0
    if rule.consecutive_local_origin is not None:
        made.consecutive_local_origin_failure.value = rule.consecutive_local_origin
        made.enforcing_consecutive_local_origin_failure.value = (
            100 if rule.consecutive_local_origin else 0
        )
    if rule.failure_percent is not None:
        made.failure_percentage_threshold.value = rule.failure_percent
        made.enforcing_failure_percentage.value = 100
    if rule.split_local_origin:
        made.enforcing_local_origin_success_rate.value = 0
    return made


@lru_cache(maxsize=64)
def _utilization(settings: Utilization) -> Any:
    """Envoy's client-side weighted round robin; its own defaults hold for what is not set."""
    from envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3 import (
        client_side_weighted_round_robin_pb2 as weighted,
    )

    made = weighted.ClientSideWeightedRoundRobin(
        blackout_period=maybe_duration(settings.blackout_s),
        weight_expiration_period=maybe_duration(settings.expiration_s),
        weight_update_period=maybe_duration(settings.update_s),
        metric_names_for_computing_utilization=settings.metrics,
    )
    if settings.error_penalty is not None:
        made.error_utilization_penalty.value = settings.error_penalty
    policy = cluster_pb2.LoadBalancingPolicy()
    entry = policy.policies.add().typed_extension_config
    entry.name = "envoy.load_balancing_policies.client_side_weighted_round_robin"
    entry.typed_config.CopyFrom(pack(made))
    return policy


def _balancing(made: Any, balancer: Balancer) -> None:
    if balancer.utilization is not None:
        made.load_balancing_policy.CopyFrom(_utilization(balancer.utilization))
    else:
        made.lb_policy = _POLICIES[balancer.policy]
    common = made.common_lb_config
    if balancer.locality_weighted:
        common.locality_weighted_lb_config.SetInParent()
    elif balancer.zones is not None:
        zones = common.zone_aware_lb_config
        zones.routing_enabled.value = 100 if balancer.zones.enabled else 0
        if balancer.zones.min_cluster_size is not None:
            zones.min_cluster_size.value = balancer.zones.min_cluster_size
    if balancer.panic_threshold is not None and balancer.policy is not Balancing.CLUSTER_PROVIDED:
        common.healthy_panic_threshold.value = balancer.panic_threshold
    if balancer.policy is Balancing.RING_HASH and balancer.min_ring_size is not None:
        made.ring_hash_lb_config.minimum_ring_size.value = balancer.min_ring_size
    if balancer.policy is Balancing.MAGLEV and balancer.table_size is not None:
        made.maglev_lb_config.table_size.value = balancer.table_size
    if balancer.warmup_s is None:
        return
    if balancer.policy is Balancing.LEAST_REQUEST:
        slow = made.least_request_lb_config.slow_start_config
    elif balancer.policy is Balancing.ROUND_ROBIN:
        slow = made.round_robin_lb_config.slow_start_config
    else:
        return
    slow.slow_start_window.CopyFrom(duration(balancer.warmup_s))
    if balancer.warmup_aggression is not None:
        slow.aggression.default_value = balancer.warmup_aggression
        slow.aggression.runtime_key = "meltemi.warmup.aggression"
    if balancer.warmup_min_percent is not None:
        slow.min_weight_percent.CopyFrom(percent_pb2.Percent(value=balancer.warmup_min_percent))


def _sockets(made: Any, cluster: Cluster) -> None:
    """Transport sockets. Auto mTLS is chosen per endpoint by its ``tlsMode`` metadata."""

    def wrap(inner: Any) -> Any:
        return (
            with_proxy_protocol(inner, cluster.proxy_protocol) if cluster.proxy_protocol else inner
        )

    if cluster.auto_tls is not None:
        secure = made.transport_socket_matches.add(
            name="tlsMode-istio", transport_socket=wrap(upstream_socket(cluster.auto_tls))
        )
        secure.match.update({"tlsMode": "istio"})
        plain = made.transport_socket_matches.add(
            name="tlsMode-disabled", transport_socket=wrap(plaintext_socket())
        )
        plain.match.SetInParent()
    elif cluster.tls is not None:
        made.transport_socket.CopyFrom(wrap(upstream_socket(cluster.tls)))
    elif cluster.proxy_protocol:
        made.transport_socket.CopyFrom(wrap(plaintext_socket()))


def _bind(made: Any, cluster: Cluster) -> None:
    if not cluster.bind_address:
        return
    made.upstream_bind_config.source_address.CopyFrom(
        address_pb2.SocketAddress(address=cluster.bind_address, port_value=0)
    )
    if cluster.socket_mark:
        made.upstream_bind_config.socket_options.append(
            socket_option_pb2.SocketOption(
                description="mark",
                level=SOL_SOCKET,
                name=SO_MARK,
                int_value=cluster.socket_mark,
                state=socket_option_pb2.SocketOption.STATE_PREBIND,
            )
        )


def _metadata(made: Any, cluster: Cluster) -> None:
    fields = made.metadata.filter_metadata
    if cluster.service is not None:
        host, name, namespace = cluster.service
        fields[MESH_METADATA].update(
            {"service": host, "service_name": name, "service_namespace": namespace}
        )
        istio: dict[str, Any] = {"services": [{"host": host, "name": name, "namespace": namespace}]}
        if cluster.rule:
            istio["config"] = cluster.rule
        fields["istio"].update(istio)
    elif cluster.rule:
        fields["istio"].CopyFrom(struct({"config": cluster.rule}))


def _inline_endpoints(cluster: Cluster) -> Any:
    """The load assignment of a STATIC or DNS cluster."""
    made = endpoint_pb2.ClusterLoadAssignment(cluster_name=cluster.name)
    for (priority, locality, weight), group in priority_groups(cluster.endpoints):
        region, zone, sub = ([*locality.split("/"), "", "", ""])[:3]
        entry = made.endpoints.add(priority=priority)
        if locality:
            entry.locality.CopyFrom(base_pb2.Locality(region=region, zone=zone, sub_zone=sub))
        if weight:
            entry.load_balancing_weight.value = weight
        for endpoint in group:
            if endpoint.path:
                address = address_pb2.Address(pipe=address_pb2.Pipe(path=endpoint.path))
            else:
                address = address_pb2.Address(
                    socket_address=address_pb2.SocketAddress(
                        address=endpoint.address, port_value=endpoint.port
                    )
                )
            member = entry.lb_endpoints.add(
                endpoint=endpoint_components_pb2.Endpoint(address=address),
                load_balancing_weight=wrappers_pb2.UInt32Value(value=endpoint.weight),
            )
            if endpoint.mesh:
                member.metadata.filter_metadata[MESH_METADATA].update(dict(endpoint.mesh))
            if endpoint.tls_mode == "istio":
                member.metadata.filter_metadata["envoy.transport_socket_match"].update(
                    {"tlsMode": "istio"}
                )
    return made


def build_cluster(cluster: Cluster) -> Any:
    """The Envoy message of one cluster."""
    made = cluster_pb2.Cluster()
    made.CopyFrom(_template(cluster.type))
    made.name = cluster.name
    made.alt_stat_name = cluster.stat_name
    made.connect_timeout.CopyFrom(duration(cluster.connect_timeout_s))
    if cluster.type is ClusterType.EDS:
        made.eds_cluster_config.service_name = cluster.name
    elif cluster.type is not ClusterType.ORIGINAL_DST and cluster.endpoints:
        made.load_assignment.CopyFrom(_inline_endpoints(cluster))
    if cluster.type in (ClusterType.STRICT_DNS, ClusterType.LOGICAL_DNS):
        made.dns_lookup_family = cluster_pb2.Cluster.DnsLookupFamily.Value(cluster.dns_family)
        made.respect_dns_ttl = cluster.respect_dns_ttl
        if cluster.dns_refresh_s is not None:
            made.dns_refresh_rate.CopyFrom(duration(cluster.dns_refresh_s))
    if cluster.buffer_limit is not None:
        made.per_connection_buffer_limit_bytes.value = cluster.buffer_limit
    if cluster.original_dst_header:
        made.original_dst_lb_config.use_http_header = True
        made.original_dst_lb_config.http_header_name = cluster.original_dst_header
    if cluster.original_dst_port:
        made.original_dst_lb_config.upstream_port_override.value = cluster.original_dst_port
    made.circuit_breakers.CopyFrom(_thresholds(cluster.thresholds))
    _balancing(made, cluster.balancer)
    if cluster.outlier is not None:
        made.outlier_detection.CopyFrom(_outlier(cluster.outlier))
        if cluster.outlier.min_health_percent is not None:
            made.common_lb_config.healthy_panic_threshold.value = cluster.outlier.min_health_percent
    if (http := _http_options(cluster.http)) is not None:
        made.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(http)
    if cluster.tcp_idle_timeout_s is not None:
        _tcp_idle(made, cluster.tcp_idle_timeout_s)
    if cluster.keepalive is not None:
        keep = made.upstream_connection_options.tcp_keepalive
        keep.SetInParent()
        for name, amount in (
            ("keepalive_probes", cluster.keepalive.probes),
            ("keepalive_time", cluster.keepalive.time_s),
            ("keepalive_interval", cluster.keepalive.interval_s),
        ):
            if amount is not None:
                getattr(keep, name).value = amount
    _sockets(made, cluster)
    _bind(made, cluster)
    _metadata(made, cluster)
    return made


def _tcp_idle(made: Any, seconds: float) -> None:
    from envoy.extensions.upstreams.tcp.v3 import tcp_protocol_options_pb2

    made.typed_extension_protocol_options[
        "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions"
    ].CopyFrom(pack(tcp_protocol_options_pb2.TcpProtocolOptions(idle_timeout=duration(seconds))))
