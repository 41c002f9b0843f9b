"""Access loggers: the standard metrics through Envoy's stats logger, and files.

The stats logger's message in the installed protobuf types is older than the proxy (it lacks ``stats_scope``),
so that one field is appended on the wire: field 6, an ``envoy.type.v3.Scope`` whose field 5 is the prefix.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.data.accesslog.v3 import accesslog_pb2 as data_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.filters.cel.v3 import cel_pb2
from envoy.extensions.access_loggers.stats.v3 import stats_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import any_pb2, struct_pb2, wrappers_pb2

from meltemi.envoy.anys import pack
from meltemi.envoy.grpc_logs import build_grpc_log
from meltemi.envoy.wire import field_bytes, field_int, field_text
from meltemi.ir.telemetry import AccessLog, FileLog, GrpcLog, Side, StandardStats, StatsKind
from meltemi.model.names import MESH_METADATA, PEER_METADATA, XDS

_STATS = "envoy.access_loggers.stats"
_FILE = "envoy.access_loggers.file"
# Guards against unbounded label values: what exceeds them is dropped, unused series are evicted.
MAX_COUNTERS = 20_000
MAX_HISTOGRAMS = 20_000
_SCOPE = field_bytes(
    6,
    field_bytes(1, field_int(1, MAX_COUNTERS))
    + field_bytes(3, field_int(1, MAX_HISTOGRAMS))
    + field_int(4, 1)
    + field_text(5, "istio"),
)
_Histogram = stats_pb2.Config.Histogram
Tags = tuple[tuple[str, str], ...]


def _own(side: str) -> dict[str, str]:
    """Labels of the proxy's own workload, from its environment."""
    return {
        f"{side}_workload": "%ENVIRONMENT(MESH_WORKLOAD)%",
        f"{side}_workload_namespace": "%ENVIRONMENT(MESH_NAMESPACE)%",
        f"{side}_canonical_service": "%ENVIRONMENT(MESH_CANONICAL)%",
        f"{side}_canonical_revision": "%ENVIRONMENT(MESH_REVISION)%",
        f"{side}_app": "%ENVIRONMENT(MESH_APP)%",
        f"{side}_version": "%ENVIRONMENT(MESH_VERSION)%",
        f"{side}_cluster": "%ENVIRONMENT(MESH_CLUSTER)%",
    }


_PEER_KEYS = (
    ("workload", "workload"),
    ("workload_namespace", "namespace"),
    ("canonical_service", "canonical"),
    ("canonical_revision", "revision"),
    ("app", "app"),
    ("version", "version"),
    ("cluster", "cluster"),
)


def _client_labels() -> dict[str, str]:
    labels = _own("source")
    labels["source_principal"] = "%UPSTREAM_LOCAL_URI_SAN%"
    for label, key in _PEER_KEYS:
        labels[f"destination_{label}"] = f"%UPSTREAM_METADATA({MESH_METADATA}:{key})%"
    labels["destination_principal"] = "%UPSTREAM_PEER_URI_SAN%"
    return labels


def _server_labels(log: StandardStats) -> dict[str, str]:
    labels = _own("destination")
    labels["destination_principal"] = "%DOWNSTREAM_LOCAL_URI_SAN%"
    labels["source_principal"] = "%DOWNSTREAM_PEER_URI_SAN%"
    for label, key in _PEER_KEYS:
        if log.kind is StatsKind.TCP:
            value = "%FILTER_STATE(mesh.src.ns:PLAIN)%" if log.peer and key == "namespace" else ""
        else:
            value = f"%DYNAMIC_METADATA({PEER_METADATA}:{key})%" if log.peer else ""
        labels[f"source_{label}"] = value
    return labels


_ORDER = (
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
)


def label_formats(log: StandardStats, protocol: str) -> Tags:
    """Every label of the standard metrics and the format that fills it, in Istio's order."""
    labels = _client_labels() if log.side is Side.CLIENT else _server_labels(log)
    tags = [("reporter", log.side.value)]
    tags += [(name, labels[name] or "unknown") for name in _ORDER]
    tags += [
        ("destination_service", f"%CLUSTER_METADATA({MESH_METADATA}:service)%"),
        ("destination_service_name", f"%CLUSTER_METADATA({MESH_METADATA}:service_name)%"),
        ("destination_service_namespace", f"%CLUSTER_METADATA({MESH_METADATA}:service_namespace)%"),
        ("request_protocol", protocol),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("connection_security_policy", log.security),
    ]
    if log.kind is StatsKind.HTTP:
        tags += [
            ("response_code", "%RESPONSE_CODE%"),
            ("grpc_response_status", "%GRPC_STATUS_NUMBER%"),
        ]
    return tuple(tags)


def _stat(name: str, tags: Tags) -> Any:
    return stats_pb2.Config.Stat(
        name=name,
        tags=[stats_pb2.Config.Tag(name=key, value_format=value) for key, value in tags if value],
    )


def _counter(name: str, tags: Tags, value: str = "") -> Any:
    if value:
        return stats_pb2.Config.Counter(stat=_stat(name, tags), value_format=value)
    return stats_pb2.Config.Counter(
        stat=_stat(name, tags), value_fixed=wrappers_pb2.UInt64Value(value=1)
    )


def _logger(config: Any, condition: Any) -> Any:
    body = config.SerializeToString(deterministic=True) + _SCOPE
    return accesslog_pb2.AccessLog(
        name=_STATS,
        filter=condition,
        typed_config=any_pb2.Any(type_url=XDS + config.DESCRIPTOR.full_name, value=body),
    )


def _is_grpc(grpc: bool) -> Any:
    """Requests by content type. Without treat_missing_header_as_empty, plain requests would match neither."""
    header = route_components_pb2.HeaderMatcher(
        name="content-type",
        string_match=string_pb2.StringMatcher(prefix="application/grpc"),
        invert_match=not grpc,
        treat_missing_header_as_empty=not grpc,
    )
    return accesslog_pb2.AccessLogFilter(header_filter=accesslog_pb2.HeaderFilter(header=header))


def _at(moment: str) -> Any:
    return accesslog_pb2.AccessLogFilter(
        log_type_filter=accesslog_pb2.LogTypeFilter(types=[data_pb2.AccessLogType.Value(moment)])
    )


def _changed(log: StandardStats, metric: str, tags: Tags) -> Tags:
    """The labels of one metric, with the changes that Telemetry asks for."""
    labels = dict(tags)
    for change in log.labels:
        if change.metric not in ("", metric):
            continue
        if change.expression:
            labels[change.label] = f"%CEL({change.expression})%"
        else:
            labels.pop(change.label, None)
    return tuple(labels.items())


def _kept(log: StandardStats, tags: Tags, values: dict[str, str]) -> Any:
    """Counters by metric name, without those that are disabled. An empty value counts by one."""
    return stats_pb2.Config(
        counters=[
            _counter(name, _changed(log, name, tags), value)
            for name, value in values.items()
            if name not in log.disabled
        ]
    )


_HTTP_HISTOGRAMS = (
    ("request_duration_milliseconds", _Histogram.Milliseconds, "%DURATION%"),
    ("request_bytes", _Histogram.Bytes, "%BYTES_RECEIVED%"),
    ("response_bytes", _Histogram.Bytes, "%BYTES_SENT%"),
)


def _http_stats(log: StandardStats) -> list[Any]:
    made = []
    for protocol in ("http", "grpc"):
        tags = label_formats(log, protocol)
        config = _kept(log, tags, {"requests_total": ""})
        for name, unit, value in _HTTP_HISTOGRAMS:
            if name not in log.disabled:
                config.histograms.add(
                    stat=_stat(name, _changed(log, name, tags)), unit=unit, value_format=value
                )
        if config.counters or config.histograms:
            made.append(_logger(config, _is_grpc(protocol == "grpc")))
    return made


def _tcp_stats(log: StandardStats) -> list[Any]:
    tags = label_formats(log, "tcp")
    opened = _kept(log, tags, {"tcp_connections_opened_total": ""})
    # Byte operators are cumulative, so they are read once: when the connection ends.
    closed = _kept(
        log,
        tags,
        {
            "tcp_connections_closed_total": "",
            "tcp_sent_bytes_total": "%BYTES_SENT%",
            "tcp_received_bytes_total": "%BYTES_RECEIVED%",
        },
    )
    moments = ((opened, "TcpUpstreamConnected"), (closed, "TcpConnectionEnd"))
    return [_logger(config, _at(moment)) for config, moment in moments if config.counters]


def _file(log: FileLog) -> Any:
    formatted = substitution_format_string_pb2.SubstitutionFormatString(
        omit_empty_values=log.omit_empty
    )
    if log.json:
        formatted.json_format.CopyFrom(_struct(json.loads(log.json)))
    else:
        formatted.text_format_source.CopyFrom(base_pb2.DataSource(inline_string=log.text))
    made = accesslog_pb2.AccessLog(
        name=_FILE,
        typed_config=pack(file_pb2.FileAccessLog(path=log.path, log_format=formatted)),
    )
    conditions = []
    if log.filter == "no_route":
        unrouted = accesslog_pb2.ResponseFlagFilter(flags=["NR"])
        conditions.append(accesslog_pb2.AccessLogFilter(response_flag_filter=unrouted))
    if log.expression:
        conditions.append(_expression(log.expression))
    if len(conditions) > 1:
        both = accesslog_pb2.AndFilter(filters=conditions)
        made.filter.CopyFrom(accesslog_pb2.AccessLogFilter(and_filter=both))
    elif conditions:
        made.filter.CopyFrom(conditions[0])
    return made


def _expression(text: str) -> Any:
    """Log only what a CEL expression is true for."""
    return accesslog_pb2.AccessLogFilter(
        extension_filter=accesslog_pb2.ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=pack(cel_pb2.ExpressionFilter(expression=text)),
        )
    )


def _sent(log: GrpcLog) -> Any:
    name, config = build_grpc_log(log)
    made = accesslog_pb2.AccessLog(name=name, typed_config=pack(config))
    if log.expression:
        made.filter.CopyFrom(_expression(log.expression))
    return made


def _struct(document: dict[str, Any]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(document)
    return made


@lru_cache(maxsize=1024)
def build_access_log(log: AccessLog) -> tuple[Any, ...]:
    """The loggers of one entry. Callers must not change them."""
    if isinstance(log, FileLog):
        return (_file(log),)
    if isinstance(log, GrpcLog):
        return (_sent(log),)
    return tuple(_http_stats(log) if log.kind is StatsKind.HTTP else _tcp_stats(log))


def build_access_logs(logs: tuple[AccessLog, ...]) -> list[Any]:
    """The loggers of a filter."""
    return [made for log in logs for made in build_access_log(log)]
