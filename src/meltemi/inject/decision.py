"""Whether a pod gets a proxy, and why.

In: the pod, its namespace's labels, ``InjectionConfig``. Out: a ``Decision`` whose reason is stable text that
metrics, logs and ``check-inject`` show. The rules are those of Istio's webhooks and of its injector together,
so the decision is right whoever asks: the webhook, or the offline ``kube-inject``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.inject.settings import InjectionConfig

INJECT = "sidecar.istio.io/inject"
STATUS = "sidecar.istio.io/status"
REVISION = "istio.io/rev"
NAMESPACE_SWITCH = "istio-injection"
PROXY_CONTAINER = "istio-proxy"
_TRUE, _FALSE = ("true", "y", "yes", "on"), ("false", "n", "no", "off")


@dataclass(frozen=True, slots=True)
class Decision:
    """``inject`` and the reason; ``warnings`` are about values that were not understood."""

    inject: bool
    reason: str
    warnings: tuple[str, ...] = ()


def decide(
    pod: Mapping[str, Any],
    namespace: str,
    namespace_labels: Mapping[str, str],
    config: InjectionConfig,
) -> Decision:
    """The decision for one pod (or pod template) in a namespace."""
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    if spec.get("hostNetwork"):
        return Decision(False, "the pod uses the host's network")
    if namespace in config.ignored_namespaces:
        return Decision(False, f"namespace {namespace} is never injected")
    if is_injected(pod):
        return Decision(False, "the pod has a proxy already")
    labels = metadata.get("labels") or {}
    wish, warnings = read_wish(metadata)
    if wish is False:
        return Decision(False, f"the pod says {INJECT}=false", warnings)
    foreign = _foreign_revision(labels, namespace_labels, config)
    if foreign:
        return Decision(False, f"the pod belongs to revision {foreign}", warnings)
    if wish is None:
        for selector in config.never_inject:
            if matches(selector, labels):
                return Decision(False, "a neverInjectSelector matches the pod", warnings)
        for selector in config.always_inject:
            if matches(selector, labels):
                return Decision(True, "an alwaysInjectSelector matches the pod", warnings)
    inject, reason = _by_namespace(wish, labels, namespace_labels, config)
    return Decision(inject, reason, warnings)


def is_injected(pod: Mapping[str, Any]) -> bool:
    """Whether an injector has been here: its status annotation, and the container that it names."""
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    spec = pod.get("spec") or {}
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    return STATUS in annotations and any(c.get("name") == PROXY_CONTAINER for c in containers)


def read_wish(metadata: Mapping[str, Any]) -> tuple[bool | None, tuple[str, ...]]:
    """What the pod itself says; its label wins over its annotation."""
    for kind in ("labels", "annotations"):
        value = (metadata.get(kind) or {}).get(INJECT)
        if value is None:
            continue
        text = str(value).lower()
        if text in _TRUE:
            return True, ()
        if text in _FALSE:
            return False, ()
        return None, (f'{kind[:-1]} {INJECT}: "{value}" is ignored; write "true" or "false"',)
    return None, ()


def _foreign_revision(
    labels: Mapping[str, str], namespace_labels: Mapping[str, str], config: InjectionConfig
) -> str:
    """The revision that the pod or its namespace asks for, when it is not this one."""
    wanted = labels.get(REVISION) or ""
    if NAMESPACE_SWITCH in namespace_labels:
        # This older label is for the default revision and wins over the namespace's revision label.
        if namespace_labels[NAMESPACE_SWITCH] == "enabled":
            wanted = "default"
    elif namespace_labels.get(REVISION):
        wanted = namespace_labels[REVISION]
    mine = {config.revision_name, *config.revision_tags}
    return wanted if wanted and wanted not in mine else ""


def _by_namespace(
    wish: bool | None,
    labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
    config: InjectionConfig,
) -> tuple[bool, str]:
    switch = namespace_labels.get(NAMESPACE_SWITCH)
    if switch == "disabled":
        return False, f"the namespace says {NAMESPACE_SWITCH}=disabled"
    if switch == "enabled":
        return True, f"the namespace says {NAMESPACE_SWITCH}=enabled"
    if namespace_labels.get(REVISION):
        return True, f"the namespace says {REVISION}={namespace_labels[REVISION]}"
    if labels.get(REVISION):
        return True, f"the pod says {REVISION}={labels[REVISION]}"
    if wish and (config.revision_name == "default" or "default" in config.revision_tags):
        return True, f"the pod says {INJECT}=true"
    if config.enable_namespaces_by_default and config.policy == "enabled":
        return True, "namespaces are injected by default"
    return False, "neither the namespace nor the pod asks for a proxy"


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a Kubernetes label selector matches; an empty one matches nothing, as in Istio."""
    wanted = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or ()
    if not wanted and not expressions:
        return False
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_expression(expression, labels) for expression in expressions)


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = str(expression.get("key", "")), expression.get("values") or ()
    operator = expression.get("operator")
    if operator == "In":
        return labels.get(key) in values
    if operator == "NotIn":
        return labels.get(key) not in values
    if operator == "Exists":
        return key in labels
    return operator == "DoesNotExist" and key not in labels
