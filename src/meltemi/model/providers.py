"""Extension providers of the mesh configuration: what Telemetry and AuthorizationPolicy refer to by name.

In: nothing; these are types. Same promises as ``model.traffic``.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from meltemi.model.fields import Duration, FreeForm, PortNumber, Spec, UInt32
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.traffic import StringMap, Strings


class ExtAuthzRequestBody(Spec, frozen=True):
    """How much of the body is sent to the authorizer."""

    max_request_bytes: UInt32 = 0
    allow_partial_message: bool = False
    pack_as_bytes: bool = False


class EnvoyExtAuthzHttp(Spec, frozen=True):
    """An authorizer that is asked over HTTP."""

    REQUIRED: ClassVar = ("service", "port")
    service: str = ""
    port: PortNumber = 0
    timeout: Duration | None = None
    path_prefix: str = ""
    fail_open: bool = False
    clear_route_cache: bool = False
    status_on_error: str = ""
    include_headers_in_check: Strings = ()
    include_request_headers_in_check: Strings = ()
    include_additional_headers_in_check: StringMap = field(default_factory=lambda: EMPTY_MAP)
    include_request_body_in_check: ExtAuthzRequestBody | None = None
    headers_to_upstream_on_allow: Strings = ()
    headers_to_downstream_on_deny: Strings = ()
    headers_to_downstream_on_allow: Strings = ()


class EnvoyExtAuthzGrpc(Spec, frozen=True):
    """An authorizer that is asked over gRPC (Envoy's authorization service v3)."""

    REQUIRED: ClassVar = ("service", "port")
    service: str = ""
    port: PortNumber = 0
    timeout: Duration | None = None
    fail_open: bool = False
    clear_route_cache: bool = False
    status_on_error: str = ""
    include_request_body_in_check: ExtAuthzRequestBody | None = None


class ZipkinProvider(Spec, frozen=True):
    """Zipkin."""

    service: str = ""
    port: PortNumber = 0
    max_tag_length: UInt32 = 0
    enable_64bit_trace_id: bool = field(default=False, name="enable64bitTraceId")
    path: str = ""
    trace_context_option: str = "USE_B3"
    timeout: Duration | None = None
    headers: tuple[EnvHeader, ...] = ()


class EnvHeader(Spec, frozen=True):
    """A header with a fixed value or one from the environment."""

    ONE_OF: ClassVar = (("value", "env_name"),)
    name: str = ""
    value: str | None = None
    env_name: str | None = None


class LightstepProvider(Spec, frozen=True):
    """Lightstep. Deprecated; use opentelemetry."""

    service: str = ""
    port: PortNumber = 0
    access_token: str = ""
    max_tag_length: UInt32 = 0


class DatadogProvider(Spec, frozen=True):
    """Datadog."""

    service: str = ""
    port: PortNumber = 0
    max_tag_length: UInt32 = 0


class StackdriverProvider(Spec, frozen=True):
    """Google Cloud."""

    debug: bool = False
    max_number_of_attributes: int | None = None
    max_number_of_annotations: int | None = None
    max_number_of_message_events: int | None = None
    max_tag_length: UInt32 = 0
    logging: StackdriverLogging | None = None


class StackdriverLogging(Spec, frozen=True):
    """Extra labels of log entries."""

    labels: StringMap = field(default_factory=lambda: EMPTY_MAP)


class OpenCensusAgentProvider(Spec, frozen=True):
    """OpenCensus agent. Deprecated; use opentelemetry."""

    service: str = ""
    port: PortNumber = 0
    context: Strings = ()
    max_tag_length: UInt32 = 0


class SkyWalkingProvider(Spec, frozen=True):
    """Apache SkyWalking."""

    service: str = ""
    port: PortNumber = 0
    access_token: str = ""


class OtelHttp(Spec, frozen=True):
    """OTLP over HTTP."""

    path: str = ""
    timeout: Duration | None = None
    headers: tuple[EnvHeader, ...] = ()


class OtelGrpc(Spec, frozen=True):
    """OTLP over gRPC."""

    timeout: Duration | None = None
    initial_metadata: tuple[EnvHeader, ...] = ()


class ResourceDetectors(Spec, frozen=True):
    """Where resource attributes come from."""

    environment: FreeForm | None = None
    dynatrace: FreeForm | None = None


class DynatraceSampler(Spec, frozen=True):
    """Dynatrace's adaptive sampling."""

    tenant: str = ""
    cluster_id: int = 0
    root_spans_per_minute: UInt32 = 0
    http_service: FreeForm | None = None


class OpenTelemetryProvider(Spec, frozen=True):
    """OpenTelemetry traces."""

    ONE_OF: ClassVar = (("http", "grpc"),)
    service: str = ""
    port: PortNumber = 0
    max_tag_length: UInt32 = 0
    http: OtelHttp | None = None
    grpc: OtelGrpc | None = None
    resource_detectors: ResourceDetectors | None = None
    dynatrace_sampler: DynatraceSampler | None = None
    service_attribute_enrichment: str = ""


class PrometheusProvider(Spec, frozen=True):
    """Prometheus metrics at the proxy's own port."""


class EnvoyFileAccessLog(Spec, frozen=True):
    """Access log to a file or to standard output."""

    path: str = ""
    log_format: FileLogFormat | None = None
    omit_empty_values: bool = False


class FileLogFormat(Spec, frozen=True):
    """Text with Envoy's operators, or JSON labels."""

    ONE_OF: ClassVar = (("text", "labels"),)
    text: str | None = None
    labels: FreeForm | None = None


class EnvoyHttpGrpcV3Log(Spec, frozen=True):
    """Envoy's access log service for HTTP."""

    service: str = ""
    port: PortNumber = 0
    log_name: str = ""
    filter_state_objects_to_log: Strings = ()
    additional_request_headers_to_log: Strings = ()
    additional_response_headers_to_log: Strings = ()
    additional_response_trailers_to_log: Strings = ()


class EnvoyTcpGrpcV3Log(Spec, frozen=True):
    """Envoy's access log service for TCP."""

    service: str = ""
    port: PortNumber = 0
    log_name: str = ""
    filter_state_objects_to_log: Strings = ()


class EnvoyOtelLog(Spec, frozen=True):
    """OpenTelemetry access log service."""

    service: str = ""
    port: PortNumber = 0
    log_name: str = ""
    log_format: FileLogFormat | None = None


class SdsProvider(Spec, frozen=True):
    """A further SDS server for secrets."""

    name: str = ""
    service: str = ""
    port: PortNumber = 0


class MeshExtensionProvider(Spec, frozen=True):
    """A named provider of exactly one type."""

    REQUIRED: ClassVar = ("name",)
    ONE_OF: ClassVar = (
        (
            "envoy_ext_authz_http",
            "envoy_ext_authz_grpc",
            "zipkin",
            "lightstep",
            "datadog",
            "stackdriver",
            "opencensus",
            "skywalking",
            "opentelemetry",
            "prometheus",
            "envoy_file_access_log",
            "envoy_http_als",
            "envoy_tcp_als",
            "envoy_otel_als",
            "sds",
        ),
    )
    name: str = ""
    envoy_ext_authz_http: EnvoyExtAuthzHttp | None = None
    envoy_ext_authz_grpc: EnvoyExtAuthzGrpc | None = None
    zipkin: ZipkinProvider | None = None
    lightstep: LightstepProvider | None = None
    datadog: DatadogProvider | None = None
    stackdriver: StackdriverProvider | None = None
    opencensus: OpenCensusAgentProvider | None = None
    skywalking: SkyWalkingProvider | None = None
    opentelemetry: OpenTelemetryProvider | None = None
    prometheus: PrometheusProvider | None = None
    envoy_file_access_log: EnvoyFileAccessLog | None = None
    envoy_http_als: EnvoyHttpGrpcV3Log | None = None
    envoy_tcp_als: EnvoyTcpGrpcV3Log | None = None
    envoy_otel_als: EnvoyOtelLog | None = None
    sds: SdsProvider | None = None
