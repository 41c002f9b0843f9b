"""Telemetry on real Envoys: metrics that are off or relabelled, access logs with conditions, traces that arrive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy_rig import Backend, Envoy, fetch, free_port, wait_for
from live import running
from mesh_world import World, build_world, pod, service

pytestmark = pytest.mark.envoy


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """The application; it also takes traces."""
    made = Backend("app")
    yield made
    made.close()


def _telemetry(spec: str, name: str = "t", namespace: str = "default", selector: str = "") -> str:
    chosen = f"  selector: {{matchLabels: {{{selector}}}}}\n" if selector else ""
    return f"""
---
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {{name: {name}, namespace: {namespace}}}
spec:
{chosen}{spec}
"""


def _world(backend: Backend, rules: str, mesh: str = "") -> World:
    return build_world(
        service("web", ("http", 9080, backend.port))
        + pod("web", "127.0.0.1", mtls=False)
        + service("collector", ("http", 9411, backend.port), ip="10.96.0.2", app="web")
        + pod("client", "10.1.0.6")
        + rules,
        mesh=mesh,
    )


def _labels(envoy: Envoy, name: str) -> list[str]:
    return envoy.stats(f"istio_{name}[{{_]")


@pytest.mark.covers(
    "Telemetry.metrics.providers.name",
    "Telemetry.metrics.overrides.match.metric",
    "Telemetry.metrics.overrides.match.mode",
    "Telemetry.metrics.overrides.disabled",
    "Telemetry.metrics.overrides.tagOverrides.operation",
    "Telemetry.metrics.overrides.tagOverrides.value",
)
def test_metrics_are_disabled_and_relabelled(tmp_path: Path, backend: Backend) -> None:
    """One metric off, one label removed, one set from the request, one from a constant."""
    world = _world(
        backend,
        _telemetry("""  metrics:
  - providers: [{name: prometheus}]
    overrides:
    - match: {metric: REQUEST_DURATION, mode: CLIENT}
      disabled: true
    - match: {metric: REQUEST_COUNT}
      tagOverrides:
        source_version: {operation: REMOVE}
        request_host: {value: request.host}
        fixed: {value: '"abc"'}
"""),
    )
    assert not world.findings
    assert not world.ir("client").findings
    port = free_port()
    with running(tmp_path, world, "client", {"0.0.0.0_9080": [("127.0.0.1", port)]}) as envoy:
        fetch(port, "/", host="web")
        lines = wait_for("the counter", lambda: _labels(envoy, "requests_total"))
        assert any('request_host="web"' in line and 'fixed="abc"' in line for line in lines)
        assert not any("source_version=" in line for line in lines)
        wait_for("the histogram", lambda: _labels(envoy, "request_bytes"))
        assert not _labels(envoy, "request_duration_milliseconds")


@pytest.mark.covers(
    "Telemetry.selector.matchLabels", "Telemetry.metrics.overrides.match.metric=ALL_METRICS"
)
def test_all_metrics_off(tmp_path: Path, backend: Backend) -> None:
    """The nearer level decides: off for the namespace, on again for the workload."""
    off = _telemetry("  metrics: [{overrides: [{disabled: true}]}]")
    again = _telemetry(
        "  metrics: [{overrides: [{match: {metric: ALL_METRICS}, disabled: false}]}]",
        name="mine",
        selector="app: client",
    )
    for name, rules, expected in (("a", off, False), ("b", off + again, True)):
        port = free_port()
        places = {"0.0.0.0_9080": [("127.0.0.1", port)]}
        with running(tmp_path / name, _world(backend, rules), "client", places) as envoy:
            fetch(port, "/", host="web")
            assert bool(_labels(envoy, "requests_total")) is expected


@pytest.mark.covers(
    "Telemetry.accessLogging.providers.name",
    "Telemetry.accessLogging.match.mode",
    "Telemetry.accessLogging.filter.expression",
    "MeshConfig.extensionProviders.envoyFileAccessLog.path",
    "MeshConfig.extensionProviders.envoyFileAccessLog.logFormat.labels",
)
def test_access_log_with_a_condition(tmp_path: Path, backend: Backend) -> None:
    """Only what the expression is true for, in the provider's format."""
    path = tmp_path / "access.log"
    mesh = f"""
extensionProviders:
- name: mine
  envoyFileAccessLog: {{path: {path}, logFormat: {{labels: {{code: "%RESPONSE_CODE%", path: "%REQ(:PATH)%"}}}}}}
- name: prometheus
  prometheus: {{}}
"""
    world = _world(
        backend,
        _telemetry("""  accessLogging:
  - providers: [{name: mine}]
    match: {mode: CLIENT}
    filter: {expression: "response.code == 200 && request.url_path.startsWith('/yes')"}
"""),
        mesh,
    )
    assert not world.ir("client").findings
    port = free_port()
    with running(tmp_path / "e", world, "client", {"0.0.0.0_9080": [("127.0.0.1", port)]}):
        fetch(port, "/no", host="web")
        fetch(port, "/yes/1", host="web")
        text = wait_for("a line", lambda: path.exists() and path.read_text())
        assert [json.loads(line) for line in text.splitlines()] == [{"code": 200, "path": "/yes/1"}]


@pytest.mark.covers("Telemetry.accessLogging.disabled")
def test_access_log_off(tmp_path: Path, backend: Backend) -> None:
    """``disabled`` wins over the mesh's accessLogFile."""
    path = tmp_path / "access.log"
    world = _world(
        backend, _telemetry("  accessLogging: [{disabled: true}]"), f"accessLogFile: {path}"
    )
    logs = [
        log
        for listener in world.ir("client").listeners
        for chain in listener.chains
        for entry in chain.filters
        for log in getattr(entry, "access_logs", ())
    ]
    assert not any(type(log).__name__ == "FileLog" for log in logs)
    assert logs


PROVIDERS = """
extensionProviders:
- name: zipkin
  zipkin: {service: collector.default.svc.cluster.local, port: 9411}
- name: otel
  opentelemetry: {service: collector.default.svc.cluster.local, port: 9411, http: {path: /v1/traces, timeout: 5s, headers: [{name: x-key, value: k}]}}
- name: prometheus
  prometheus: {}
"""


@pytest.mark.covers(
    "Telemetry.tracing.providers.name",
    "Telemetry.tracing.randomSamplingPercentage",
    "Telemetry.tracing.customTags.literal.value",
    "Telemetry.tracing.customTags.header.name",
    "MeshConfig.extensionProviders.zipkin.service",
    "MeshConfig.extensionProviders.zipkin.port",
    "MeshConfig.extensionProviders.opentelemetry.service",
    "MeshConfig.extensionProviders.opentelemetry.port",
    "MeshConfig.extensionProviders.opentelemetry.http.path",
    "MeshConfig.extensionProviders.opentelemetry.http.headers.name",
    "MeshConfig.extensionProviders.opentelemetry.http.headers.value",
)
@pytest.mark.parametrize(
    ("provider", "path", "header"),
    [("zipkin", "/api/v2/spans", "x-b3-traceid"), ("otel", "/v1/traces", "traceparent")],
)
def test_traces_arrive(tmp_path: Path, provider: str, path: str, header: str) -> None:
    """Every request is traced at 100 percent: context goes on, spans with the tags reach the collector."""
    backend = Backend("app")
    world = _world(
        backend,
        _telemetry(f"""  tracing:
  - providers: [{{name: {provider}}}]
    randomSamplingPercentage: 100
    customTags:
      colour: {{literal: {{value: blue}}}}
      who: {{header: {{name: x-who, defaultValue: nobody}}}}
"""),
        PROVIDERS,
    )
    assert not world.findings
    assert not world.ir("client").findings
    port = free_port()
    places = {"0.0.0.0_9080": [("127.0.0.1", port)]}
    environment = {"MESH_CANONICAL": "client-app"}
    try:
        with running(tmp_path, world, "client", places, environment):
            seen = fetch(port, "/traced", host="web", headers={"x-who": "anna"}).json
            assert header in seen["headers"]
            sent = wait_for(
                "the span", lambda: [e for e in backend.seen if e["path"].startswith(path)]
            )
            for word in ("colour", "blue", "anna", "client-app"):
                assert word in sent[0]["body"]
            if provider == "otel":
                assert sent[0]["headers"]["x-key"] == "k"
    finally:
        backend.close()


def test_nothing_is_sampled_at_zero(tmp_path: Path) -> None:
    """0 percent: the context says not sampled, and nothing is sent."""
    backend = Backend("app")
    world = _world(
        backend,
        _telemetry("  tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 0}]"),
        PROVIDERS,
    )
    port = free_port()
    try:
        with running(tmp_path, world, "client", {"0.0.0.0_9080": [("127.0.0.1", port)]}):
            seen = fetch(port, "/traced", host="web").json
            assert seen["headers"]["x-b3-sampled"] == "0"
    finally:
        backend.close()


def test_what_cannot_be_served_is_reported(backend: Backend) -> None:
    """Providers and expressions that a stock Envoy does not have, metrics that there are not."""
    world = _world(
        backend,
        _telemetry("""  tracing: [{providers: [{name: old}]}]
  accessLogging: [{providers: [{name: nowhere}]}]
  metrics:
  - overrides:
    - match: {metric: GRPC_REQUEST_MESSAGES}
      disabled: true
    - tagOverrides: {zone: {value: "upstream_peer.labels['zone'].value"}}
"""),
        PROVIDERS
        + "- {name: old, lightstep: {service: collector.default.svc.cluster.local, port: 9411}}\n",
    )
    codes = [finding.code for finding in world.ir("client").findings]
    for code in ("MLT0203", "MLT0204", "MLT0205", "MLT0206"):
        assert code in codes


def test_log_services_are_accepted(tmp_path: Path, backend: Backend) -> None:
    """Envoy's own log services and OpenTelemetry's: a real Envoy takes the configuration and serves."""
    target = "service: collector.default.svc.cluster.local, port: 9411"
    mesh = f"""
extensionProviders:
- {{name: h, envoyHttpAls: {{{target}, additionalRequestHeadersToLog: [x-a]}}}}
- {{name: t, envoyTcpAls: {{{target}}}}}
- {{name: o, envoyOtelAls: {{{target}, logFormat: {{labels: {{a: "%PROTOCOL%"}}}}}}}}
"""
    rules = _telemetry("  accessLogging: [{providers: [{name: h}, {name: t}, {name: o}]}]")
    world = _world(backend, rules, mesh)
    port = free_port()
    with running(tmp_path, world, "client", {"0.0.0.0_9080": [("127.0.0.1", port)]}):
        assert fetch(port, "/", host="web").status == 200
