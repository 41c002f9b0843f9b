"""What is recorded about requests and connections."""

from __future__ import annotations

import enum

from meltemi.ir.value import value


class Side(enum.Enum):
    """Who reports."""

    CLIENT = "source"
    SERVER = "destination"


class StatsKind(enum.Enum):
    """Which family of the standard metrics."""

    HTTP = "http"
    TCP = "tcp"


@value
class LabelChange:
    """A label set to a CEL ``expression``, or removed when that is empty. ``metric`` '' means every metric."""

    metric: str
    label: str
    expression: str = ""


@value
class StandardStats:
    """The ``istio_*`` metrics of one listener chain. ``security`` is connection_security_policy."""

    side: Side
    kind: StatsKind
    security: str = "unknown"
    peer: bool = False  # source labels were received from the peer
    disabled: tuple[str, ...] = ()  # metrics that are not kept
    labels: tuple[LabelChange, ...] = ()


@value
class FileLog:
    """An access log file. Exactly one of ``text`` and ``json`` (a JSON document) is set.

    ``filter`` limits what is logged: '' for all, ``no_route`` for connections that found no filter chain.
    ``expression`` is a CEL condition.
    """

    path: str
    text: str = ""
    json: str = ""
    filter: str = ""
    expression: str = ""
    omit_empty: bool = False


@value
class GrpcLog:
    """An access log that is sent to a service: ``kind`` is http, tcp (Envoy's own protocol) or otel."""

    kind: str
    cluster: str
    log_name: str
    text: str = ""
    json: str = ""
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()
    response_trailers: tuple[str, ...] = ()
    state_objects: tuple[str, ...] = ()
    expression: str = ""


AccessLog = StandardStats | FileLog | GrpcLog


@value
class SpanTag:
    """A tag of every span: ``kind`` is literal, environment, header or format."""

    name: str
    kind: str
    value: str
    default: str = ""


@value
class Tracing:
    """Spans of the requests of a connection manager.

    ``kind`` is zipkin, otel_http, otel_grpc, datadog or skywalking. ``sampling`` is a percentage. ``path`` is the collector's.
    """

    kind: str
    cluster: str
    host: str
    sampling: float
    path: str = ""
    service_name: str = ""
    tags: tuple[SpanTag, ...] = ()
    max_path_length: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float | None = None
    token: str = ""
    trace_context: str = ""
    by_request_id: bool = True
    detectors: tuple[
        str, ...
    ] = ()  # of OpenTelemetry's resource attributes: environment, dynatrace
