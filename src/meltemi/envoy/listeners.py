"""Listeners as Envoy messages. In: ``ir.listener`` values. Out: one message per listener."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_network
from typing import Any

from envoy.config.core.v3 import (
    address_pb2,
    base_pb2,
    config_source_pb2,
    extension_pb2,
    protocol_pb2,
    substitution_format_string_pb2,
)
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.filters.network.mongo_proxy.v3 import mongo_proxy_pb2
from envoy.extensions.filters.network.sni_cluster.v3 import sni_cluster_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.type.v3 import hash_policy_pb2, range_pb2
from google.protobuf import any_pb2

from meltemi.envoy.access_logs import build_access_logs
from meltemi.envoy.anys import (
    duration,
    maybe_duration,
    pack,
    uint32,
)
from meltemi.envoy.dynamic_dns import by_sni_filter
from meltemi.envoy.header_case import preserved_header_case
from meltemi.envoy.http_filters import build_http_filter
from meltemi.envoy.rbac import tcp_ext_authz, tcp_rbac
from meltemi.envoy.routes import build_route_config
from meltemi.envoy.tls import downstream_socket
from meltemi.envoy.tracing import build_tracing, request_id
from meltemi.envoy.wire import field_bytes, field_int
from meltemi.ir import listener as ir
from meltemi.ir.authorization import ExtAuthz, Rbac
from meltemi.ir.telemetry import StandardStats
from meltemi.ir.value import per_value
from meltemi.model.names import XDS

_Hcm = hcm_pb2.HttpConnectionManager
# The installed Cel type is older than the proxy: ``cel_config`` (1) { ``enable_string_functions`` (3): true }.
_CEL_TYPE = XDS + "envoy.extensions.formatter.cel.v3.Cel"
_SET_STATE_TYPE = XDS + "envoy.extensions.filters.network.set_filter_state.v3.Config"
_CEL_STRINGS = field_bytes(1, field_int(3, 1))


def ads() -> Any:
    """Configuration from the ADS stream; waits for it as long as it takes."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        resource_api_version=config_source_pb2.V3,
        initial_fetch_timeout=duration(0),
    )


def socket_address(address: str, port: int) -> Any:
    """A TCP address, or the Unix socket of ``unix:///path``."""
    if address.startswith("unix://"):
        return address_pb2.Address(pipe=address_pb2.Pipe(path=address.removeprefix("unix://")))
    return address_pb2.Address(
        socket_address=address_pb2.SocketAddress(address=address, port_value=port)
    )


def _cidr(text: str) -> Any:
    net = ip_network(text, strict=False)
    return address_pb2.CidrRange(
        address_prefix=str(net.network_address), prefix_len=uint32(net.prefixlen)
    )


def build_http_manager(manager: ir.HttpManager) -> Any:
    """The HttpConnectionManager message."""
    made = _Hcm(
        stat_prefix=manager.stat_prefix,
        http_filters=[build_http_filter(entry) for entry in manager.filters],
        access_log=build_access_logs(manager.access_logs),
        server_name=manager.server_name,
        xff_num_trusted_hops=manager.trusted_hops,
        merge_slashes=manager.merge_slashes,
        strip_any_host_port=manager.strip_host_port,
        strip_trailing_host_dot=manager.strip_trailing_host_dot,
        preserve_external_request_id=manager.preserve_request_id,
    )
    made.use_remote_address.value = manager.use_remote_address
    made.generate_request_id.value = manager.generate_request_id
    made.append_x_forwarded_port = manager.append_forwarded_port
    made.normalize_path.value = manager.normalize_path
    if manager.rds:
        made.rds.route_config_name = manager.rds
        made.rds.config_source.CopyFrom(ads())
    elif manager.routes is not None:
        made.route_config.CopyFrom(build_route_config(manager.routes))
    if manager.server_header:
        made.server_header_transformation = _Hcm.ServerHeaderTransformation.Value(
            manager.server_header
        )
    if manager.forward_client_cert:
        made.forward_client_cert_details = _Hcm.ForwardClientCertDetails.Value(
            manager.forward_client_cert
        )
        details = made.set_current_client_cert_details
        details.subject.value = "subject" in manager.client_cert_details
        for name in ("cert", "chain", "dns", "uri"):
            setattr(details, name, name in manager.client_cert_details)
    if manager.escaped_slashes:
        made.path_with_escaped_slashes_action = _Hcm.PathWithEscapedSlashesAction.Value(
            manager.escaped_slashes
        )
    _timeouts(made, manager)
    if manager.preserve_header_case:
        made.http_protocol_options.header_key_format.CopyFrom(preserved_header_case())
    if manager.underscores:
        made.common_http_protocol_options.headers_with_underscores_action = (
            protocol_pb2.HttpProtocolOptions.HeadersWithUnderscoresAction.Value(manager.underscores)
        )
    if manager.http10:
        made.http_protocol_options.accept_http_10 = True
    if manager.tracing is not None:
        made.tracing.CopyFrom(build_tracing(manager.tracing))
        if not manager.tracing.by_request_id:
            made.request_id_extension.CopyFrom(request_id(manager.tracing))
    if manager.websocket:
        made.upgrade_configs.add(upgrade_type="websocket")
    return made


def _timeouts(made: Any, manager: ir.HttpManager) -> None:
    """Times and sizes, each left to Envoy's own default where it is None."""
    common = made.common_http_protocol_options
    for target, name, seconds in (
        (made, "stream_idle_timeout", manager.stream_idle_timeout_s),
        (made, "request_timeout", manager.request_timeout_s),
        (made, "request_headers_timeout", manager.request_headers_timeout_s),
        (made, "drain_timeout", manager.drain_timeout_s),
        (common, "idle_timeout", manager.idle_timeout_s),
        (common, "max_connection_duration", manager.max_connection_duration_s),
        (common, "max_stream_duration", manager.max_stream_duration_s),
    ):
        if seconds is not None:
            getattr(target, name).CopyFrom(duration(seconds))
    for name, amount in (
        ("max_concurrent_streams", manager.max_concurrent_streams),
        ("initial_stream_window_size", manager.h2_stream_window),
        ("initial_connection_window_size", manager.h2_connection_window),
    ):
        if amount is not None:
            getattr(made.http2_protocol_options, name).value = amount


def build_tcp_proxy(proxy: ir.TcpProxy) -> Any:
    """The TcpProxy message."""
    made = tcp_proxy_pb2.TcpProxy(
        stat_prefix=proxy.stat_prefix,
        access_log=build_access_logs(proxy.access_logs),
        idle_timeout=maybe_duration(proxy.idle_timeout_s),
    )
    if len(proxy.clusters) == 1:
        made.cluster = proxy.clusters[0].cluster
    else:
        for target in proxy.clusters:
            made.weighted_clusters.clusters.add(name=target.cluster, weight=target.weight)
    if any(isinstance(log, StandardStats) for log in proxy.access_logs):
        made.access_log_options.flush_access_log_on_connected = True
    if proxy.after_handshake:
        # Otherwise the upstream connection is made before the client's certificate is known. Early data
        # must be ruled out explicitly in this mode.
        made.upstream_connect_mode = tcp_proxy_pb2.ON_DOWNSTREAM_TLS_HANDSHAKE
        made.max_early_data_bytes.value = 0
    if any(policy.kind == "source_ip" for policy in proxy.hashes):
        made.hash_policy.append(
            hash_policy_pb2.HashPolicy(source_ip=hash_policy_pb2.HashPolicy.SourceIp())
        )
    if proxy.tunnel_host:
        made.tunneling_config.hostname = proxy.tunnel_host
        made.tunneling_config.use_post = proxy.tunnel_post
    if proxy.max_duration_s is not None:
        made.max_downstream_connection_duration.CopyFrom(duration(proxy.max_duration_s))
    return made


def _peer_state(key: str, index: int) -> Any:
    """A filter state object with one segment of the peer's SPIFFE id (``/ns/<4>/sa/<6>``)."""
    text = f'%CEL(connection.uri_san_peer_certificate.split("/")[{index}])%'
    formatter = extension_pb2.TypedExtensionConfig(
        name="envoy.formatter.cel", typed_config=any_pb2.Any(type_url=_CEL_TYPE, value=_CEL_STRINGS)
    )
    return value_pb2.FilterStateValue(
        object_key=key,
        factory_key="envoy.string",
        format_string=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string=text),
            omit_empty_values=True,
            formatters=[formatter],
        ),
    )


def _peer_from_certificate() -> any_pb2.Any:
    """The installed Config type lacks ``on_downstream_tls_handshake`` (2), so it is written on the wire."""
    states = (_peer_state("mesh.src.ns", 4), _peer_state("mesh.src.sa", 6))
    body = b"".join(field_bytes(2, state.SerializeToString(deterministic=True)) for state in states)
    return any_pb2.Any(type_url=_SET_STATE_TYPE, value=body)


def _network_filter(entry: ir.NetworkFilter) -> Any:
    if isinstance(entry, ir.HttpManager):
        name, config = "envoy.filters.network.http_connection_manager", build_http_manager(entry)
    elif isinstance(entry, ir.TcpProxy):
        name, config = "envoy.filters.network.tcp_proxy", build_tcp_proxy(entry)
    elif isinstance(entry, ir.ResolveSni):
        name, config = "envoy.filters.network.sni_dynamic_forward_proxy", by_sni_filter(entry.port)
    elif isinstance(entry, ir.MongoStats):
        name = "envoy.filters.network.mongo_proxy"
        config = mongo_proxy_pb2.MongoProxy(stat_prefix=entry.stat_prefix)
    elif isinstance(entry, ir.SniCluster):
        name, config = "envoy.filters.network.sni_cluster", sni_cluster_pb2.SniCluster()
    elif isinstance(entry, Rbac):
        name, config = tcp_rbac(entry)
    elif isinstance(entry, ExtAuthz):
        name, config = tcp_ext_authz(entry)
    else:
        return listener_components_pb2.Filter(
            name="envoy.filters.network.set_filter_state", typed_config=_peer_from_certificate()
        )
    return listener_components_pb2.Filter(name=name, typed_config=pack(config))


@lru_cache(maxsize=256)
def _filters(filters: tuple[ir.NetworkFilter, ...]) -> tuple[Any, ...]:
    """The network filters of a chain; many chains share them."""
    return tuple(_network_filter(entry) for entry in filters)


@per_value
def build_chain(chain: ir.FilterChain) -> Any:
    """One filter chain. Callers must not change it."""
    made = listener_components_pb2.FilterChain(name=chain.name, filters=_filters(chain.filters))
    match = chain.match
    if match != ir.ChainMatch():
        made.filter_chain_match.CopyFrom(
            listener_components_pb2.FilterChainMatch(
                destination_port=uint32(match.destination_port or None),
                prefix_ranges=[_cidr(text) for text in match.prefixes],
                source_prefix_ranges=[_cidr(text) for text in match.source_prefixes],
                server_names=match.server_names,
                transport_protocol=match.transport_protocol,
                application_protocols=match.application_protocols,
            )
        )
    if chain.tls is not None:
        made.transport_socket.CopyFrom(downstream_socket(chain.tls))
    if chain.handshake_timeout_s is not None:
        made.transport_socket_connect_timeout.CopyFrom(duration(chain.handshake_timeout_s))
    return made


def _skip(ports: tuple[int, ...]) -> Any:
    """The predicate that switches a listener filter off on some ports."""
    rules = [
        listener_components_pb2.ListenerFilterChainMatchPredicate(
            destination_port_range=range_pb2.Int32Range(start=port, end=port + 1)
        )
        for port in ports
    ]
    if len(rules) == 1:
        return rules[0]
    predicate = listener_components_pb2.ListenerFilterChainMatchPredicate
    return predicate(or_match=predicate.MatchSet(rules=rules))


def _listener_filter(name: str, config: Any, skip: tuple[int, ...] = ()) -> Any:
    made = listener_components_pb2.ListenerFilter(
        name=f"envoy.filters.listener.{name}", typed_config=pack(config)
    )
    if skip:
        made.filter_disabled.CopyFrom(_skip(skip))
    return made


def _inspection(made: Any, rules: ir.Inspection) -> None:
    add: Callable[[Any], None] = made.listener_filters.append
    if rules.original_dst:
        add(_listener_filter("original_dst", original_dst_pb2.OriginalDst()))
    if rules.proxy_protocol:
        add(_listener_filter("proxy_protocol", proxy_protocol_pb2.ProxyProtocol()))
    if rules.tls:
        add(
            _listener_filter(
                "tls_inspector", tls_inspector_pb2.TlsInspector(), rules.tls_skip_ports
            )
        )
    if rules.http:
        add(
            _listener_filter(
                "http_inspector", http_inspector_pb2.HttpInspector(), rules.http_skip_ports
            )
        )
    if rules.timeout_s is not None:
        made.listener_filters_timeout.CopyFrom(duration(rules.timeout_s))
        made.continue_on_listener_filters_timeout = True


def build_listener(listener: ir.Listener) -> Any:
    """The Envoy message of one listener."""
    made = listener_pb2.Listener(
        name=listener.name,
        address=socket_address(listener.address, listener.port),
        filter_chains=[build_chain(chain) for chain in listener.chains],
        traffic_direction=base_pb2.TrafficDirection.Value(listener.direction),
        access_log=build_access_logs(listener.access_logs),
    )
    for address in listener.extra_addresses:
        made.additional_addresses.add(address=socket_address(address, listener.port))
    if listener.buffer_limit is not None:
        made.per_connection_buffer_limit_bytes.value = listener.buffer_limit
    if not listener.bind_to_port:
        made.bind_to_port.value = False
    if listener.use_original_dst:
        made.use_original_dst.value = True
    if listener.default_chain is not None:
        made.default_filter_chain.CopyFrom(build_chain(listener.default_chain))
    _inspection(made, listener.inspection)
    return made
