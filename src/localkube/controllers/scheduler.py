"""The scheduler: which node a pod runs on.

In: a pod without a node, the nodes and their pods. Out: a Binding, or why there is none. Simple on
purpose: nodeSelector, required node affinity, taints and cordons are obeyed; among the fitting
nodes the one with the fewest pods wins. Resource requests are not counted.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from localkube.client.resources import NODES, PODS
from localkube.controllers.actions import Create, Note, Patch, Plan
from localkube.controllers.cache import BY_NODE, Cache
from localkube.controllers.loop import Controller
from localkube.controllers.pods import (
    condition,
    is_finished,
    is_terminating,
    labels_of,
    with_condition,
)
from localkube.kit import clock

Object = dict[str, Any]
COMPONENT: Final = "default-scheduler"
UNSCHEDULABLE_TAINT: Final = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}


def tolerates(pod: Object, taint: Mapping[str, Any]) -> bool:
    """Whether one of the pod's tolerations covers the taint."""
    for toleration in pod["spec"].get("tolerations") or []:
        if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
            continue
        exists = toleration.get("operator") == "Exists"
        if not toleration.get("key"):
            if exists:
                return True
            continue
        if toleration["key"] != taint["key"]:
            continue
        if exists or (toleration.get("value") or "") == (taint.get("value") or ""):
            return True
    return False


def untolerated(pod: Object, node: Object, effects: Iterable[str]) -> Mapping[str, Any] | None:
    """The first taint with one of these effects that the pod does not tolerate."""
    taints = list((node.get("spec") or {}).get("taints") or [])
    if (node.get("spec") or {}).get("unschedulable"):
        taints.append(UNSCHEDULABLE_TAINT)
    for taint in taints:
        if taint.get("effect") in effects and not tolerates(pod, taint):
            return dict(taint)
    return None


def selects_node(pod: Object, node: Object) -> bool:
    """Whether nodeSelector and the required node affinity allow the node."""
    labels = labels_of(node)
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(name) != value for name, value in selector.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if not required:
        return True
    name = {"metadata.name": node["metadata"]["name"]}
    return any(
        (term.get("matchExpressions") or term.get("matchFields"))
        and all(_term(e, labels) for e in term.get("matchExpressions") or [])
        and all(_term(e, name) for e in term.get("matchFields") or [])
        for term in required.get("nodeSelectorTerms") or []
    )


def _term(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            try:
                number, bound = int(value or ""), int(values[0])
            except (ValueError, IndexError):
                return False
            return number > bound if operator == "Gt" else number < bound
    return False


def choose_node(
    pod: Object, nodes: Iterable[Object], load: Mapping[str, int]
) -> tuple[str | None, str]:
    """(node, "") or (None, why none fits). `load`: pods on each node."""
    fitting: list[str] = []
    reasons: dict[str, int] = {}
    total = 0
    for node in nodes:
        total += 1
        taint = untolerated(pod, node, ("NoSchedule", "NoExecute"))
        if taint is not None:
            reason = f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}"
            if taint["key"] == UNSCHEDULABLE_TAINT["key"]:
                reason = "node(s) were unschedulable"
        elif not selects_node(pod, node):
            reason = "node(s) didn't match Pod's node affinity/selector"
        else:
            ready = condition(node, "Ready")
            if ready is not None and ready.get("status") == "True":
                fitting.append(node["metadata"]["name"])
                continue
            reason = "node(s) were not ready"
        reasons[reason] = reasons.get(reason, 0) + 1
    if fitting:
        return min(fitting, key=lambda name: (load.get(name, 0), name)), ""
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if not total:
        return None, "no nodes available to schedule pods"
    return None, f"0/{total} nodes are available: {told}."


def needs_node(pod: Object) -> bool:
    """Whether this scheduler has to place the pod."""
    spec = pod["spec"]
    return (
        not spec.get("nodeName")
        and not is_terminating(pod)
        and not is_finished(pod)
        and spec.get("schedulerName", "default-scheduler") == "default-scheduler"
        and not spec.get("schedulingGates")
    )


def plan_pod(pod: Object, nodes: Iterable[Object], load: Mapping[str, int], now: str) -> Plan:
    """Decide about one pod that needs a node."""
    meta = pod["metadata"]
    node, why = choose_node(pod, nodes, load)
    if node is not None:
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        text = f"Successfully assigned {meta['namespace']}/{meta['name']} to {node}"
        return Plan(
            [
                Create(PODS, binding, name=meta["name"], subresource="binding"),
                Note(pod, "Normal", "Scheduled", text, COMPONENT),
            ]
        )
    entry = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": why,
    }
    known = condition(pod, "PodScheduled")
    if known is not None and all(known.get(k) == v for k, v in entry.items()):
        return Plan()
    conditions = (pod.get("status") or {}).get("conditions") or []
    status = {"status": {"conditions": with_condition(conditions, entry, now)}}
    return Plan(
        [
            Patch(PODS, pod, status, subresource="status"),
            Note(pod, "Warning", "FailedScheduling", why, COMPONENT),
        ]
    )


class Scheduler(Controller):
    """Binds pods to nodes."""

    name = "scheduler"
    resource = PODS
    workers = 4

    def watch(self, cache: Cache) -> None:
        """Pods that need a node; every change of nodes is a new chance for those that wait."""
        cache.of(PODS).on_change(self._on_pod)
        cache.of(NODES).on_change(self._on_node)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        if new is not None and needs_node(new):
            self.enqueue(old, new)

    def _on_node(self, old: Object | None, new: Object | None) -> None:
        for pod in self.cache.of(PODS).by_index(BY_NODE, ""):
            if needs_node(pod):
                self.enqueue(None, pod)

    def plan(self, key: str) -> Plan | None:
        """Decide about one pod."""
        pods = self.cache.of(PODS)
        pod = pods.by_key(key)
        if pod is None or not needs_node(pod):
            return None
        nodes = list(self.cache.of(NODES).items())
        load = {
            node["metadata"]["name"]: len(pods.by_index(BY_NODE, node["metadata"]["name"]))
            for node in nodes
        }
        return plan_pod(pod, nodes, load, clock.rfc3339(clock.now()))
