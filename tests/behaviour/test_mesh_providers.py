"""Where proxies send their logs and traces as the mesh configuration says: what a real Envoy has of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

TARGET = "service: details.default.svc.cluster.local, port: 7070"
CLUSTER = "outbound|7070||details.default.svc.cluster.local"


def manager_of(shop: Mesh) -> dict[str, Any]:
    """The caller's connection manager of port 9080."""
    return filter_of(shop, "0.0.0.0_9080", "http_connection_manager")


def filter_of(shop: Mesh, listener: str, name: str) -> dict[str, Any]:
    """The first filter of a name in a listener of the caller."""
    for config in shop.config("caller")["configs"]:
        for entry in config.get("dynamic_listeners", ()):
            if entry["name"] == listener:
                for chain in entry["active_state"]["listener"]["filter_chains"]:
                    for found in chain["filters"]:
                        if found["name"].endswith(name):
                            made: dict[str, Any] = found["typed_config"]
                            return made
    raise AssertionError(f"{listener} has no {name}")


def traced(shop: Mesh, provider: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tracing, its provider) of the caller, with one provider for the whole mesh."""
    shop.apply(
        mesh_config=f"extensionProviders: [{{name: mine, {provider}}}]\ndefaultProviders: {{tracing: [mine]}}"
    )
    found = manager_of(shop)["tracing"]
    return found, found["provider"]["typed_config"]


HEADERS = "[{name: x-key, value: k}, {name: x-token, envName: TOKEN}]"


def pairs(headers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Names and values of header options, or of plain headers."""
    return [(h["key"], h["value"]) for h in (entry.get("header", entry) for entry in headers)]


EXPECTED = [("x-key", "k"), ("x-token", "%ENVIRONMENT(TOKEN)%")]


@pytest.mark.covers(
    "MeshConfig.extensionProviders.name",
    "MeshConfig.extensionProviders.zipkin.path",
    "MeshConfig.extensionProviders.zipkin.timeout",
    "MeshConfig.extensionProviders.zipkin.maxTagLength",
    "MeshConfig.extensionProviders.zipkin.traceContextOption",
    "MeshConfig.extensionProviders.zipkin.headers.name",
    "MeshConfig.extensionProviders.zipkin.headers.value",
    "MeshConfig.extensionProviders.zipkin.headers.envName",
    "MeshConfig.defaultProviders.tracing",
)
def test_zipkin(shop: Mesh) -> None:
    tracing, found = traced(
        shop,
        f"zipkin: {{{TARGET}, path: /spans, timeout: 3s, maxTagLength: 99, "
        f"traceContextOption: USE_B3_WITH_W3C_PROPAGATION, headers: {HEADERS}}}",
    )
    assert tracing["max_path_tag_length"] == 99
    assert found["trace_context_option"] == "USE_B3_WITH_W3C_PROPAGATION"
    service = found["collector_service"]
    assert service["http_uri"]["uri"] == "http://details.default.svc.cluster.local/spans"
    assert (service["http_uri"]["cluster"], service["http_uri"]["timeout"]) == (CLUSTER, "3s")
    assert pairs(service["request_headers_to_add"]) == EXPECTED


@pytest.mark.covers(
    "MeshConfig.extensionProviders.opentelemetry.maxTagLength",
    "MeshConfig.extensionProviders.opentelemetry.grpc.timeout",
    "MeshConfig.extensionProviders.opentelemetry.grpc.initialMetadata.name",
    "MeshConfig.extensionProviders.opentelemetry.grpc.initialMetadata.value",
    "MeshConfig.extensionProviders.opentelemetry.grpc.initialMetadata.envName",
    "MeshConfig.extensionProviders.opentelemetry.http.timeout",
    "MeshConfig.extensionProviders.opentelemetry.http.headers.envName",
)
def test_opentelemetry(shop: Mesh) -> None:
    more = f"grpc: {{timeout: 3s, initialMetadata: {HEADERS}}}"
    tracing, found = traced(shop, f"opentelemetry: {{{TARGET}, maxTagLength: 98, {more}}}")
    assert tracing["max_path_tag_length"] == 98
    service = found["grpc_service"]
    assert (service["envoy_grpc"]["cluster_name"], service["timeout"]) == (CLUSTER, "3s")
    assert pairs(service["initial_metadata"]) == EXPECTED
    more = f"http: {{path: /v1/traces, timeout: 4s, headers: {HEADERS}}}"
    _, found = traced(shop, f"opentelemetry: {{{TARGET}, {more}}}")
    assert found["http_service"]["http_uri"]["timeout"] == "4s"
    assert pairs(found["http_service"]["request_headers_to_add"]) == EXPECTED


@pytest.mark.covers(
    "MeshConfig.extensionProviders.datadog.service",
    "MeshConfig.extensionProviders.datadog.port",
    "MeshConfig.extensionProviders.datadog.maxTagLength",
)
def test_datadog(shop: Mesh) -> None:
    tracing, found = traced(shop, f"datadog: {{{TARGET}, maxTagLength: 97}}")
    assert (tracing["max_path_tag_length"], found["collector_cluster"]) == (97, CLUSTER)


@pytest.mark.covers(
    "MeshConfig.extensionProviders.skywalking.service",
    "MeshConfig.extensionProviders.skywalking.port",
    "MeshConfig.extensionProviders.skywalking.accessToken",
)
def test_skywalking(shop: Mesh) -> None:
    _, found = traced(shop, f"skywalking: {{{TARGET}, accessToken: secret}}")
    assert found["grpc_service"]["envoy_grpc"]["cluster_name"] == CLUSTER
    assert found["client_config"]["backend_token"] == "[redacted]"


@pytest.mark.covers(
    "MeshConfig.extensionProviders.opentelemetry.resourceDetectors.environment",
    "MeshConfig.extensionProviders.opentelemetry.resourceDetectors.dynatrace",
)
def test_spans_tell_what_detectors_find(shop: Mesh) -> None:
    """From OTEL_RESOURCE_ATTRIBUTES in the proxy's environment, and from Dynatrace's own files."""
    more = "resourceDetectors: {environment: {}, dynatrace: {}}"
    _, found = traced(shop, f"opentelemetry: {{{TARGET}, {more}}}")
    names = [detector["name"].rpartition(".")[2] for detector in found["resource_detectors"]]
    assert names == ["environment", "dynatrace"]


@pytest.mark.covers(
    "MeshConfig.enableTracing",
    "MeshConfig.defaultConfig.tracing.zipkin.address",
    "MeshConfig.defaultConfig.tracing.datadog.address",
    "MeshConfig.defaultConfig.tracing.sampling",
    "MeshConfig.defaultConfig.tracing.maxPathTagLength",
    "MeshConfig.defaultConfig.tracing.enableIstioTags",
    "MeshConfig.defaultConfig.tracing.customTags.literal.value",
    "MeshConfig.defaultConfig.tracing.customTags.environment.name",
    "MeshConfig.defaultConfig.tracing.customTags.environment.defaultValue",
    "MeshConfig.defaultConfig.tracing.customTags.header.name",
    "MeshConfig.defaultConfig.tracing.customTags.header.defaultValue",
    "MeshConfig.defaultConfig.tracing.customTags.formatter.value",
)
def test_tracing_of_the_proxies_own_settings(shop: Mesh) -> None:
    config = (
        "defaultConfig: {{tracing: {{{kind}: {{address: details.default:9080}}, sampling: 42, maxPathTagLength: 96, "
        "enableIstioTags: false, customTags: {{a: {{literal: {{value: one}}}}, "
        "b: {{environment: {{name: TWO, defaultValue: two}}}}, c: {{header: {{name: x-c, defaultValue: three}}}}, "
        "d: {{formatter: {{value: '%PROTOCOL%'}}}}}}}}}}"
    )
    shop.apply(mesh_config=config.format(kind="zipkin"))
    found = manager_of(shop)["tracing"]
    assert found["provider"]["name"] == "envoy.tracers.zipkin"
    assert found["provider"]["typed_config"]["collector_cluster"] == CLUSTER.replace("7070", "9080")
    assert found["random_sampling"]["value"] == 42
    assert found["max_path_tag_length"] == 96
    assert found["custom_tags"] == [
        {"tag": "a", "literal": {"value": "one"}},
        {"tag": "b", "environment": {"name": "TWO", "default_value": "two"}},
        {"tag": "c", "request_header": {"name": "x-c", "default_value": "three"}},
        {"tag": "d", "value": "%PROTOCOL%"},
    ]
    shop.apply(mesh_config=config.format(kind="datadog"))
    assert manager_of(shop)["tracing"]["provider"]["name"] == "envoy.tracers.datadog"
    shop.apply(mesh_config=config.format(kind="zipkin") + "\nenableTracing: false")
    assert "provider" not in manager_of(shop).get("tracing", {})


def logged(shop: Mesh, provider: str, *, http: bool) -> dict[str, Any]:
    """The one access log of the caller's connections of a kind."""
    shop.apply(
        mesh_config=f"extensionProviders: [{{name: mine, {provider}}}]\ndefaultProviders: {{accessLogging: [mine]}}"
    )
    place = manager_of(shop) if http else filter_of(shop, "virtualOutbound", "tcp_proxy")
    logs = [entry for entry in place["access_log"] if "mine" in str(entry) or CLUSTER in str(entry)]
    made: dict[str, Any] = logs[0]["typed_config"]
    return made


@pytest.mark.covers(
    "MeshConfig.defaultProviders.accessLogging",
    "MeshConfig.extensionProviders.envoyHttpAls.service",
    "MeshConfig.extensionProviders.envoyHttpAls.port",
    "MeshConfig.extensionProviders.envoyHttpAls.logName",
    "MeshConfig.extensionProviders.envoyHttpAls.filterStateObjectsToLog",
    "MeshConfig.extensionProviders.envoyHttpAls.additionalRequestHeadersToLog",
    "MeshConfig.extensionProviders.envoyHttpAls.additionalResponseHeadersToLog",
    "MeshConfig.extensionProviders.envoyHttpAls.additionalResponseTrailersToLog",
)
def test_log_service_of_http(shop: Mesh) -> None:
    found = logged(
        shop,
        f"envoyHttpAls: {{{TARGET}, logName: shop, filterStateObjectsToLog: [s], additionalRequestHeadersToLog: [x-a], "
        "additionalResponseHeadersToLog: [x-b], additionalResponseTrailersToLog: [x-c]}",
        http=True,
    )
    common = found["common_config"]
    assert common["log_name"] == "shop"
    assert common["grpc_service"]["envoy_grpc"]["cluster_name"] == CLUSTER
    assert common["filter_state_objects_to_log"] == ["s"]
    assert found["additional_request_headers_to_log"] == ["x-a"]
    assert found["additional_response_headers_to_log"] == ["x-b"]
    assert found["additional_response_trailers_to_log"] == ["x-c"]


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyTcpAls.service",
    "MeshConfig.extensionProviders.envoyTcpAls.port",
    "MeshConfig.extensionProviders.envoyTcpAls.logName",
    "MeshConfig.extensionProviders.envoyTcpAls.filterStateObjectsToLog",
)
def test_log_service_of_tcp(shop: Mesh) -> None:
    provider = f"envoyTcpAls: {{{TARGET}, logName: shop, filterStateObjectsToLog: [s]}}"
    common = logged(shop, provider, http=False)["common_config"]
    assert common["log_name"] == "shop"
    assert common["grpc_service"]["envoy_grpc"]["cluster_name"] == CLUSTER
    assert common["filter_state_objects_to_log"] == ["s"]


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyOtelAls.service",
    "MeshConfig.extensionProviders.envoyOtelAls.port",
    "MeshConfig.extensionProviders.envoyOtelAls.logName",
    "MeshConfig.extensionProviders.envoyOtelAls.logFormat.text",
    "MeshConfig.extensionProviders.envoyOtelAls.logFormat.labels",
)
def test_log_service_of_opentelemetry(shop: Mesh) -> None:
    for given in ("{text: 'T %PROTOCOL%'}", "{labels: {a: 'T %PROTOCOL%'}}"):
        more = f"logName: shop, logFormat: {given}"
        found = logged(shop, f"envoyOtelAls: {{{TARGET}, {more}}}", http=True)
        assert "shop" in str(found) and CLUSTER in str(found)
        assert ("body" if "text" in given else "attributes") in found
        assert "T %PROTOCOL%" in str(found)


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyFileAccessLog.logFormat.text",
    "MeshConfig.extensionProviders.envoyFileAccessLog.omitEmptyValues",
)
def test_log_file(shop: Mesh, tmp_path: Path) -> None:
    more = "omitEmptyValues: true, logFormat: {text: 'T %PROTOCOL%'}"
    provider = f"envoyFileAccessLog: {{path: {tmp_path}/mine.log, {more}}}"
    found = logged(shop, provider, http=True)
    assert found["log_format"]["text_format_source"]["inline_string"] == "T %PROTOCOL%\n"
    assert found["log_format"]["omit_empty_values"] is True
