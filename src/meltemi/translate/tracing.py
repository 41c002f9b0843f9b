"""Tracing of a connection manager: from Telemetry objects, the mesh's providers, or the proxy configuration."""

from __future__ import annotations

from dataclasses import replace

from meltemi.ir.telemetry import Side, SpanTag, Tracing
from meltemi.model.config import Config
from meltemi.model.mesh import CustomTag as MeshTag
from meltemi.model.origin import Origin
from meltemi.model.providers import EnvHeader, MeshExtensionProvider, ResourceDetectors
from meltemi.model.telemetry import CustomTag, Telemetry
from meltemi.translate.build import Build
from meltemi.translate.log_providers import provider_of, service_cluster
from meltemi.translate.telemetry_rules import SpanRules, span_rules

DEFAULT_SAMPLING = 1.0  # percent; Istio's PILOT_TRACE_SAMPLING
ZIPKIN_PATH = "/api/v2/spans"
OTLP_PATH = "/v1/traces"
# Who recorded the span, from the proxy's environment.
_ISTIO_TAGS = (
    ("istio.canonical_service", "MESH_CANONICAL"),
    ("istio.canonical_revision", "MESH_REVISION"),
    ("istio.namespace", "MESH_NAMESPACE"),
    ("istio.cluster_id", "MESH_CLUSTER"),
)


def tracing_for(build: Build, side: Side) -> Tracing | None:
    """What is traced on one side, or None. Remembered per class, so that what is wrong is reported once."""
    key = ("tracing", build.proxy, side)
    memo = build.context.memo
    if key not in memo:
        memo[key] = _tracing(build, side)
    found = memo[key]
    return found if isinstance(found, Tracing) else None


def _tracing(build: Build, side: Side) -> Tracing | None:
    mesh = build.context.mesh
    if not mesh.enable_tracing:
        return None
    rules = span_rules(build, side)
    if rules.off:
        return None
    if not rules.providers:
        return _from_proxy_config(build, rules)
    name = rules.providers[0]
    provider = provider_of(build, name)
    made: Tracing | str = "there is no extension provider of this name"
    if provider is not None:
        made = _from_provider(build, provider, rules)
    if isinstance(made, Tracing):
        return made
    _report(build, name, made, rules.config)
    return None


def _report(build: Build, name: str, problem: str, config: Config[Telemetry] | None) -> None:
    build.report(
        "MLT0206",
        f"tracing provider {name}: {problem}",
        config.origin("spec.tracing")
        if config is not None
        else Origin("MeshConfig", path="defaultProviders.tracing"),
        "use a zipkin, opentelemetry, datadog or skywalking provider whose service the proxies know",
    )


def _sampling(build: Build, rules: SpanRules) -> float:
    if rules.sampling is not None:
        return rules.sampling
    settings = build.settings.tracing
    return settings.sampling if settings is not None and settings.sampling else DEFAULT_SAMPLING


def _tags(build: Build, rules: SpanRules) -> tuple[SpanTag, ...]:
    made: dict[str, SpanTag] = {}
    settings = build.settings.tracing
    wanted = rules.istio_tags
    if wanted is None and settings is not None:
        wanted = settings.enable_istio_tags
    if wanted is not False:
        made = {name: SpanTag(name, "environment", env) for name, env in _ISTIO_TAGS}
    given: dict[str, MeshTag | CustomTag] = {}
    if settings is not None:
        given.update(settings.custom_tags)
    given.update(rules.tags)
    for name, tag in given.items():
        if tag.literal is not None:
            made[name] = SpanTag(name, "literal", tag.literal.value)
        elif tag.environment is not None:
            source = tag.environment
            made[name] = SpanTag(name, "environment", source.name, source.default_value)
        elif tag.header is not None:
            made[name] = SpanTag(name, "header", tag.header.name, tag.header.default_value)
        elif tag.formatter is not None:
            made[name] = SpanTag(name, "format", tag.formatter.value)
    return tuple(made[name] for name in sorted(made))


def _service_name(build: Build) -> str:
    """The name of the traced service: that of the workload's first Service."""
    target = next(iter(build.proxy.targets), None)
    name = target.service_name if target is not None else ""
    return f"{name}.{build.proxy.namespace}" if name else build.proxy.namespace


def _headers(entries: tuple[EnvHeader, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (entry.name, entry.value if entry.value is not None else f"%ENVIRONMENT({entry.env_name})%")
        for entry in entries
    )


def _make(
    build: Build, rules: SpanRules, kind: str, target: tuple[str, str], path: str, max_path: int
) -> Tracing:
    settings = build.settings.tracing
    return Tracing(
        kind=kind,
        cluster=target[0],
        host=target[1],
        sampling=_sampling(build, rules),
        path=path,
        service_name=_service_name(build),
        tags=_tags(build, rules),
        max_path_length=max_path
        or (settings.max_path_tag_length if settings is not None else 0)
        or 256,
        by_request_id=rules.by_request_id,
    )


def _from_provider(
    build: Build, provider: MeshExtensionProvider, rules: SpanRules
) -> Tracing | str:
    spec = provider.zipkin or provider.opentelemetry or provider.datadog or provider.skywalking
    if spec is None:
        return "it is of a kind that a stock Envoy does not have"
    target = service_cluster(build, spec.service, spec.port)
    if isinstance(target, str):
        return target
    longest = getattr(spec, "max_tag_length", 0)
    if provider.zipkin is not None:
        zipkin = provider.zipkin
        made = _make(build, rules, "zipkin", target, zipkin.path or ZIPKIN_PATH, longest)
        return replace(
            made,
            trace_context=zipkin.trace_context_option,
            timeout_s=zipkin.timeout,
            headers=_headers(zipkin.headers),
        )
    if provider.opentelemetry is not None:
        otel = provider.opentelemetry
        asked = otel.resource_detectors or ResourceDetectors()
        detectors = tuple(
            name for name in ("environment", "dynatrace") if getattr(asked, name) is not None
        )
        if otel.http is not None:
            made = _make(build, rules, "otel_http", target, otel.http.path or OTLP_PATH, longest)
            return replace(
                made,
                timeout_s=otel.http.timeout,
                headers=_headers(otel.http.headers),
                detectors=detectors,
            )
        made = _make(build, rules, "otel_grpc", target, "", longest)
        made = replace(made, detectors=detectors)
        if otel.grpc is not None:
            grpc = otel.grpc
            made = replace(made, timeout_s=grpc.timeout, headers=_headers(grpc.initial_metadata))
        return made
    if provider.skywalking is not None:
        made = _make(build, rules, "skywalking", target, "", longest)
        return replace(made, token=provider.skywalking.access_token)
    return _make(build, rules, "datadog", target, "", longest)


def _from_proxy_config(build: Build, rules: SpanRules) -> Tracing | None:
    """``defaultConfig.tracing``: the older way, with an address in place of a provider."""
    settings = build.settings.tracing
    if settings is None:
        return None
    chosen = settings.zipkin or settings.datadog
    if chosen is None or not chosen.address:
        return None
    host, _, port = chosen.address.rpartition(":")
    target = service_cluster(build, _full_name(build, host), int(port) if port.isdecimal() else 0)
    if isinstance(target, str):
        _report(build, chosen.address, target, None)
        return None
    kind = "zipkin" if settings.zipkin is not None else "datadog"
    return _make(build, rules, kind, target, ZIPKIN_PATH if kind == "zipkin" else "", 0)


def _full_name(build: Build, host: str) -> str:
    """``zipkin.istio-system`` as the Service's full name."""
    if host in build.scope.by_host or host.count(".") != 1:
        return host
    return f"{host}.svc.{build.proxy.dns_domain}"
