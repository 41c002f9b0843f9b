"""Telemetry (telemetry.istio.io v1 and v1alpha1): tracing, metrics and access logs of some workloads.

In: nothing; these are types. Same promises as ``model.traffic``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from meltemi.model.fields import Duration, Spec
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.security import PolicyTargetReference
from meltemi.model.traffic import LabelSelector

WorkloadMode = Literal["CLIENT_AND_SERVER", "CLIENT", "SERVER"]


class ProviderRef(Spec, frozen=True):
    """A provider of the mesh configuration, by name."""

    REQUIRED: ClassVar = ("name",)
    name: str = ""


class TracingSelector(Spec, frozen=True):
    """Direction that a tracing setting is for."""

    mode: WorkloadMode = "CLIENT_AND_SERVER"


class FixedValue(Spec, frozen=True):
    """A fixed value."""

    REQUIRED: ClassVar = ("value",)
    value: str = ""


class Environment(Spec, frozen=True):
    """An environment variable of the proxy."""

    REQUIRED: ClassVar = ("name",)
    name: str = ""
    default_value: str = ""


class RequestHeader(Spec, frozen=True):
    """A header of the request."""

    REQUIRED: ClassVar = ("name",)
    name: str = ""
    default_value: str = ""


class CustomTag(Spec, frozen=True):
    """A span tag from exactly one source."""

    ONE_OF: ClassVar = (("literal", "environment", "header", "formatter"),)
    literal: FixedValue | None = None
    environment: Environment | None = None
    header: RequestHeader | None = None
    formatter: FixedValue | None = None


class Tracing(Spec, frozen=True):
    """Tracing settings.

    random_sampling_percentage: Share of the requests that start a trace.
    """

    match: TracingSelector | None = None
    providers: tuple[ProviderRef, ...] = ()
    random_sampling_percentage: Annotated[float, Meta(ge=0, le=100)] | None = None
    disable_span_reporting: bool | None = None
    custom_tags: Mapping[str, CustomTag] = field(default_factory=lambda: EMPTY_MAP)
    use_request_id_for_trace_sampling: bool | None = None
    enable_istio_tags: bool | None = None
    disable_context_propagation: bool | None = None


StandardMetric = Literal[
    "ALL_METRICS",
    "REQUEST_COUNT",
    "REQUEST_DURATION",
    "REQUEST_SIZE",
    "RESPONSE_SIZE",
    "TCP_OPENED_CONNECTIONS",
    "TCP_CLOSED_CONNECTIONS",
    "TCP_SENT_BYTES",
    "TCP_RECEIVED_BYTES",
    "GRPC_REQUEST_MESSAGES",
    "GRPC_RESPONSE_MESSAGES",
]


class MetricSelector(Spec, frozen=True):
    """A standard metric or a custom one, and the direction."""

    ONE_OF: ClassVar = (("metric", "custom_metric"),)
    metric: StandardMetric | None = None
    custom_metric: str | None = None
    mode: WorkloadMode = "CLIENT_AND_SERVER"


class TagOverride(Spec, frozen=True):
    """Set or remove one label of a metric.

    value: CEL expression; only for UPSERT.
    """

    operation: Literal["UPSERT", "REMOVE"] = "UPSERT"
    value: str = ""


class MetricsOverrides(Spec, frozen=True):
    """Changes to some metrics."""

    match: MetricSelector | None = None
    disabled: bool | None = None
    tag_overrides: Mapping[str, TagOverride] = field(default_factory=lambda: EMPTY_MAP)


class Metrics(Spec, frozen=True):
    """Metrics settings."""

    providers: tuple[ProviderRef, ...] = ()
    overrides: tuple[MetricsOverrides, ...] = ()
    reporting_interval: Duration | None = None


class LogSelector(Spec, frozen=True):
    """Direction that a log setting is for."""

    mode: WorkloadMode = "CLIENT_AND_SERVER"


class LogFilter(Spec, frozen=True):
    """CEL expression that says which requests are logged."""

    expression: str = ""


class AccessLogging(Spec, frozen=True):
    """Access log settings."""

    match: LogSelector | None = None
    providers: tuple[ProviderRef, ...] = ()
    disabled: bool | None = None
    filter: LogFilter | None = None


class Telemetry(Spec, frozen=True):
    """Telemetry of the mesh (root namespace), a namespace, or selected workloads."""

    ONE_OF: ClassVar = (("selector", "target_ref", "target_refs"),)
    selector: LabelSelector | None = None
    target_ref: PolicyTargetReference | None = None
    target_refs: tuple[PolicyTargetReference, ...] = ()
    tracing: tuple[Tracing, ...] = ()
    metrics: tuple[Metrics, ...] = ()
    access_logging: tuple[AccessLogging, ...] = ()
