"""The sidecar injector: a pod in, a JSON patch out. See ``inject``, ``inject_resource``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonpatch

from meltemi.inject.decision import Decision, decide
from meltemi.inject.pod import inject_pod
from meltemi.inject.settings import InjectionConfig, parse_injection_config
from meltemi.model.config import AnyConfig
from meltemi.model.mesh import MeshConfig

__all__ = [
    "Decision",
    "InjectionConfig",
    "InjectionResult",
    "decide",
    "inject",
    "inject_resource",
    "parse_injection_config",
]

# Where the pod template of each kind stands.
_TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "DeploymentConfig": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


@dataclass(frozen=True, slots=True)
class InjectionResult:
    """The answer to one admission request.

    ``patch`` is an RFC 6902 patch, or None when nothing changes; ``reason`` says why. ``error`` is set when
    the pod must be refused (``allowed`` is then False): its annotations ask for what cannot be done.
    """

    patch: list[dict[str, Any]] | None
    reason: str
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def allowed(self) -> bool:
        """Whether the pod may be created."""
        return not self.error


def inject(
    request: Mapping[str, Any],
    namespace_labels: Mapping[str, str],
    config: InjectionConfig,
    mesh: MeshConfig,
    url_values: Mapping[str, str] | None = None,
    proxy_configs: Iterable[AnyConfig] = (),
) -> InjectionResult:
    """Decide on the pod of an AdmissionReview's ``request`` and build its patch.

    ``url_values`` are the key/value pairs of the webhook's path (``/inject/cluster/c1/net/n1``), ``proxy_configs`` the
    mesh's ProxyConfig objects. Total: bad input of a user is an ``error`` or a warning. Injecting an injected pod changes nothing.
    """
    pod = request.get("object")
    if not isinstance(pod, Mapping):
        return InjectionResult(None, "the request has no object", error="the request has no object")
    namespace = str(
        request.get("namespace") or (pod.get("metadata") or {}).get("namespace") or "default"
    )
    decision = decide(pod, namespace, namespace_labels, config)
    if not decision.inject:
        return InjectionResult(None, decision.reason, decision.warnings)
    made = inject_pod(pod, namespace, config, mesh, url_values, proxy_configs)
    warnings = (*decision.warnings, *made.warnings)
    if made.pod is None:
        error = "the proxy cannot be injected: " + "; ".join(made.errors)
        return InjectionResult(None, decision.reason, warnings, error)
    patch: list[dict[str, Any]] = jsonpatch.make_patch(dict(pod), made.pod).patch
    return InjectionResult(patch or None, decision.reason, warnings)


def inject_resource(
    resource: Mapping[str, Any],
    namespace_labels: Mapping[str, str],
    config: InjectionConfig,
    mesh: MeshConfig,
) -> tuple[dict[str, Any], InjectionResult]:
    """A Pod, or a workload with a pod template, with the proxy inside: what ``kube-inject`` prints.

    Other kinds come back as they are.
    """
    kind = str(resource.get("kind", ""))
    metadata = resource.get("metadata") or {}
    path = () if kind == "Pod" else _TEMPLATES.get(kind)
    if path is None:
        return dict(resource), InjectionResult(None, f"{kind} has no pod template")
    template: Any = resource
    for key in path:
        template = template.get(key) if isinstance(template, Mapping) else None
    if not isinstance(template, Mapping):
        return dict(resource), InjectionResult(None, f"{kind} has no pod template")
    pod = dict(template)
    if path:
        # The future pod's controller names the workload.
        owner = {"kind": kind, "name": metadata.get("name", ""), "controller": True}
        owner["apiVersion"] = resource.get("apiVersion", "")
        pod["metadata"] = {**(pod.get("metadata") or {}), "ownerReferences": [owner]}
    request = {"object": pod, "namespace": metadata.get("namespace") or "default"}
    result = inject(request, namespace_labels, config, mesh)
    if result.patch is None:
        return dict(resource), result
    made = jsonpatch.apply_patch(pod, result.patch)
    if path:
        made["metadata"].pop("ownerReferences")
    return _replace(resource, path, made), result


def _replace(resource: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if not path:
        return dict(value)
    inner = _replace(resource[path[0]], path[1:], value)
    return {**resource, path[0]: inner}
