"""Mesh configuration text -> ``MeshConfig``, ``ProxyConfig``, ``MeshNetworks``.

In: YAML (ConfigMap ``istio``, keys ``mesh`` and ``meshNetworks``; annotation ``proxy.istio.io/config``). Out: the typed value laid over the
defaults, and findings. Promise: total. When the text cannot be used, the defaults (or the base that was given) come out together with
the findings, so that a running mesh keeps its last good configuration by ignoring the value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from meltemi.config import checks
from meltemi.config.limits import UNSERVED, report_limits
from meltemi.config.reader import Report, decode_spec
from meltemi.config.shapes import record
from meltemi.config.validate_destination_rule import (
    client_tls,
    connection_pool,
    locality,
    outlier_detection,
    zone_aware,
)
from meltemi.config.yaml_source import read_value
from meltemi.model.config import Config, Meta, SourceMap
from meltemi.model.fields import Spec
from meltemi.model.frozen import FrozenMap
from meltemi.model.mesh import DEFAULT_MESH_CONFIG, MeshConfig, MeshNetworks, ProxyConfig
from meltemi.model.origin import Finding, Level, Origin

__all__ = [
    "DEFAULT_MESH_CONFIG",
    "overlay_proxy_config",
    "parse_mesh_config",
    "parse_mesh_networks",
    "parse_proxy_config",
]

SpecT = TypeVar("SpecT", bound=Spec)


def parse_mesh_config(text: str, source: str = "") -> tuple[MeshConfig, list[Finding]]:
    """The mesh configuration. Providers of the text are added to the built-in ones; equal names replace them."""
    given, mesh, report = _read(text, "MeshConfig", MeshConfig, source)
    if mesh is None:
        return DEFAULT_MESH_CONFIG, report.findings
    _check(mesh, report)  # before the built-in providers come in: places are those of the text
    if report.fatal:
        return DEFAULT_MESH_CONFIG, report.findings
    changes: dict[str, Any] = {}
    if mesh.outbound_traffic_policy.mode is None:
        changes["outbound_traffic_policy"] = msgspec.structs.replace(
            mesh.outbound_traffic_policy, mode="ALLOW_ANY"
        )
    if "extensionProviders" in given:
        providers = {p.name: p for p in DEFAULT_MESH_CONFIG.extension_providers}
        providers |= {p.name: p for p in mesh.extension_providers}
        changes["extension_providers"] = tuple(providers.values())
    return msgspec.structs.replace(mesh, **changes), report.findings


def _check(mesh: MeshConfig, report: Report) -> None:
    report_limits("MeshConfig", mesh, "", report)
    checks.duration(mesh.connect_timeout, "connectTimeout", report)
    if mesh.access_log_encoding == "JSON" and mesh.access_log_format:
        _json_format(mesh.access_log_format, report)
    if not checks.is_dns_name(mesh.trust_domain):
        report.error("trustDomain", "is not a domain name", 'as in "cluster.local"')
    for name in ("proxy_listen_port", "proxy_inbound_listen_port"):
        if not getattr(mesh, name):
            report.error(name, "0 is not a port", "use 1 to 65535")
    tls = mesh.outbound_traffic_policy.tls
    client_tls(tls, "outboundTrafficPolicy.tls", report)
    if tls is not None and mesh.outbound_traffic_policy.mode != "ALLOW_ANY_DYNAMIC_DNS":
        text = "has no effect but in mode ALLOW_ANY_DYNAMIC_DNS"
        report.warn("outboundTrafficPolicy.tls", text, "set the mode, or remove it")
    _check_authority(mesh, report)
    for index, entry in enumerate(mesh.ca_certificates):
        if entry.pem and "-----BEGIN CERTIFICATE-----" not in entry.pem:
            where = f"caCertificates[{index}].pem"
            report.warn(where, "holds no certificate", "write one in PEM")
    locality(mesh.locality_lb_setting, "localityLbSetting", report)
    zone_aware(mesh.zone_aware_lb_setting, "zoneAwareLbSetting", report)
    for name, names in (
        ("defaultServiceExportTo", mesh.default_service_export_to),
        ("defaultVirtualServiceExportTo", mesh.default_virtual_service_export_to),
        ("defaultDestinationRuleExportTo", mesh.default_destination_rule_export_to),
    ):
        checks.export_to(names, name, report)
    if mesh.default_traffic_policy is not None:
        policy, path = mesh.default_traffic_policy, "defaultTrafficPolicy"
        connection_pool(policy.connection_pool, f"{path}.connectionPool", report)
        outlier_detection(policy.outlier_detection, f"{path}.outlierDetection", report)
    for index, provider in enumerate(mesh.extension_providers):
        (kinds,) = record(type(provider)).one_of
        if all(getattr(provider, name) is None for name in type(provider).ONE_OF[0]):
            where = f"extensionProviders[{index}]"
            report.error(where, "names no provider", f"set one of {', '.join(kinds)}")


def _check_authority(mesh: MeshConfig, report: Report) -> None:
    """istiod itself speaks to an external authority, with files of its own container."""
    if mesh.ca is None:
        return
    if not mesh.ca.address:
        report.error("ca.address", "is required", "write the authority's host:port, or remove ca")
    tls = mesh.ca.tls_settings
    if tls is None:
        return
    for name, given in (
        ("credentialName", tls.credential_name),
        ("caCertCredentialName", tls.ca_cert_credential_name),
        ("insecureSkipVerify", tls.insecure_skip_verify),
        ("caCrl", tls.ca_crl),
    ):
        if given:
            remedy = "mount files into istiod, and name those that verify in caCertificates"
            report.add(f"ca.tlsSettings.{name}", "has no effect", remedy, Level.WARNING, UNSERVED)
    if tls.mode == "ISTIO_MUTUAL":
        report.error("ca.tlsSettings.mode", "is for proxies", "use MUTUAL with files of istiod's")


def _json_format(text: str, report: Report) -> None:
    try:
        usable = isinstance(json.loads(text), dict)
    except ValueError:
        usable = False
    if not usable:
        remedy = "write an object of JSON, or set accessLogEncoding: TEXT"
        report.warn("accessLogFormat", "is no JSON object, so Istio's own is logged", remedy)


def parse_proxy_config(
    text: str, base: ProxyConfig, source: str = ""
) -> tuple[ProxyConfig, list[Finding]]:
    """Settings of one workload (annotation ``proxy.istio.io/config``) laid over the mesh's."""
    given, proxy, report = _read(text, "ProxyConfig", ProxyConfig, source)
    if proxy is None:
        return base, report.findings
    report_limits("MeshConfig.defaultConfig", proxy, "", report)
    return overlay_proxy_config(base, proxy, given), report.findings


def proxy_config_findings(text: str, place: Origin, base: ProxyConfig) -> list[Finding]:
    """What is wrong or doubtful in the annotation ``proxy.istio.io/config``, at its place: ``place.path`` is the annotation's."""
    return [
        replace(
            finding,
            origin=replace(place, path=".".join(filter(None, (place.path, finding.origin.path)))),
        )
        for finding in parse_proxy_config(text, base)[1]
    ]


def overlay_proxy_config(
    base: ProxyConfig, proxy: ProxyConfig, given: Mapping[str, Any]
) -> ProxyConfig:
    """``base`` with the fields that ``given`` names (wire names) taken from ``proxy``; proxyMetadata is merged by key."""
    changes: dict[str, Any] = {
        field.name: getattr(proxy, field.name)
        for wire, field in record(ProxyConfig).fields.items()
        if given.get(wire) is not None
    }
    if "proxy_metadata" in changes:
        changes["proxy_metadata"] = FrozenMap({**base.proxy_metadata, **proxy.proxy_metadata})
    return msgspec.structs.replace(base, **changes)


# What of a proxy's own settings istiod needs to know; the rest is the agent's.
SHAPING = ("gatewayTopology", "proxyHeaders", "connectionSettings", "tracing")


def shaping_settings(base: ProxyConfig, raw: Mapping[str, Any]) -> ProxyConfig | None:
    """``base`` with those settings of one proxy (as JSON) that shape its traffic; None where they say nothing else."""
    given = {name: raw[name] for name in SHAPING if raw.get(name) is not None}
    if not given:
        return None
    proxy = decode_spec(ProxyConfig, given, "", Report(Config("ProxyConfig", Meta(""), None)))
    if proxy is None:
        return None
    own = {record(ProxyConfig).fields[name].name: name for name in given}
    if all(getattr(proxy, name) == getattr(base, name) for name in own):
        return None
    names = [record(ProxyConfig).fields[wire].name for wire in SHAPING]
    changes = {name: getattr(proxy if name in own else base, name) for name in names}
    return msgspec.structs.replace(ProxyConfig(), **changes)


def parse_mesh_networks(text: str, source: str = "") -> tuple[MeshNetworks, list[Finding]]:
    """Networks of the mesh."""
    _, networks, report = _read(text, "MeshNetworks", MeshNetworks, source)
    if networks is None:
        return MeshNetworks(), report.findings
    report_limits("MeshNetworks", networks, "", report)
    for name, network in networks.networks.items():
        for index, endpoint in enumerate(network.endpoints):
            if endpoint.from_cidr is not None:
                where = f"networks.{name}.endpoints[{index}].fromCidr"
                checks.cidr(endpoint.from_cidr, where, report)
        for index, gateway in enumerate(network.gateways):
            where = f"networks.{name}.gateways[{index}]"
            if gateway.address is None and gateway.registry_service_name is None:
                report.error(where, "names no gateway", "set address or registryServiceName")
            if not gateway.port:
                report.error(f"{where}.port", "is required", "use 1 to 65535")
    return (MeshNetworks() if report.fatal else networks), report.findings


def _read(
    text: str, kind: str, cls: type[SpecT], source: str
) -> tuple[Mapping[str, Any], SpecT | None, Report]:
    """Parse and decode one value that is not an object: (as written, typed or None, report)."""
    value, lines, findings = read_value(text, source)
    report = Report(Config(kind, Meta(""), None, SourceMap(source, lines)))
    report.findings.extend(findings)
    if any(finding.level is Level.ERROR for finding in findings):
        return {}, None, report
    value = {} if value is None else value
    spec = decode_spec(cls, value, "", report)
    return (value if isinstance(value, Mapping) else {}), spec, report
