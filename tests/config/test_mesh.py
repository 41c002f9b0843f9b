"""Mesh configuration, proxy configuration, networks, and the webhook's answers."""

from __future__ import annotations

from typing import Any

import msgspec

from meltemi.config.admission import validate_review
from meltemi.config.durations import format_duration, parse_duration
from meltemi.config.mesh import (
    DEFAULT_MESH_CONFIG,
    parse_mesh_config,
    parse_mesh_networks,
    parse_proxy_config,
)
from meltemi.model.mesh import ProxyConfig
from meltemi.model.origin import Level


def test_defaults_hold_where_nothing_is_said() -> None:
    mesh, findings = parse_mesh_config("")
    assert (mesh, findings) == (DEFAULT_MESH_CONFIG, [])
    mesh, findings = parse_mesh_config(
        "defaultConfig: {concurrency: 2}\noutboundTrafficPolicy: {}\n"
    )
    assert findings == []
    assert mesh.default_config == msgspec.structs.replace(ProxyConfig(), concurrency=2)
    assert mesh.outbound_traffic_policy.mode == "ALLOW_ANY"


def test_providers_are_added_to_the_built_in_ones() -> None:
    text = """
extensionProviders:
- name: authz
  envoyExtAuthzGrpc: {service: authz.foo.svc.cluster.local, port: 9000, timeout: 2s}
- name: envoy
  envoyFileAccessLog: {path: /tmp/log}
"""
    mesh, findings = parse_mesh_config(text)
    assert findings == []
    providers = {provider.name: provider for provider in mesh.extension_providers}
    assert list(providers) == ["prometheus", "stackdriver", "envoy", "authz"]
    log, authz = providers["envoy"].envoy_file_access_log, providers["authz"].envoy_ext_authz_grpc
    assert log is not None and log.path == "/tmp/log"
    assert authz is not None and authz.timeout == 2.0


def test_a_wrong_mesh_falls_back_and_says_why() -> None:
    for text, path in (
        ("trustDomain: 'a b'", "trustDomain"),
        ("connectTimeout: soon", "connectTimeout"),
        ("a: [", ""),
        ("outboundTrafficPolicy: {mode: REGISTRY}", "outboundTrafficPolicy.mode"),
        ("extensionProviders: [{name: x}]", "extensionProviders[0]"),
    ):
        mesh, findings = parse_mesh_config(text, "istio.mesh")
        assert mesh == DEFAULT_MESH_CONFIG
        assert findings[0].origin.path == path
        assert findings[0].origin.source == "istio.mesh"


def test_what_this_mesh_does_not_do_is_said_at_its_place() -> None:
    """The rest of the configuration holds; built-in providers move nothing and are not complained about."""
    text = """
hboneIdleTimeout: 5s
ca: {address: ca.example, tlsSettings: {mode: SIMPLE, credentialName: x}}
defaultConfig:
  tracingServiceName: CANONICAL_NAME_ONLY
  tracing: {lightstep: {address: a:1, accessToken: x}, sampling: 5}
extensionProviders:
- name: otel
  opentelemetry: {service: otel.example, port: 4317}
- name: steps
  lightstep: {service: steps.example, port: 443, accessToken: x}
"""
    mesh, findings = parse_mesh_config(text, "istio.mesh")
    assert mesh.ca is not None
    late = [f for f in findings if f.level is Level.INFO]
    assert [(f.origin.path, f.code) for f in late] == [("ca.address", "MLT0012")]
    assert {(f.origin.path, f.code, f.level) for f in findings if f not in late} == {
        (path, "MLT0011", Level.WARNING)
        for path in (
            "hboneIdleTimeout",
            "ca.tlsSettings.credentialName",
            "defaultConfig.tracingServiceName",
            "defaultConfig.tracing.lightstep",
            "extensionProviders[1].lightstep",
        )
    }
    assert all(finding.remedy for finding in findings)


def test_a_json_log_needs_a_json_format() -> None:
    text = "accessLogEncoding: JSON\naccessLogFormat: '%PROTOCOL%'"
    _, (finding,) = parse_mesh_config(text)
    assert (finding.origin.path, finding.level) == ("accessLogFormat", Level.WARNING)


def test_proxy_config_overlays_field_by_field() -> None:
    base = msgspec.structs.replace(ProxyConfig(), concurrency=4, proxy_metadata={"A": "1"})
    proxy, findings = parse_proxy_config("proxyMetadata: {B: '2'}\ndrainDuration: 5s\n", base)
    assert findings == []
    assert (proxy.concurrency, proxy.drain_duration) == (4, 5.0)
    assert proxy.proxy_metadata == {"A": "1", "B": "2"}
    assert parse_proxy_config("drainDuration: soon", base)[0] == base


def test_networks() -> None:
    networks, findings = parse_mesh_networks(
        "networks: {n1: {endpoints: [{fromCidr: 10.0.0.0/8}], gateways: [{address: 1.1.1.1, port: 15443}]}}"
    )
    assert findings == []
    assert networks.networks["n1"].gateways[0].port == 15443
    assert parse_mesh_networks("networks: {n1: {endpoints: [{fromCidr: x}]}}")[1]


def test_durations() -> None:
    for text, seconds in (
        ("1h2m3.5s", 3723.5),
        ("250ms", 0.25),
        ("0", 0.0),
        ("-1s", -1.0),
        ("5us", 5e-6),
    ):
        assert parse_duration(text) == seconds
        assert parse_duration(format_duration(seconds)) == seconds
    for text in ("", "s", "10", "1 s", "1x", "1s1", "9" * 70 + "s", "99999999999h"):
        assert parse_duration(text) is None


def review(spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "a", "namespace": "b"},
        "spec": spec,
    }
    request = {"uid": "u-1", "operation": "CREATE", "namespace": "b", "object": body, **more}
    return validate_review({"apiVersion": "admission.k8s.io/v1", "request": request})["response"]


def test_the_webhook_refuses_with_every_mistake() -> None:
    tls = {"mode": "MUTUAL"}
    answer = review({"host": "a", "subsets": [{"name": "v 1"}], "trafficPolicy": {"tls": tls}})
    assert (answer["uid"], answer["allowed"]) == ("u-1", False)
    message = answer["status"]["message"]
    assert "spec.subsets[0].name" in message
    assert "spec.trafficPolicy.tls.privateKey" in message
    assert answer["status"]["code"] == 422


def test_the_webhook_warns_and_lets_pass() -> None:
    answer = review({"host": "a", "trafficPolicy": {"loadBalancer": {"simple": "LEAST_CONN"}}})
    assert answer["allowed"] is True
    assert "LEAST_REQUEST" in answer["warnings"][0]
    assert review({}, operation="DELETE")["allowed"] is True
    assert review({}, subResource="status")["allowed"] is True
    assert review({})["allowed"] is False


def test_gateways_of_networks_have_no_place() -> None:
    gateway = "{address: 192.0.2.1, port: 15443, locality: eu/a}"
    networks, (finding,) = parse_mesh_networks(f"networks: {{n2: {{gateways: [{gateway}]}}}}")
    assert networks.networks["n2"].gateways[0].port == 15443
    assert finding.origin.path == "networks.n2.gateways[0].locality"
    assert finding.code == "MLT0011"
