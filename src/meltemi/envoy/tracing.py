"""Tracing settings of a connection manager as Envoy messages."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.core.v3 import base_pb2, grpc_service_pb2, http_service_pb2, http_uri_pb2
from envoy.config.trace.v3 import (
    datadog_pb2,
    http_tracer_pb2,
    opentelemetry_pb2,
    skywalking_pb2,
    zipkin_pb2,
)
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.request_id.uuid.v3 import uuid_pb2
from envoy.type.tracing.v3 import custom_tag_pb2
from envoy.type.v3 import percent_pb2

from meltemi.envoy.anys import boolean, duration, pack, uint32
from meltemi.ir.telemetry import SpanTag, Tracing

EXPORT_TIMEOUT_S = 10.0


def _tag(tag: SpanTag) -> Any:
    made = custom_tag_pb2.CustomTag(tag=tag.name)
    if tag.kind == "literal":
        made.literal.value = tag.value
    elif tag.kind == "environment":
        made.environment.name = tag.value
        made.environment.default_value = tag.default
    elif tag.kind == "header":
        made.request_header.name = tag.value
        made.request_header.default_value = tag.default
    else:
        made.value = tag.value
    return made


def _header_options(tracing: Tracing) -> list[Any]:
    return [
        base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=key, value=value))
        for key, value in tracing.headers
    ]


def _http_service(tracing: Tracing) -> Any:
    return http_service_pb2.HttpService(
        http_uri=http_uri_pb2.HttpUri(
            uri=f"http://{tracing.host}{tracing.path}",
            cluster=tracing.cluster,
            timeout=duration(tracing.timeout_s or EXPORT_TIMEOUT_S),
        ),
        request_headers_to_add=_header_options(tracing),
    )


def _grpc_service(tracing: Tracing) -> Any:
    made = grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(
            cluster_name=tracing.cluster, authority=tracing.host
        ),
        initial_metadata=[
            base_pb2.HeaderValue(key=key, value=value) for key, value in tracing.headers
        ],
    )
    if tracing.timeout_s is not None:
        made.timeout.CopyFrom(duration(tracing.timeout_s))
    return made


def _zipkin(tracing: Tracing) -> Any:
    made = zipkin_pb2.ZipkinConfig(
        collector_cluster=tracing.cluster,
        collector_endpoint=tracing.path,
        collector_hostname=tracing.host,
        collector_endpoint_version=zipkin_pb2.ZipkinConfig.HTTP_JSON,
        trace_id_128bit=True,
        shared_span_context=boolean(False),
    )
    if tracing.trace_context == "USE_B3_WITH_W3C_PROPAGATION":
        made.trace_context_option = zipkin_pb2.ZipkinConfig.USE_B3_WITH_W3C_PROPAGATION
    if tracing.headers or tracing.timeout_s is not None:
        made.collector_service.CopyFrom(_http_service(tracing))
        for name in ("collector_cluster", "collector_endpoint", "collector_hostname"):
            made.ClearField(name)
    return made


def _detector(name: str) -> Any:
    """Neither takes settings: one reads OTEL_RESOURCE_ATTRIBUTES, the other Dynatrace's own files."""
    from envoy.extensions.tracers.opentelemetry.resource_detectors.v3 import (
        dynatrace_resource_detector_pb2,
        environment_resource_detector_pb2,
    )

    if name == "environment":
        return environment_resource_detector_pb2.EnvironmentResourceDetectorConfig()
    return dynatrace_resource_detector_pb2.DynatraceResourceDetectorConfig()


def _provider(tracing: Tracing) -> tuple[str, Any]:
    if tracing.kind == "zipkin":
        return "envoy.tracers.zipkin", _zipkin(tracing)
    if tracing.kind == "datadog":
        return "envoy.tracers.datadog", datadog_pb2.DatadogConfig(
            collector_cluster=tracing.cluster,
            collector_hostname=tracing.host,
            service_name=tracing.service_name,
        )
    if tracing.kind == "skywalking":
        config = skywalking_pb2.SkyWalkingConfig(grpc_service=_grpc_service(tracing))
        config.client_config.service_name = tracing.service_name
        config.client_config.instance_name = "%ENVIRONMENT(POD_NAME)%"
        if tracing.token:
            config.client_config.backend_token = tracing.token
        return "envoy.tracers.skywalking", config
    otel = opentelemetry_pb2.OpenTelemetryConfig(service_name=tracing.service_name)
    if tracing.kind == "otel_http":
        otel.http_service.CopyFrom(_http_service(tracing))
    else:
        otel.grpc_service.CopyFrom(_grpc_service(tracing))
    for name in tracing.detectors:
        otel.resource_detectors.add(
            name=f"envoy.tracers.opentelemetry.resource_detectors.{name}",
            typed_config=pack(_detector(name)),
        )
    return "envoy.tracers.opentelemetry", otel


@lru_cache(maxsize=256)
def build_tracing(tracing: Tracing) -> Any:
    """The Tracing message. Callers must not change it."""
    name, config = _provider(tracing)
    return hcm_pb2.HttpConnectionManager.Tracing(
        client_sampling=percent_pb2.Percent(value=100),
        random_sampling=percent_pb2.Percent(value=tracing.sampling),
        overall_sampling=percent_pb2.Percent(value=100),
        max_path_tag_length=uint32(tracing.max_path_length),
        custom_tags=[_tag(tag) for tag in tracing.tags],
        provider=http_tracer_pb2.Tracing.Http(name=name, typed_config=pack(config)),
    )


def request_id(tracing: Tracing) -> Any:
    """Whether the request id carries the sampling decision."""
    made = hcm_pb2.RequestIDExtension()
    config = uuid_pb2.UuidRequestIdConfig()
    config.use_request_id_for_trace_sampling.value = tracing.by_request_id
    made.typed_config.CopyFrom(pack(config))
    return made
