"""Telemetry objects of a class as one: what is measured, logged and traced on each side.

Levels are Istio's: the root namespace, the namespace, the workload; of several at one level the oldest holds. Providers
of a nearer level replace those of a farther one, metric overrides add up, tracing settings overlay field by field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from meltemi.ir.telemetry import LabelChange, Side
from meltemi.model.config import Config
from meltemi.model.telemetry import (
    AccessLogging,
    CustomTag,
    Metrics,
    MetricsOverrides,
    Telemetry,
    Tracing,
)
from meltemi.translate.authorization import selected
from meltemi.translate.build import Build

METRIC_NAMES = {
    "REQUEST_COUNT": "requests_total",
    "REQUEST_DURATION": "request_duration_milliseconds",
    "REQUEST_SIZE": "request_bytes",
    "RESPONSE_SIZE": "response_bytes",
    "TCP_OPENED_CONNECTIONS": "tcp_connections_opened_total",
    "TCP_CLOSED_CONNECTIONS": "tcp_connections_closed_total",
    "TCP_SENT_BYTES": "tcp_sent_bytes_total",
    "TCP_RECEIVED_BYTES": "tcp_received_bytes_total",
}
_UNCOUNTED = ("GRPC_REQUEST_MESSAGES", "GRPC_RESPONSE_MESSAGES")
_MODE = {Side.CLIENT: "CLIENT", Side.SERVER: "SERVER"}
# Attributes that only Istio's own proxy offers; a stock Envoy refuses the whole listener over them.
_FOREIGN = re.compile(
    r"\b(node|upstream_peer|downstream_peer|source\.workload|destination\.workload)\b"
)


@dataclass(frozen=True)
class Metering:
    """What is measured on one side."""

    enabled: bool = True
    disabled: tuple[str, ...] = ()
    labels: tuple[LabelChange, ...] = ()


@dataclass(frozen=True)
class Logging:
    """One provider's log on one side, and the condition for it."""

    provider: str
    expression: str = ""
    config: Config[Telemetry] | None = None


@dataclass(frozen=True)
class SpanRules:
    """What is traced on one side. ``sampling`` None: the mesh's own."""

    providers: tuple[str, ...] = ()
    sampling: float | None = None
    off: bool = False
    by_request_id: bool = True
    istio_tags: bool | None = None  # None: as the proxy's own settings say
    tags: tuple[tuple[str, CustomTag], ...] = ()
    config: Config[Telemetry] | None = None


def levels(build: Build) -> list[Config[Telemetry]]:
    """At most three: mesh, namespace, workload; farthest first."""
    found: dict[tuple[bool, bool], Config[Telemetry]] = {}
    root = build.context.root_namespace
    for config in selected(build, "Telemetry"):
        spec = config.spec
        chosen = bool(
            (spec.selector is not None and spec.selector.match_labels)
            or spec.target_refs
            or spec.target_ref is not None
        )
        if chosen and config.meta.namespace == root != build.proxy.namespace:
            continue
        found.setdefault((chosen, config.meta.namespace != root), config)
    return [found[key] for key in sorted(found)]


def valid_expression(build: Build, text: str, config: Config[Telemetry], path: str) -> bool:
    """Whether Envoy can be given a CEL expression. What it would surely refuse is reported and left out."""
    balanced = text.count("(") == text.count(")") and text.count("[") == text.count("]")
    quoted = text.count('"') % 2 == 0 and text.count("'") % 2 == 0
    if text and balanced and quoted and "%" not in text and not _FOREIGN.search(text):
        return True
    build.report(
        "MLT0204",
        f"{text!r} is not an expression that Envoy can evaluate; it is left out",
        config.origin(path),
        "use Envoy's attributes: request.*, response.*, connection.*, source.*, destination.*",
    )
    return False


def _applies(mode: str | None, side: Side) -> bool:
    return mode in (None, "CLIENT_AND_SERVER", _MODE[side])


def metering(build: Build, side: Side) -> Metering:
    """The metrics of one side."""
    mesh = build.context.mesh
    names = mesh.default_providers.metrics if mesh.default_providers is not None else ()
    providers: tuple[str, ...] = names or ("prometheus",)
    off: dict[str, bool] = {}
    labels: list[LabelChange] = []
    for config in levels(build):
        for index, entry in enumerate(config.spec.metrics):
            if entry.providers:
                providers = tuple(provider.name for provider in entry.providers)
            _overrides(build, config, index, entry, side, off, labels)
    kinds = {p.name: p for p in mesh.extension_providers}
    enabled = any(name in kinds and kinds[name].prometheus is not None for name in providers)
    return Metering(
        enabled, tuple(sorted(name for name, value in off.items() if value)), tuple(labels)
    )


def _overrides(
    build: Build,
    config: Config[Telemetry],
    index: int,
    entry: Metrics,
    side: Side,
    off: dict[str, bool],
    labels: list[LabelChange],
) -> None:
    for position, override in enumerate(entry.overrides):
        path = f"spec.metrics[{index}].overrides[{position}]"
        match = override.match
        if match is not None and not _applies(match.mode, side):
            continue
        metric = _metric(build, config, override, path)
        if metric is None:
            continue
        names = [metric] if metric else list(METRIC_NAMES.values())
        if override.disabled is not None:
            off.update(dict.fromkeys(names, override.disabled))
        for label, change in sorted(override.tag_overrides.items()):
            if change.operation == "REMOVE":
                labels.append(LabelChange(metric, label))
            elif valid_expression(build, change.value, config, f"{path}.tagOverrides.{label}"):
                labels.append(LabelChange(metric, label, change.value))


def _metric(
    build: Build, config: Config[Telemetry], override: MetricsOverrides, path: str
) -> str | None:
    """The metric's name, '' for all, None for one that is not there."""
    match = override.match
    if match is None or (match.metric in (None, "ALL_METRICS") and not match.custom_metric):
        return ""
    name = match.custom_metric or match.metric or ""
    if name in METRIC_NAMES:
        return METRIC_NAMES[name]
    if name in METRIC_NAMES.values():
        return name
    build.report(
        "MLT0203",
        f"metric {name} is not kept by these proxies"
        if name in _UNCOUNTED
        else f"there is no metric {name}",
        config.origin(f"{path}.match"),
        f"one of {', '.join(METRIC_NAMES)}",
    )
    return None


def logging_rules(build: Build, side: Side) -> list[Logging] | None:
    """The access logs of one side; None when no Telemetry says anything, so that the mesh's own settings hold."""
    mesh = build.context.mesh
    names = mesh.default_providers.access_logging if mesh.default_providers is not None else ()
    found: list[Logging] | None = [Logging(name) for name in names] if names else None
    default = names or ("envoy",)
    for config in levels(build):
        entries = [
            entry
            for entry in config.spec.access_logging
            if _applies(entry.match.mode if entry.match is not None else None, side)
        ]
        if entries:
            found = _logs(build, config, entries, default, found)
    return found


def _logs(
    build: Build,
    config: Config[Telemetry],
    entries: list[AccessLogging],
    default: tuple[str, ...],
    inherited: list[Logging] | None,
) -> list[Logging]:
    """One level's logs: it replaces what it inherits; a disabled provider is taken out."""
    known = [log.provider for log in inherited] if inherited is not None else list(default)
    made: dict[str, Logging] = {}
    for entry in entries:
        names = [provider.name for provider in entry.providers] or known
        for name in names:
            if entry.disabled:
                made.pop(name, None)
                continue
            text = entry.filter.expression if entry.filter is not None else ""
            if text and not valid_expression(build, text, config, "spec.accessLogging"):
                continue
            made[name] = Logging(name, text, config)
    return list(made.values())


def span_rules(build: Build, side: Side) -> SpanRules:
    """The tracing of one side."""
    mesh = build.context.mesh
    rules = SpanRules(mesh.default_providers.tracing if mesh.default_providers is not None else ())
    for config in levels(build):
        for entry in config.spec.tracing:
            if _applies(entry.match.mode if entry.match is not None else None, side):
                rules = _overlay(rules, entry, config)
    return rules


def _pick(new: bool | None, old: bool, meaning: Literal[True, False] = True) -> bool:
    return old if new is None else new is meaning


def _overlay(rules: SpanRules, entry: Tracing, config: Config[Telemetry]) -> SpanRules:
    return SpanRules(
        providers=tuple(p.name for p in entry.providers) or rules.providers,
        sampling=rules.sampling
        if entry.random_sampling_percentage is None
        else entry.random_sampling_percentage,
        off=_pick(entry.disable_span_reporting, rules.off),
        by_request_id=_pick(entry.use_request_id_for_trace_sampling, rules.by_request_id),
        istio_tags=rules.istio_tags if entry.enable_istio_tags is None else entry.enable_istio_tags,
        tags=tuple(sorted({**dict(rules.tags), **entry.custom_tags}.items())),
        config=config,
    )
