"""What ``components.*.k8s`` changes in rendered manifests, and the objects that scale a Deployment.

``overlays`` are path patches: ``spec.template.spec.containers.[name:discovery].args.[0]``; ``[key:value]`` picks a
list item by a field, ``[N]`` by index, ``[-1]`` appends; a patch without a value removes what the path names.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from meltemi.install.context import InstallContext, Manifest, manifest
from meltemi.install.profiles import merge

_POD_FIELDS = {
    "affinity": "affinity",
    "nodeSelector": "nodeSelector",
    "priorityClassName": "priorityClassName",
    "tolerations": "tolerations",
    "securityContext": "securityContext",
}
_CONTAINER_FIELDS = {
    "resources": "resources",
    "readinessProbe": "readinessProbe",
    "imagePullPolicy": "imagePullPolicy",
}


class OverlayError(ValueError):
    """A patch names something that is not there; the text says which patch and what exists instead."""


def scaling(
    context: InstallContext,
    component: str,
    name: str,
    labels: Mapping[str, str],
    values: Mapping[str, Any],
) -> list[Manifest]:
    """HorizontalPodAutoscaler and PodDisruptionBudget of a Deployment, where ``values`` asks for scaling."""
    budget = manifest(
        context,
        component,
        "policy/v1",
        "PodDisruptionBudget",
        name,
        labels=labels,
        spec={"minAvailable": 1, "selector": {"matchLabels": dict(labels)}},
    )
    if not values.get("autoscaleEnabled"):
        return [budget]
    return [
        budget,
        manifest(
            context,
            component,
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            name,
            labels=labels,
            spec={
                "minReplicas": values.get("autoscaleMin", 1),
                "maxReplicas": values.get("autoscaleMax", 5),
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "metrics": [
                    {
                        "type": "Resource",
                        "resource": {
                            "name": "cpu",
                            "target": {"type": "Utilization", "averageUtilization": 80},
                        },
                    }
                ],
            },
        ),
    ]


def _apply_to_deployment(deployment: Manifest, k8s: Mapping[str, Any]) -> Manifest:
    made = copy.deepcopy(deployment)
    spec = made["spec"]
    template = spec["template"]
    pod, container = template["spec"], template["spec"]["containers"][0]
    if k8s.get("replicaCount") is not None:
        spec["replicas"] = k8s["replicaCount"]
    if k8s.get("strategy"):
        spec["strategy"] = k8s["strategy"]
    for source, target in _POD_FIELDS.items():
        if k8s.get(source):
            pod[target] = merge(pod.get(target, {}), k8s[source])
    for source, target in _CONTAINER_FIELDS.items():
        if k8s.get(source):
            container[target] = k8s[source]
    if k8s.get("env"):
        by_name = {entry["name"]: entry for entry in container.get("env", [])}
        by_name.update({entry["name"]: entry for entry in k8s["env"]})
        container["env"] = list(by_name.values())
    if k8s.get("volumes"):
        pod["volumes"] = [*pod.get("volumes", []), *k8s["volumes"]]
    if k8s.get("volumeMounts"):
        container["volumeMounts"] = [*container.get("volumeMounts", []), *k8s["volumeMounts"]]
    if k8s.get("podAnnotations"):
        template["metadata"]["annotations"] = {
            **template["metadata"].get("annotations", {}),
            **k8s["podAnnotations"],
        }
    return made


def apply_k8s(
    manifests: Sequence[Manifest], name: str, k8s: Mapping[str, Any], where: str
) -> list[Manifest]:
    """Lay ``k8s`` settings over the manifests of one component.

    ``name`` is that of the component's Deployment and Service; ``where`` names the component in errors. Raises
    OverlayError when a patch does not fit.
    """
    made: list[Manifest] = []
    scaled = any(item["kind"] == "HorizontalPodAutoscaler" for item in manifests)
    for item in manifests:
        if item["metadata"]["name"] != name:
            made.append(item)
            continue
        match item["kind"]:
            case "Deployment":
                item = _apply_to_deployment(item, k8s)
                if scaled and k8s.get("replicaCount") is None:
                    del item["spec"]["replicas"]  # the autoscaler owns it
            case "HorizontalPodAutoscaler" if k8s.get("hpaSpec"):
                item = {**item, "spec": merge(item["spec"], k8s["hpaSpec"])}
            case "PodDisruptionBudget" if k8s.get("podDisruptionBudget"):
                item = {**item, "spec": merge(item["spec"], k8s["podDisruptionBudget"])}
            case "Service" if k8s.get("service"):
                item = {**item, "spec": merge(item["spec"], k8s["service"])}
        made.append(item)
    for overlay in k8s.get("overlays") or []:
        made = _overlay(made, overlay, where)
    return made


def _overlay(
    manifests: Sequence[Manifest], overlay: Mapping[str, Any], where: str
) -> list[Manifest]:
    wanted = (overlay.get("kind"), overlay.get("name"))
    if not any((item["kind"], item["metadata"]["name"]) == wanted for item in manifests):
        have = ", ".join(sorted(f"{item['kind']}/{item['metadata']['name']}" for item in manifests))
        raise OverlayError(
            f"{where}: k8s.overlays names {wanted[0]}/{wanted[1]}, which is not made; there are {have}"
        )
    made = []
    for item in manifests:
        if (item["kind"], item["metadata"]["name"]) == wanted:
            item = copy.deepcopy(item)
            for patch in overlay.get("patches") or []:
                _patch(item, patch, where)
        made.append(item)
    return made


_STEP = re.compile(r"\[([^\]]*)\]|((?:\\.|[^.\[])+)")


def parse_path(path: str) -> list[str | int | tuple[str, str]]:
    """Steps of a patch path: names, list indexes, and ``(key, value)`` for ``[key:value]``."""
    steps: list[str | int | tuple[str, str]] = []
    for bracket, plain in _STEP.findall(path):
        if plain:
            steps.append(plain.replace("\\.", "."))
        elif re.fullmatch(r"-?\d+", bracket):
            steps.append(int(bracket))
        elif ":" in bracket:
            key, _, value = bracket.partition(":")
            steps.append((key.strip(), value.strip()))
        else:
            steps.append(bracket)
    return steps


def _index(node: Any, step: str | int | tuple[str, str]) -> str | int | None:
    """Where ``step`` leads in ``node``; None when there is nothing yet."""
    if isinstance(step, str):
        return step if isinstance(node, dict) else None
    if not isinstance(node, list):
        return None
    if isinstance(step, int):
        return step if -len(node) <= step < len(node) and step != -1 else None
    key, value = step
    return next(
        (
            at
            for at, entry in enumerate(node)
            if isinstance(entry, dict) and str(entry.get(key)) == value
        ),
        None,
    )


def _patch(item: Manifest, patch: Mapping[str, Any], where: str) -> None:
    steps = parse_path(str(patch.get("path", "")))
    if not steps:
        raise OverlayError(f"{where}: a patch in k8s.overlays has no path")
    node: Any = item
    for at, step in enumerate(steps[:-1]):
        index = _index(node, step)
        if index is None:
            raise OverlayError(_no_such(patch, where, step, node))
        if isinstance(node, dict) and index not in node:
            node[index] = [] if not isinstance(steps[at + 1], str) else {}
        node = node[index]
    last, value = steps[-1], patch.get("value")
    index = _index(node, last)
    if value is None:
        if isinstance(node, list) and isinstance(index, int):
            del node[index]
        elif isinstance(node, dict):
            node.pop(index, None)
    elif index is not None:
        node[index] = value
    elif isinstance(node, list) and not isinstance(last, str):
        node.append(value)
    else:
        raise OverlayError(_no_such(patch, where, last, node))


def _no_such(patch: Mapping[str, Any], where: str, step: Any, node: Any) -> str:
    if isinstance(node, dict):
        have = ", ".join(map(str, node)) or "nothing"
    elif isinstance(node, list):
        have = f"a list of {len(node)}"
    else:
        have = repr(node)
    return f"{where}: k8s.overlays path {patch['path']!r}: {step!r} is not there; there is {have}"
