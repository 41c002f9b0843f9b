"""The containers and volumes that a pod gets.

In: ``PodSettings``, ``InjectionConfig``, facts about the pod. Out: Kubernetes objects as plain values. The
paths, variable names and ports are the contract with ``agent.settings``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.inject.annotations import PodSettings
from meltemi.inject.settings import InjectionConfig
from meltemi.inject.workload import Workload

INIT_CONTAINER = "istio-init"
PROXY_CONTAINER = "istio-proxy"
PROXY_ID = 1337
PROMETHEUS_PORT = 15090
OVERRIDE_VOLUME = "custom-bootstrap-volume"
_OVERRIDE_DIR = "/etc/istio/custom-bootstrap"
_READY = {"path": "/healthz/ready"}


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the proxy is told about the pod beside the settings."""

    workload: Workload
    app_containers: tuple[str, ...]
    ports: tuple[Mapping[str, Any], ...]
    probes: Mapping[str, Any]
    scrape: Mapping[str, str]
    trust_domain: str
    mesh_id: str
    network: str
    cluster_id: str


def build_init_container(pod: PodSettings, config: InjectionConfig) -> dict[str, Any]:
    """Sets up capture in the pod's network namespace and ends."""
    excluded = [str(PROMETHEUS_PORT), str(pod.health_port), str(pod.status_port)]
    excluded += [port for port in pod.exclude_inbound_ports.split(",") if port]
    arguments = [
        *("istio-iptables", "-p", "15001", "-z", "15006", "-u", str(PROXY_ID)),
        *("-m", pod.interception_mode),
        *("-i", pod.include_cidrs, "-x", pod.exclude_cidrs),
        *("-b", pod.include_inbound_ports, "-d", ",".join(dict.fromkeys(excluded))),
    ]
    if pod.include_outbound_ports:
        arguments += ["-q", pod.include_outbound_ports]
    if pod.exclude_outbound_ports:
        arguments += ["-o", pod.exclude_outbound_ports]
    metadata = pod.proxy_config.get("proxyMetadata") or {}
    if str(metadata.get("ISTIO_META_DNS_CAPTURE", "")).lower() in ("true", "1"):
        arguments.append("--redirect-dns")
    return {
        "name": INIT_CONTAINER,
        "image": pod.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": arguments,
        "resources": config.init_resources or pod.resources,
        "securityContext": {
            "allowPrivilegeEscalation": config.privileged,
            "privileged": config.privileged,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsGroup": 0,
            "runAsNonRoot": False,
            "runAsUser": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def build_proxy_container(
    pod: PodSettings, config: InjectionConfig, facts: PodFacts, role: str
) -> dict[str, Any]:
    """The proxy; ``role`` is ``sidecar`` or ``router``."""
    arguments = [
        *("proxy", role),
        *("--domain", f"$(POD_NAMESPACE).svc.{config.cluster_domain}"),
        f"--proxyLogLevel={'warning' if pod.log_level == 'warn' else pod.log_level}",
        f"--proxyComponentLogLevel={pod.component_log_level}",
        f"--log_output_level={pod.agent_log_level}",
    ]
    if config.log_as_json:
        arguments.append("--log_as_json")
    container: dict[str, Any] = {
        "name": PROXY_CONTAINER,
        "image": pod.image,
        "imagePullPolicy": config.image_pull_policy,
        "args": arguments,
        "ports": [{"containerPort": PROMETHEUS_PORT, "name": "http-envoy-prom", "protocol": "TCP"}],
        "env": build_environment(pod, config, facts, role),
        "resources": pod.resources,
        "startupProbe": _probe(
            pod, {"periodSeconds": 1, "failureThreshold": config.startup_failures}
        ),
        "readinessProbe": _probe(pod, pod.readiness),
        "securityContext": {
            "allowPrivilegeEscalation": config.privileged,
            "privileged": config.privileged,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsGroup": PROXY_ID,
            "runAsNonRoot": True,
            "runAsUser": PROXY_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [*_mounts(pod), *pod.user_mounts],
    }
    lifecycle = _lifecycle(pod)
    if role == "sidecar" and lifecycle:
        container["lifecycle"] = lifecycle
    if role == "sidecar" and pod.native_sidecar:
        container["restartPolicy"] = "Always"
    return container


def _probe(pod: PodSettings, numbers: Mapping[str, int]) -> dict[str, Any]:
    """Zero means Kubernetes' default, which is left out."""
    set_numbers = {key: value for key, value in numbers.items() if value}
    return {"httpGet": {**_READY, "port": pod.health_port}, "timeoutSeconds": 3, **set_numbers}


def _lifecycle(pod: PodSettings) -> dict[str, Any]:
    agent = "meltemi-agent"
    if pod.native_sidecar:
        command = [agent, "request", "--debug-port", str(pod.status_port), "POST", "drain"]
        return {"preStop": {"exec": {"command": command}}}
    if pod.hold_application:
        return {"postStart": {"exec": {"command": [agent, "wait"]}}}
    return {}


def build_environment(
    pod: PodSettings, config: InjectionConfig, facts: PodFacts, role: str
) -> list[dict[str, Any]]:
    """The variables that ``agent.settings`` reads, in Istio's names."""
    discovery = pod.proxy_config.get("discoveryAddress") or (
        f"istiod{'-' + config.revision if config.revision else ''}.{config.istio_namespace}.svc:15012"
    )
    proxy_config = {**pod.proxy_config, "discoveryAddress": discovery}
    env: list[dict[str, Any]] = [
        {"name": "PILOT_CERT_PROVIDER", "value": "istiod"},
        {"name": "CA_ADDR", "value": config.ca_address or discovery},
        _field("POD_NAME", "metadata.name"),
        _field("POD_NAMESPACE", "metadata.namespace"),
        _field("INSTANCE_IP", "status.podIP"),
        _field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        _field("HOST_IP", "status.hostIP"),
    ]
    limits = pod.resources.get("limits") or {}
    if limits.get("cpu"):
        env.append(_resource("ISTIO_CPU_LIMIT", "limits.cpu", "1"))
    if limits.get("memory"):
        env.append(_resource("GOMEMLIMIT", "limits.memory", "1"))
    ports = [dict(port) for port in facts.ports]
    env += [
        {"name": "PROXY_CONFIG", "value": _json(proxy_config)},
        {"name": "TRUST_DOMAIN", "value": facts.trust_domain},
        {"name": "ISTIO_META_POD_PORTS", "value": _json(ports)},
        {"name": "ISTIO_META_APP_CONTAINERS", "value": ",".join(facts.app_containers)},
        {"name": "ISTIO_META_CLUSTER_ID", "value": facts.cluster_id},
        _field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        {"name": "ISTIO_META_INTERCEPTION_MODE", "value": pod.interception_mode},
        {"name": "ISTIO_META_WORKLOAD_NAME", "value": facts.workload.name},
        {"name": "ISTIO_META_OWNER", "value": facts.workload.owner},
        {"name": "ISTIO_META_MESH_ID", "value": facts.mesh_id},
    ]
    if facts.network:
        env.append({"name": "ISTIO_META_NETWORK", "value": facts.network})
    if role == "router":
        env.append({"name": "ISTIO_META_UNPRIVILEGED_POD", "value": "true"})
    if facts.probes:
        env.append({"name": "ISTIO_KUBE_APP_PROBERS", "value": _json(facts.probes)})
    if facts.scrape:
        env.append({"name": "ISTIO_PROMETHEUS_ANNOTATIONS", "value": _json(facts.scrape)})
    if pod.bootstrap_override:
        path = f"{_OVERRIDE_DIR}/custom_bootstrap.json"
        env.append({"name": "ISTIO_BOOTSTRAP_OVERRIDE", "value": path})
    known = {item["name"] for item in env}
    for name, value in sorted((pod.proxy_config.get("proxyMetadata") or {}).items()):
        if name not in known:
            env.append({"name": name, "value": str(value)})
    return env


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def _field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _resource(name: str, resource: str, divisor: str) -> dict[str, Any]:
    reference = {
        "containerName": PROXY_CONTAINER,
        "resource": resource,
        "divisor": divisor,
    }
    return {"name": name, "valueFrom": {"resourceFieldRef": reference}}


def _mounts(pod: PodSettings) -> list[dict[str, Any]]:
    secrets = "/var/run/secrets"
    mounts: list[dict[str, Any]] = [
        {"name": "workload-socket", "mountPath": f"{secrets}/workload-spiffe-uds"},
        {"name": "credential-socket", "mountPath": f"{secrets}/credential-uds"},
        {"name": "workload-certs", "mountPath": f"{secrets}/workload-spiffe-credentials"},
        {"name": "istiod-ca-cert", "mountPath": f"{secrets}/istio", "readOnly": True},
        {"name": "istio-token", "mountPath": f"{secrets}/tokens", "readOnly": True},
        {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
        {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
        {"name": "istio-podinfo", "mountPath": "/etc/istio/pod", "readOnly": True},
    ]
    if pod.bootstrap_override:
        mounts.append({"name": OVERRIDE_VOLUME, "mountPath": _OVERRIDE_DIR, "readOnly": True})
    return mounts


def build_volumes(pod: PodSettings, config: InjectionConfig) -> list[dict[str, Any]]:
    """The volumes behind the mounts. Keys and tokens are kept in memory."""
    items = [
        {"path": kind, "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.{kind}"}}
        for kind in ("labels", "annotations")
    ]
    token = {
        "audience": "istio-ca",
        "expirationSeconds": config.token_seconds,
        "path": "istio-token",
    }
    volumes: list[dict[str, Any]] = [
        {"name": "workload-socket", "emptyDir": {}},
        {"name": "credential-socket", "emptyDir": {}},
        {"name": "workload-certs", "emptyDir": {"medium": "Memory"}},
        {"name": "istio-envoy", "emptyDir": {"medium": "Memory"}},
        {"name": "istio-data", "emptyDir": {}},
        {"name": "istio-podinfo", "downwardAPI": {"items": items}},
        {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
    ]
    if pod.bootstrap_override:
        volumes.append({"name": OVERRIDE_VOLUME, "configMap": {"name": pod.bootstrap_override}})
    return [*volumes, *(dict(volume) for volume in pod.user_volumes)]
