"""Route tables as Envoy messages. In: ``ir.route`` values. Out: messages, or bytes cached per virtual host."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.core.v3 import base_pb2, extension_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.common.fault.v3 import fault_pb2 as common_fault_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.retry.priority.previous_priorities.v3 import previous_priorities_config_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import any_pb2

from meltemi.envoy.anys import boolean, duration, maybe_duration, pack, uint32
from meltemi.envoy.metadata import metadata_matcher
from meltemi.envoy.wire import field_bytes
from meltemi.ir.jwt import JWT_FILTER, PAYLOAD
from meltemi.ir.route import (
    Cors,
    DirectResponse,
    Fault,
    Forward,
    HashPolicy,
    HeaderMatch,
    HeaderOps,
    Redirect,
    RetryPolicy,
    Route,
    RouteConfig,
    RouteMatch,
    StringMatch,
    VirtualHost,
    WeightedCluster,
)
from meltemi.ir.value import per_value

FAULT = "envoy.filters.http.fault"
CORS = "envoy.filters.http.cors"
PEER = "envoy.filters.http.header_mutation"
ALPN = "envoy.filters.http.set_filter_state"
_APPEND = base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_REDIRECTS = {
    301: route_components_pb2.RedirectAction.MOVED_PERMANENTLY,
    302: route_components_pb2.RedirectAction.FOUND,
    303: route_components_pb2.RedirectAction.SEE_OTHER,
    307: route_components_pb2.RedirectAction.TEMPORARY_REDIRECT,
    308: route_components_pb2.RedirectAction.PERMANENT_REDIRECT,
}


def regex(pattern: str) -> Any:
    """An RE2 matcher."""
    return regex_pb2.RegexMatcher(regex=pattern)


def string_matcher(match: StringMatch) -> Any:
    """A StringMatcher. 'present' has none: callers handle it."""
    if match.kind == "regex":
        return string_pb2.StringMatcher(safe_regex=regex(match.value))
    return string_pb2.StringMatcher(**{match.kind: match.value}, ignore_case=match.ignore_case)


def text_matcher(match: StringMatch) -> Any:
    """A StringMatcher where presence is any text but the empty one."""
    if match.kind == "present":
        return string_pb2.StringMatcher(safe_regex=regex("(?s).+"))
    return string_matcher(match)


def _header(match: HeaderMatch) -> Any:
    made = route_components_pb2.HeaderMatcher(
        name=match.name,
        invert_match=match.invert,
        treat_missing_header_as_empty=match.missing_is_empty,
    )
    if match.match.kind == "present":
        made.present_match = True
    else:
        made.string_match.CopyFrom(string_matcher(match.match))
    return made


def _query(name: str, match: StringMatch) -> Any:
    made = route_components_pb2.QueryParameterMatcher(name=name)
    if match.kind == "present":
        made.present_match = True
    else:
        made.string_match.CopyFrom(string_matcher(match))
    return made


def _match(match: RouteMatch) -> Any:
    made = route_components_pb2.RouteMatch(
        headers=[_header(header) for header in match.headers],
        query_parameters=[_query(name, value) for name, value in match.query],
        dynamic_metadata=[
            metadata_matcher(JWT_FILTER, (PAYLOAD, *c.path), text_matcher(c.match), invert=c.invert)
            for c in match.claims
        ],
    )
    path = match.path
    if path.kind == "exact":
        made.path = path.value
    elif path.kind == "regex":
        made.safe_regex.CopyFrom(regex(path.value))
    elif path.kind == "path_prefix":
        made.path_separated_prefix = path.value
    else:
        made.prefix = path.value
    if path.ignore_case and path.kind != "regex":
        made.case_sensitive.value = False
    if match.grpc:
        made.grpc.SetInParent()
    return made


def _header_ops(made: Any, ops: HeaderOps) -> None:
    """Fill the four header fields that routes, virtual hosts and weighted clusters share."""
    for target, pairs, action in (
        (made.request_headers_to_add, ops.request_set, _OVERWRITE),
        (made.request_headers_to_add, ops.request_add, _APPEND),
        (made.response_headers_to_add, ops.response_set, _OVERWRITE),
        (made.response_headers_to_add, ops.response_add, _APPEND),
    ):
        for key, value in pairs:
            target.add(header=base_pb2.HeaderValue(key=key, value=value), append_action=action)
    made.request_headers_to_remove.extend(ops.request_remove)
    made.response_headers_to_remove.extend(ops.response_remove)


@lru_cache(maxsize=1)
def _previous_hosts() -> Any:
    return route_components_pb2.RetryPolicy.RetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts",
        typed_config=pack(previous_hosts_pb2.PreviousHostsPredicate()),
    )


@lru_cache(maxsize=1024)
def _retry(policy: RetryPolicy) -> Any:
    made = route_components_pb2.RetryPolicy(
        retry_on=policy.on,
        num_retries=uint32(policy.attempts),
        per_try_timeout=maybe_duration(policy.per_try_timeout_s),
        retriable_status_codes=policy.status_codes,
        host_selection_retry_max_attempts=policy.host_attempts,
    )
    if policy.avoid_previous_hosts:
        made.retry_host_predicate.append(_previous_hosts())
    if policy.prefer_other_priorities:
        made.retry_priority.name = "envoy.retry_priorities.previous_priorities"
        made.retry_priority.typed_config.CopyFrom(
            pack(previous_priorities_config_pb2.PreviousPrioritiesConfig(update_frequency=2))
        )
    if policy.backoff_s is not None:
        made.retry_back_off.base_interval.CopyFrom(duration(policy.backoff_s))
    return made


def build_hash(policy: HashPolicy) -> Any:
    """One hash policy of a route."""
    made = route_components_pb2.RouteAction.HashPolicy()
    if policy.kind == "header":
        made.header.header_name = policy.name
    elif policy.kind == "cookie":
        made.cookie.name = policy.name
        made.cookie.path = policy.path
        if policy.ttl_s is not None:
            made.cookie.ttl.CopyFrom(duration(policy.ttl_s))
        for name, value in policy.attributes:
            made.cookie.attributes.add(name=name, value=value)
    elif policy.kind == "query":
        made.query_parameter.name = policy.name
    else:
        made.connection_properties.source_ip = True
    return made


def fraction(percent: float) -> Any:
    """A share as Envoy's fraction of a million."""
    return percent_pb2.FractionalPercent(
        numerator=round(percent * 10_000), denominator=percent_pb2.FractionalPercent.MILLION
    )


def _weighted(target: WeightedCluster) -> Any:
    made = route_components_pb2.WeightedCluster.ClusterWeight(
        name=target.cluster, weight=uint32(target.weight)
    )
    _header_ops(made, target.headers)
    return made


def _forward(made: Any, action: Forward) -> None:
    route = made.route
    if len(action.clusters) == 1:
        route.cluster = action.clusters[0].cluster
    else:
        route.weighted_clusters.clusters.extend(_weighted(target) for target in action.clusters)
    route.timeout.CopyFrom(duration(action.timeout_s))
    # No max_stream_duration, not even for grpc-timeout: its presence makes Envoy ignore the timeout above. A gRPC
    # caller's own deadline is enforced by the caller, which resets the stream.
    if action.retry is not None:
        route.retry_policy.CopyFrom(_retry(action.retry))
    if action.prefix_rewrite:
        route.prefix_rewrite = action.prefix_rewrite
    if action.regex_rewrite is not None:
        pattern, substitution = action.regex_rewrite
        route.regex_rewrite.pattern.CopyFrom(regex(pattern))
        route.regex_rewrite.substitution = substitution
    if action.host_rewrite:
        route.host_rewrite_literal = action.host_rewrite
        route.append_x_forwarded_host = action.forwarded_host
    for mirror in action.mirrors:
        route.request_mirror_policies.add(
            cluster=mirror.cluster,
            runtime_fraction=base_pb2.RuntimeFractionalPercent(
                default_value=fraction(mirror.percent)
            ),
            trace_sampled=boolean(False),
            disable_shadow_host_suffix_append=not mirror.shadow_suffix,
        )
    route.hash_policy.extend(build_hash(policy) for policy in action.hashes)
    if action.websocket:
        route.upgrade_configs.add(upgrade_type="websocket")


def _redirect(made: Any, action: Redirect) -> None:
    redirect = made.redirect
    redirect.response_code = _REDIRECTS.get(action.code, _REDIRECTS[301])
    if action.path:
        redirect.path_redirect = action.path
    elif action.prefix:
        redirect.prefix_rewrite = action.prefix
    if action.host:
        redirect.host_redirect = action.host
    if action.port:
        redirect.port_redirect = action.port
    if action.https:
        redirect.https_redirect = True
    elif action.scheme:
        redirect.scheme_redirect = action.scheme


def _direct(made: Any, action: DirectResponse) -> None:
    made.direct_response.status = action.status
    if action.body_bytes:
        made.direct_response.body.inline_bytes = action.body_bytes
    elif action.body:
        made.direct_response.body.inline_string = action.body


@lru_cache(maxsize=1024)
def _fault(fault: Fault) -> Any:
    made = fault_pb2.HTTPFault()
    if fault.delay_s is not None:
        made.delay.CopyFrom(
            common_fault_pb2.FaultDelay(
                fixed_delay=duration(fault.delay_s), percentage=fraction(fault.delay_percent)
            )
        )
    if fault.abort_status is not None or fault.abort_grpc is not None:
        made.abort.percentage.CopyFrom(fraction(fault.abort_percent))
        if fault.abort_status is not None:
            made.abort.http_status = fault.abort_status
        elif fault.abort_grpc is not None:
            made.abort.grpc_status = fault.abort_grpc
    return pack(made)


@lru_cache(maxsize=1024)
def _cors(cors: Cors) -> Any:
    made = cors_pb2.CorsPolicy(
        allow_origin_string_match=[string_matcher(match) for match in cors.origins],
        allow_methods=",".join(cors.methods),
        allow_headers=",".join(cors.headers),
        expose_headers=",".join(cors.expose),
        allow_credentials=boolean(cors.credentials),
        forward_not_matching_preflights=boolean(cors.forward_unmatched),
    )
    made.filter_enabled.default_value.CopyFrom(fraction(100))
    if cors.max_age_s is not None:
        made.max_age = str(round(cors.max_age_s))
    return pack(made)


@lru_cache(maxsize=1)
def _sniffed_alpn() -> Any:
    """Offer the endpoint's proxy the ALPN of HTTP inside mTLS, by the version of this very request."""
    by_version = (
        "%CEL(request.protocol == 'HTTP/2' ? 'istio-h2,istio,h2' : 'istio-http/1.1,istio')%"
    )
    state = value_pb2.FilterStateValue(
        object_key="envoy.network.application_protocols",
        shared_with_upstream=value_pb2.FilterStateValue.ONCE,
        format_string=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string=by_version)
        ),
    )
    return pack(set_filter_state_pb2.Config(on_request_headers=[state]))


@lru_cache(maxsize=1)
def _disabled() -> Any:
    return pack(route_components_pb2.FilterConfig(disabled=True))


@per_value
def build_route(route: Route) -> Any:
    """One route. Callers must not change the result."""
    made = route_components_pb2.Route(name=route.name, match=_match(route.match))
    _header_ops(made, route.headers)
    if isinstance(route.action, Forward):
        _forward(made, route.action)
        if len(route.action.clusters) == 1:
            # Header changes of the only destination move up: there is no weighted cluster to carry them.
            _header_ops(made, route.action.clusters[0].headers)
    elif isinstance(route.action, Redirect):
        _redirect(made, route.action)
    else:
        _direct(made, route.action)
    extras: dict[str, any_pb2.Any] = {}
    if route.fault is not None:
        extras[FAULT] = _fault(route.fault)
    if route.cors is not None:
        extras[CORS] = _cors(route.cors)
    if route.external:
        extras[PEER] = _disabled()
    if route.sniffed:
        extras[ALPN] = _sniffed_alpn()
    for name, config in extras.items():
        made.typed_per_filter_config[name].CopyFrom(config)
    if route.decorator:
        made.decorator.operation = route.decorator
    if route.config:
        made.metadata.filter_metadata["istio"].update({"config": route.config})
    if route.stat_prefix:
        made.stat_prefix = route.stat_prefix
    return made


def build_virtual_host(host: VirtualHost) -> Any:
    """One virtual host."""
    made = route_components_pb2.VirtualHost(
        name=host.name,
        domains=host.domains,
        routes=[build_route(route) for route in host.routes],
        include_request_attempt_count=host.attempt_count,
    )
    if host.require_tls:
        made.require_tls = route_components_pb2.VirtualHost.ALL
    return made


@per_value
def _virtual_host_bytes(host: VirtualHost) -> bytes:
    """The encoded virtual host, as a field of its route table."""
    return field_bytes(2, bytes(build_virtual_host(host).SerializeToString(deterministic=True)))


def _shell(config: RouteConfig) -> Any:
    """A route table without its virtual hosts. A missing cluster answers 503 instead of refusing the table."""
    made = route_pb2.RouteConfiguration(
        name=config.name,
        validate_clusters=boolean(False),
        ignore_port_in_host_matching=config.ignore_port_in_host,
    )
    for key, value in config.response_headers:
        made.response_headers_to_add.add(
            header=base_pb2.HeaderValue(key=key, value=value), append_action=_OVERWRITE
        )
    if config.max_direct_response_bytes:
        made.max_direct_response_body_size_bytes.value = config.max_direct_response_bytes
    return made


def build_route_config(config: RouteConfig) -> Any:
    """The whole route table as a message (for patches and inline use)."""
    made = _shell(config)
    made.virtual_hosts.extend(build_virtual_host(host) for host in config.virtual_hosts)
    return made


def route_config_bytes(config: RouteConfig) -> bytes:
    """The encoded route table, joined from cached virtual hosts."""
    head = bytes(_shell(config).SerializeToString(deterministic=True))
    return head + b"".join(_virtual_host_bytes(host) for host in config.virtual_hosts)


def extension(name: str, message: Any) -> Any:
    """A TypedExtensionConfig."""
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(message))
