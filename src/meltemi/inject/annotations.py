"""The pod's own wishes about its proxy: annotations.

In: annotations, ``InjectionConfig``, the mesh's ProxyConfig. Out: ``PodSettings``, and errors (which refuse
the pod: starting it with a proxy that ignores what was asked would be worse). Names are Istio's.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from meltemi.config.encode import as_json
from meltemi.config.proxy_config import ANNOTATION as PROXY_CONFIG
from meltemi.config.proxy_config import overlay, with_objects
from meltemi.config.reader import Report, decode_spec
from meltemi.inject.settings import InjectionConfig
from meltemi.model.config import Config, Meta
from meltemi.model.mesh import ProxyConfig
from meltemi.model.topology import ProxyConfigSpec

SIDECAR = "sidecar.istio.io/"
TRAFFIC = "traffic.sidecar.istio.io/"
STATUS_PORT = "status.sidecar.istio.io/port"
READINESS = "readiness.status.sidecar.istio.io/"
_QUANTITY = re.compile(r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")
_LEVELS = ("trace", "debug", "info", "warning", "warn", "error", "critical", "off")


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What a pod's annotations, its namespace's and the mesh's settings come to. Ports are numbers."""

    image: str
    resources: Mapping[str, Any]
    proxy_config: Mapping[str, Any]
    interception_mode: str = "REDIRECT"
    log_level: str = "warning"
    component_log_level: str = "misc:error"
    agent_log_level: str = "default:info"
    status_port: int = 15020
    health_port: int = 15021
    rewrite_probes: bool = True
    hold_application: bool = False
    native_sidecar: bool = False
    include_cidrs: str = "*"
    exclude_cidrs: str = ""
    include_inbound_ports: str = "*"
    exclude_inbound_ports: str = ""
    include_outbound_ports: str = ""
    exclude_outbound_ports: str = ""
    bootstrap_override: str = ""
    user_volumes: tuple[Mapping[str, Any], ...] = ()
    user_mounts: tuple[Mapping[str, Any], ...] = ()
    readiness: Mapping[str, int] = field(default_factory=dict)
    merge_metrics: bool = True


class _Annotations:
    """Typed reads; every wrong value becomes an error that quotes it."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values
        self.errors: list[str] = []

    def wrong(self, name: str, remedy: str) -> None:
        self.errors.append(f'annotation {name}: "{self.values[name]}" {remedy}')

    def text(self, name: str, default: str) -> str:
        return str(self.values.get(name, default))

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if name in self.values and value not in choices:
            self.wrong(name, f"is not one of {', '.join(choices)}")
            return default
        return value

    def boolean(self, name: str, default: bool) -> bool:
        text = str(self.values.get(name, default)).lower()
        if text not in ("true", "false"):
            self.wrong(name, 'is neither "true" nor "false"')
            return default
        return text == "true"

    def number(self, name: str, default: int, least: int = 0, most: int = 2**31 - 1) -> int:
        text = str(self.values.get(name, default))
        if not (text.isascii() and text.isdecimal() and least <= int(text) <= most):
            self.wrong(name, f"is not a whole number from {least} to {most}")
            return default
        return int(text)

    def ports(self, name: str, default: str, wildcard: bool = False) -> str:
        if name not in self.values:
            return default
        items = [part.strip() for part in self.values[name].split(",") if part.strip()]
        if wildcard and items == ["*"]:
            return "*"
        for item in items:
            if not (item.isascii() and item.isdecimal() and 0 < int(item) < 65536):
                self.wrong(name, f"has '{item}', which is not a port from 1 to 65535")
                return default
        return ",".join(items)

    def cidrs(self, name: str, default: str, wildcard: bool = False) -> str:
        if name not in self.values:
            return default
        items = [part.strip() for part in self.values[name].split(",") if part.strip()]
        if wildcard and items == ["*"]:
            return "*"
        for item in items:
            try:
                ipaddress.ip_network(item, strict=False)
            except ValueError:
                self.wrong(name, f"has '{item}', which is not a range such as 10.0.0.0/8")
                return default
        return ",".join(items)

    def quantity(self, name: str) -> str:
        text = self.text(name, "")
        if text and not _QUANTITY.match(text):
            self.wrong(name, "is not a Kubernetes quantity such as 100m or 128Mi")
            return ""
        return text

    def named(self, name: str, key: str) -> tuple[Mapping[str, Any], ...]:
        """A JSON list of objects, or a JSON object of them by ``name``."""
        if name not in self.values:
            return ()
        try:
            value = json.loads(self.values[name])
        except ValueError:
            self.wrong(name, f'is not JSON; write a list of objects with "{key}"')
            return ()
        if isinstance(value, Mapping):
            value = [{"name": k, **v} for k, v in value.items() if isinstance(v, Mapping)]
        if not isinstance(value, list) or not all(
            isinstance(item, Mapping) and isinstance(item.get(key), str) for item in value
        ):
            self.wrong(name, f'is not a list of objects with "{key}"')
            return ()
        return tuple(value)


def _merge_config(
    base: dict[str, Any], annotations: _Annotations, warnings: list[str]
) -> dict[str, Any]:
    text = annotations.values.get(PROXY_CONFIG)
    if text is None:
        return base
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        annotations.errors.append(f"annotation {PROXY_CONFIG} is not YAML: {error}")
        return base
    if not isinstance(value, dict):
        annotations.wrong(PROXY_CONFIG, "is not a mapping of ProxyConfig fields")
        return base
    report = Report(Config("Pod", Meta(name=""), None))
    decode_spec(ProxyConfig, value, "", report)
    sink = annotations.errors if report.fatal else warnings
    for finding in report.findings:
        tail = f" ({finding.remedy})" if finding.remedy else ""
        sink.append(f"annotation {PROXY_CONFIG}: {finding.origin.path} {finding.text}{tail}")
    return overlay(base, value)


def _resources(annotations: _Annotations, config: InjectionConfig) -> Mapping[str, Any]:
    """Any annotation replaces all of the installation's numbers, as in Istio."""
    asked: dict[str, dict[str, str]] = {}
    for suffix, part in (("", "requests"), ("Limit", "limits")):
        for name, key in (("proxyCPU", "cpu"), ("proxyMemory", "memory")):
            value = annotations.quantity(f"{SIDECAR}{name}{suffix}")
            if value:
                asked.setdefault(part, {})[key] = value
    return asked or config.resources


def _image(annotations: _Annotations, config: InjectionConfig, proxy: Mapping[str, Any]) -> str:
    chosen = annotations.text(f"{SIDECAR}proxyImage", "")
    if chosen:
        return chosen
    if "/" in config.image:
        return config.image
    kind = (proxy.get("image") or {}).get("imageType", "")
    kind = annotations.text(f"{SIDECAR}proxyImageType", kind)
    suffix = f"-{kind}" if kind and kind != "default" else ""
    return f"{config.hub}/{config.image}:{config.tag}{suffix}"


def read_annotations(
    values: Mapping[str, str],
    config: InjectionConfig,
    mesh: ProxyConfig,
    merge_metrics: bool,
    objects: Iterable[ProxyConfigSpec] = (),
) -> tuple[PodSettings, list[str], list[str]]:
    """The settings, errors that refuse the pod, and warnings. ``objects`` are the ProxyConfigs that concern it."""
    read = _Annotations(values)
    warnings: list[str] = []
    proxy = with_objects(_merge_config(as_json(mesh), read, warnings), objects)
    mode = str(proxy.get("interceptionMode") or "REDIRECT")
    mode = read.choice(f"{SIDECAR}interceptionMode", mode, ("REDIRECT", "TPROXY", "NONE"))
    if mode == "TPROXY":
        read.errors.append(
            "interception mode TPROXY is not available; write REDIRECT (or NONE) in annotation "
            f"{SIDECAR}interceptionMode or in interceptionMode of the mesh"
        )
    status_port = read.number(STATUS_PORT, int(proxy.get("statusPort") or 15020), 1, 65535)
    proxy = {**proxy, "interceptionMode": mode, "statusPort": status_port}
    override = read.text(f"{SIDECAR}bootstrapOverride", "")
    settings = PodSettings(
        image=_image(read, config, proxy),
        resources=_resources(read, config),
        proxy_config=proxy,
        interception_mode=mode,
        log_level=read.choice(f"{SIDECAR}logLevel", config.log_level, _LEVELS),
        component_log_level=read.text(f"{SIDECAR}componentLogLevel", config.component_log_level),
        agent_log_level=read.text(f"{SIDECAR}agentLogLevel", config.agent_log_level),
        status_port=status_port,
        rewrite_probes=read.boolean(f"{SIDECAR}rewriteAppHTTPProbers", config.rewrite_probes),
        hold_application=bool(
            proxy.get("holdApplicationUntilProxyStarts", config.hold_application)
        ),
        native_sidecar=read.boolean(f"{SIDECAR}nativeSidecar", config.native_sidecar),
        include_cidrs=read.cidrs(f"{TRAFFIC}includeOutboundIPRanges", config.include_cidrs, True),
        exclude_cidrs=read.cidrs(f"{TRAFFIC}excludeOutboundIPRanges", config.exclude_cidrs),
        include_inbound_ports=read.ports(
            f"{TRAFFIC}includeInboundPorts", config.include_inbound_ports, True
        ),
        exclude_inbound_ports=read.ports(
            f"{TRAFFIC}excludeInboundPorts", config.exclude_inbound_ports
        ),
        include_outbound_ports=read.ports(
            f"{TRAFFIC}includeOutboundPorts", config.include_outbound_ports
        ),
        exclude_outbound_ports=read.ports(
            f"{TRAFFIC}excludeOutboundPorts", config.exclude_outbound_ports
        ),
        bootstrap_override=override,
        user_volumes=read.named(f"{SIDECAR}userVolume", "name"),
        user_mounts=read.named(f"{SIDECAR}userVolumeMount", "name"),
        readiness={
            key: read.number(f"{READINESS}{key}", default)
            for key, default in (
                ("initialDelaySeconds", config.readiness_delay_s),
                ("periodSeconds", config.readiness_period_s),
                ("failureThreshold", config.readiness_failures),
            )
        },
        merge_metrics=read.boolean("prometheus.istio.io/merge-metrics", merge_metrics),
    )
    return settings, read.errors, warnings
