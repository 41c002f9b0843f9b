"""Access logs that are sent to a service: Envoy's own protocol, and OpenTelemetry's."""

from __future__ import annotations

import json
from typing import Any

from envoy.config.core.v3 import config_source_pb2, grpc_service_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.access_loggers.open_telemetry.v3 import logs_service_pb2
from opentelemetry.proto.common.v1 import common_pb2

from meltemi.ir.telemetry import GrpcLog


def _text(value: str) -> Any:
    return common_pb2.AnyValue(string_value=value)


def build_grpc_log(log: GrpcLog) -> tuple[str, Any]:
    """(logger name, configuration)."""
    common = als_pb2.CommonGrpcAccessLogConfig(
        log_name=log.log_name,
        grpc_service=grpc_service_pb2.GrpcService(
            envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=log.cluster)
        ),
        transport_api_version=config_source_pb2.V3,
        filter_state_objects_to_log=log.state_objects,
    )
    if log.kind == "otel":
        made = logs_service_pb2.OpenTelemetryAccessLogConfig(common_config=common)
        if log.text:
            made.body.CopyFrom(_text(log.text))
        if log.json:
            made.attributes.values.extend(
                common_pb2.KeyValue(key=key, value=_text(str(value)))
                for key, value in sorted(json.loads(log.json).items())
            )
        return "envoy.access_loggers.open_telemetry", made
    if log.kind == "http":
        return "envoy.access_loggers.http_grpc", als_pb2.HttpGrpcAccessLogConfig(
            common_config=common,
            additional_request_headers_to_log=log.request_headers,
            additional_response_headers_to_log=log.response_headers,
            additional_response_trailers_to_log=log.response_trailers,
        )
    return "envoy.access_loggers.tcp_grpc", als_pb2.TcpGrpcAccessLogConfig(common_config=common)
