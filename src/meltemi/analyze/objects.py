"""Analyzers of Gateways, Services, namespaces, pods, policies and annotations."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from meltemi.analyze.context import Analysis
from meltemi.config.paths import item
from meltemi.config.reader import nearest
from meltemi.model import kubernetes as k8s
from meltemi.model.config import Config
from meltemi.registry.protocol import follows_naming

_SYSTEM = (
    "kube-system",
    "kube-public",
    "kube-node-lease",
    "istio-system",
    "istio-operator",
    "local-path-storage",
)
_PROXY = "istio-proxy"


def analyze_gateway_pods(context: Analysis) -> None:
    """A Gateway selects pods (IST0101) whose Services have its ports (IST0162). Needs a whole cluster."""
    if not context.whole:
        return
    for config in context.of("Gateway"):
        if not config.spec.selector:
            continue
        pods = context.workloads("", config.spec.selector)
        if not pods:
            labels = ",".join(f"{key}={value}" for key, value in config.spec.selector.items())
            remedy = "install a gateway with these labels, or correct the selector"
            context.add("IST0101", config, "spec.selector", remedy, kind="selector", name=labels)
            continue
        targets = {
            number
            for pod in pods
            for target in context.registry.service_targets(pod)
            for number in (target.port.number, target.target_port)
        }
        for index, server in enumerate(config.spec.servers):
            if server.port is not None and server.port.number not in targets:
                path = item("spec.servers", index) + ".port.number"
                remedy = "add the port to the gateway's Service"
                context.add("IST0162", config, path, remedy, port=server.port.number)


def analyze_gateway_secrets(context: Analysis) -> None:
    """Secrets that Gateways name exist next to the gateway's pods and hold a certificate (IST0101, IST0161)."""
    if not context.whole:
        return
    for config in context.of("Gateway"):
        spaces = {pod.namespace for pod in context.workloads("", config.spec.selector)}
        spaces = spaces or {config.meta.namespace}
        for index, server in enumerate(config.spec.servers):
            if server.tls is None:
                continue
            for name in (server.tls.credential_name, *server.tls.credential_names):
                if not name or "://" in name:
                    continue
                path = item("spec.servers", index) + ".tls.credentialName"
                for space in sorted(spaces):
                    secret = context.find("Secret", space, name)
                    if secret is None:
                        remedy = f"create it in the gateway's namespace {space}"
                        shown = f"{space}/{name}"
                        context.add("IST0101", config, path, remedy, kind="Secret", name=shown)
                    else:
                        _certificate(context, config, path, secret, server.tls.mode)


def _certificate(
    context: Analysis, config: Config[Any], path: str, secret: Config[Any], mode: str
) -> None:
    data: Mapping[str, str] = secret.spec.data or {}
    pairs = (("tls.crt", "tls.key"), ("cert", "key"))
    pair = next((pair for pair in pairs if all(name in data for name in pair)), None)
    reason = ""
    if pair is None:
        reason = "it lacks tls.crt and tls.key"
    else:
        for name, mark in zip(pair, ("BEGIN CERTIFICATE", "PRIVATE KEY"), strict=True):
            try:
                text = base64.b64decode(data[name], validate=True)
            except (binascii.Error, ValueError):
                text = b""
            if mark.encode() not in text:
                reason = f"{name} is not in PEM form"
    if not reason and mode == "MUTUAL":
        other = context.find("Secret", secret.meta.namespace, secret.meta.name + "-cacert")
        if not any(name in data for name in ("ca.crt", "cacert")) and other is None:
            reason = "mode MUTUAL needs ca.crt"
    if reason:
        shown = f"{secret.meta.namespace}/{secret.meta.name}"
        remedy = "write a certificate and its key"
        context.add("IST0161", config, path, remedy, secret=shown, reason=reason)


def analyze_gateway_conflicts(context: Analysis) -> None:
    """The same pods, port and host in two Gateways (IST0145): told to both."""
    seen: dict[tuple[Any, int, str, str], dict[Any, tuple[Config[Any], int]]] = {}
    for config in context.of("Gateway"):
        for index, server in enumerate(config.spec.servers):
            if server.port is None:
                continue
            for host in dict.fromkeys(server.hosts):
                key = (config.spec.selector, server.port.number, server.bind, host)
                seen.setdefault(key, {}).setdefault(config.key, (config, index))
    for (_, port, _, host), group in seen.items():
        for config, index in group.values() if len(group) > 1 else ():
            others = ", ".join(f"{key.namespace}/{key.name}" for key in group if key != config.key)
            path = item("spec.servers", index) + ".hosts"
            remedy = "give each its own hosts, or join them"
            context.add("IST0145", config, path, remedy, port=port, host=host, others=others)


def analyze_port_names(context: Analysis) -> None:
    """Service ports say what they speak (IST0118, IST0150)."""
    for config in context.of("Service"):
        spec: k8s.ServiceSpec = config.spec.spec
        if config.meta.namespace in _SYSTEM:
            continue
        for index, port in enumerate(spec.ports or ()):
            if port.protocol != "TCP" or follows_naming(port.name, port.app_protocol):
                continue
            path = item("spec.ports", index)
            remedy = f'rename it to "http-{port.name}", "tcp-{port.name}", or set appProtocol'
            if not port.name:
                remedy = 'name it "http", "tcp", ... or set appProtocol'
            code = "IST0150" if spec.type == "ExternalName" else "IST0118"
            values = {"name": port.name} | ({"port": port.port} if code == "IST0118" else {})
            context.add(code, config, path, remedy, **values)


def analyze_namespaces(context: Analysis) -> None:
    """Namespaces say whether they are in the mesh (IST0102, IST0123)."""
    for config in context.of("Namespace"):
        if config.meta.name in _SYSTEM:
            continue
        labels = config.meta.labels
        if "istio-injection" in labels and "istio.io/rev" in labels:
            context.add("IST0123", config, "metadata.labels", "keep one of them")
        elif not {"istio-injection", "istio.io/rev", "istio.io/dataplane-mode"} & labels.keys():
            remedy = (
                f"kubectl label namespace {config.meta.name} istio-injection=enabled, or =disabled"
            )
            context.add("IST0102", config, "metadata.labels", remedy)


def analyze_pods(context: Analysis) -> None:
    """Pods of injected namespaces have a sidecar (IST0103)."""
    injected = {
        config.meta.name
        for config in context.of("Namespace")
        if config.meta.labels.get("istio-injection") == "enabled"
        or ("istio.io/rev" in config.meta.labels and "istio-injection" not in config.meta.labels)
    }
    for config in context.of("Pod"):
        pod: k8s.Pod = config.spec
        opt = config.meta.labels.get("sidecar.istio.io/inject") or config.meta.annotations.get(
            "sidecar.istio.io/inject"
        )
        finished = pod.status.phase in ("Succeeded", "Failed")
        if config.meta.namespace not in injected or opt == "false" or finished:
            continue
        containers = (*(pod.spec.containers or ()), *(pod.spec.init_containers or ()))
        if not pod.spec.host_network and all(c.name != _PROXY for c in containers):
            context.add("IST0103", config, "", "delete the pod, so that it is made anew")


def analyze_selectors(context: Analysis) -> None:
    """Policies select pods (IST0127); Sidecars and Telemetries do not compete (IST0110, 0111, 0159, 0160)."""
    for kind in ("AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication"):
        for config in context.of(kind) if context.whole else ():
            selector = config.spec.selector
            labels = selector.match_labels if selector else {}
            space = config.meta.namespace
            space = "" if space == context.mesh.root_namespace else space
            if labels and not context.workloads(space, labels):
                shown = ",".join(f"{key}={value}" for key, value in labels.items())
                context.add("IST0127", config, "spec.selector", "correct the labels", labels=shown)
    for kind, both, whole in (
        ("Sidecar", "IST0110", "IST0111"),
        ("Telemetry", "IST0159", "IST0160"),
    ):
        _competing(context, kind, both, whole)


def _labels(config: Config[Any]) -> Mapping[str, str]:
    spec = config.spec
    if hasattr(spec, "workload_selector"):
        return spec.workload_selector.labels if spec.workload_selector else {}
    return spec.selector.match_labels if spec.selector else {}


def _competing(context: Analysis, kind: str, both: str, whole: str) -> None:
    spaces: dict[str, list[Config[Any]]] = {}
    for config in context.of(kind):
        if not getattr(config.spec, "target_refs", ()):
            spaces.setdefault(config.meta.namespace, []).append(config)
    for space, group in spaces.items():
        general = [config for config in group if not _labels(config)]
        if len(general) > 1:
            names = ", ".join(config.meta.name for config in general)
            for config in general:
                context.add(whole, config, "", "join them, or add selectors", names=names)
        chosen: dict[str, list[Config[Any]]] = {}
        for config in group:
            for pod in context.workloads(space, _labels(config)) if _labels(config) else ():
                chosen.setdefault(pod.name, []).append(config)
        told: set[str] = set()
        for pod_name, owners in chosen.items():
            for config in owners if len(owners) > 1 else ():
                if config.meta.name not in told:
                    told.add(config.meta.name)
                    names = ", ".join(owner.meta.name for owner in owners)
                    remedy = "make the selectors distinct"
                    context.add(both, config, "spec", remedy, names=names, pod=pod_name)


def analyze_telemetry_providers(context: Analysis) -> None:
    """Providers that Telemetries name are in the mesh configuration (IST0157)."""
    known = [provider.name for provider in context.mesh.extension_providers]
    for config in context.of("Telemetry"):
        for field, path in (
            ("tracing", "tracing"),
            ("metrics", "metrics"),
            ("access_logging", "accessLogging"),
        ):
            for index, entry in enumerate(getattr(config.spec, field)):
                for provider in entry.providers:
                    if provider.name not in known:
                        guess = nearest(provider.name, known)
                        remedy = f"did you mean {guess}?" if guess else "add it to meshConfig"
                        where = item(f"spec.{path}", index) + ".providers"
                        context.add("IST0157", config, where, remedy, name=provider.name)


_RELATIVE = ("INSERT_BEFORE", "INSERT_AFTER", "REPLACE", "MERGE", "REMOVE")


def analyze_envoy_filters(context: Analysis) -> None:
    """Patches whose result depends on other patches (IST0151)."""
    for config in context.of("EnvoyFilter"):
        for index, entry in enumerate(config.spec.config_patches):
            operation = entry.patch.operation if entry.patch else ""
            if config.spec.priority != 0:
                continue
            path = item("spec.configPatches", index) + ".patch.operation"
            version = entry.match.proxy.proxy_version if entry.match and entry.match.proxy else ""
            if version and operation in _RELATIVE:
                context.add("IST0155", config, path, "set spec.priority", operation=operation)
            elif operation in ("INSERT_BEFORE", "INSERT_AFTER"):
                context.add("IST0151", config, path, "set spec.priority", operation=operation)
