"""Nodes that fall silent, and pods whose node is gone.

In: Nodes, their Leases, pods. Out: a silent node's Ready condition becomes Unknown, it is tainted,
its pods are no longer ready (so they leave their Services) and, after their tolerated time, are
deleted; pods bound to a node that does not exist are removed. Numbers as in Kubernetes:
node-monitor-grace-period 40 s (50 s since 1.32), default toleration of unreachable nodes 300 s.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from localkube.client.resources import LEASES, NODES, PODS
from localkube.controllers.actions import Delete, Executor, Note, Patch, Plan, PlanBuilder
from localkube.controllers.cache import BY_NODE, Cache
from localkube.controllers.loop import Controller
from localkube.controllers.pods import (
    condition,
    is_finished,
    is_terminating,
    with_condition,
)
from localkube.kit import clock
from localkube.kit.clock import parse_time, rfc3339

Object = dict[str, Any]
COMPONENT: Final = "node-controller"
GRACE_SECONDS: Final = 50.0
TOLERATED_SECONDS: Final = 300.0
_ORPHAN_SECONDS: Final = 40.0
_LEASE_NAMESPACE: Final = "kube-node-lease"
_TAINTS: Final = {
    "False": "node.kubernetes.io/not-ready",
    "Unknown": "node.kubernetes.io/unreachable",
}


def wanted_taints(node: Object, now: str) -> list[Object] | None:
    """The node's taints as its Ready condition demands, or None if they are right."""
    ready = condition(node, "Ready")
    key = _TAINTS.get((ready or {}).get("status", ""))
    current = list((node.get("spec") or {}).get("taints") or [])
    ours = set(_TAINTS.values())
    kept = [t for t in current if t["key"] not in ours or t["key"] == key]
    if key is not None:
        present = {t["effect"] for t in kept if t["key"] == key}
        for effect in ("NoSchedule", "NoExecute"):
            if effect not in present:
                taint: Object = {"key": key, "effect": effect}
                if effect == "NoExecute":
                    taint["timeAdded"] = now
                kept.append(taint)
    return None if kept == current else kept


def plan_silent(node: Object, pods: Sequence[Object], now: datetime) -> Plan:
    """The node has been silent for too long: say so on it and on its pods."""
    plan = PlanBuilder()
    text = rfc3339(now)
    ready = condition(node, "Ready")
    if ready is None or ready.get("status") != "Unknown":
        entry = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.",
        }
        conditions = (node.get("status") or {}).get("conditions") or []
        status = {"status": {"conditions": with_condition(conditions, entry, text)}}
        plan.add(Patch(NODES, node, status, subresource="status"))
        name = node["metadata"]["name"]
        text_ = f"Node {name} status is now: NodeNotReady"
        plan.add(Note(node, "Normal", "NodeNotReady", text_, COMPONENT))
    for pod in pods:
        entry_ = condition(pod, "Ready")
        if entry_ is None or entry_.get("status") != "True":
            continue
        not_ready = {"type": "Ready", "status": "False", "reason": "NodeNotReady"}
        conditions = (pod.get("status") or {}).get("conditions") or []
        status = {"status": {"conditions": with_condition(conditions, not_ready, text)}}
        plan.add(Patch(PODS, pod, status, subresource="status"))
    return plan.plan()


def evictions(node: Object, pods: Sequence[Object], now: datetime) -> Plan:
    """Pods to delete because they do not tolerate a NoExecute taint (any longer)."""
    plan = PlanBuilder()
    taints = [
        t for t in (node.get("spec") or {}).get("taints") or [] if t.get("effect") == "NoExecute"
    ]
    for pod in pods:
        if is_terminating(pod) or is_finished(pod):
            continue
        for taint in taints:
            left = _tolerated_for(pod, taint, now)
            if left is None:
                continue
            if left <= 0:
                plan.add(Delete(PODS, pod))
                text = f"Marking for deletion Pod {pod['metadata']['name']}"
                plan.add(Note(pod, "Normal", "TaintManagerEviction", text, COMPONENT))
                break
            plan.again(left)
    return plan.plan()


def _tolerated_for(pod: Object, taint: Object, now: datetime) -> float | None:
    """Seconds the pod may stay despite the taint; None: for ever."""
    shortest: float | None = 0.0
    tolerated = False
    for toleration in pod["spec"].get("tolerations") or []:
        if toleration.get("effect") not in (None, "", taint["effect"]):
            continue
        if toleration.get("key") not in (None, "", taint["key"]):
            continue
        seconds = toleration.get("tolerationSeconds")
        if seconds is None:
            return None
        shortest = min(float(seconds), shortest or float(seconds)) if tolerated else float(seconds)
        tolerated = True
    since = parse_time(taint["timeAdded"]) if taint.get("timeAdded") else now
    if not tolerated:
        # A pod without tolerations gets Kubernetes' defaults for these two taints.
        allowed = TOLERATED_SECONDS if taint["key"] in _TAINTS.values() else 0.0
    else:
        allowed = shortest or 0.0
    return allowed - (now - since).total_seconds()


class NodeLifecycleController(Controller):
    """Watches the nodes' Leases."""

    name = "node-lifecycle"
    resource = NODES

    def __init__(self, cache: Cache, executor: Executor) -> None:
        # When each Lease's renewal was last seen to change, on our own clock: after a restart, or
        # a jump of the wall clock, every node has the whole grace period again.
        self._heard: dict[str, tuple[str, float]] = {}
        super().__init__(cache, executor)

    def watch(self, cache: Cache) -> None:
        """Nodes and their Leases."""
        cache.of(NODES).on_change(self.enqueue)
        cache.of(LEASES).on_change(self._on_lease)

    def _on_lease(self, old: Object | None, new: Object | None) -> None:
        if new is not None and new["metadata"]["namespace"] == _LEASE_NAMESPACE:
            name = new["metadata"]["name"]
            known = self._heard.get(name)
            renewed = str(new["spec"].get("renewTime"))
            if known is None or known[0] != renewed:
                self._heard[name] = (renewed, clock.monotonic())
            if known is None:
                self.queue.add(name)

    def plan(self, key: str) -> Plan | None:
        """Decide about one node."""
        node = self.cache.of(NODES).by_key(key)
        if node is None:
            self._heard.pop(key, None)
            return None
        now = clock.now()
        pods = self.cache.of(PODS).by_index(BY_NODE, key)
        plan = PlanBuilder()
        taints = wanted_taints(node, rfc3339(now))
        if taints is not None:
            plan.add(Patch(NODES, node, {"spec": {"taints": taints or None}}, guarded=True))
        evicted = evictions(node, pods, now)
        plan.add(*evicted.actions)
        if evicted.again_after is not None:
            plan.again(evicted.again_after)
        heard = self._heard.setdefault(key, ("", clock.monotonic()))
        left = GRACE_SECONDS - (clock.monotonic() - heard[1])
        if left > 0:
            plan.again(left)
        else:
            plan.add(*plan_silent(node, pods, now).actions)
            plan.again(GRACE_SECONDS / 4)
        return plan.plan()


class PodGarbageController(Controller):
    """Removes pods that no node will ever finish: their node is gone, or they never had one."""

    name = "pod-gc"
    resource = PODS

    def __init__(self, cache: Cache, executor: Executor) -> None:
        self._orphaned: dict[str, float] = {}
        super().__init__(cache, executor)

    def watch(self, cache: Cache) -> None:
        """Pods; and those of a node that goes."""
        cache.of(PODS).on_change(self._on_pod)
        cache.of(NODES).on_change(self._on_node)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        if new is not None and (is_terminating(new) or old is None):
            self.enqueue(old, new)

    def _on_node(self, old: Object | None, new: Object | None) -> None:
        if new is None and old is not None:
            for pod in self.cache.of(PODS).by_index(BY_NODE, old["metadata"]["name"]):
                self.enqueue(None, pod)

    def plan(self, key: str) -> Plan | None:
        """Decide about one pod."""
        pod = self.cache.of(PODS).by_key(key)
        if pod is None:
            self._orphaned.pop(key, None)
            return None
        node = pod["spec"].get("nodeName")
        if not node:
            return Plan([Delete(PODS, pod, grace_seconds=0)]) if is_terminating(pod) else None
        if self.cache.of(NODES).get(node) is not None:
            self._orphaned.pop(key, None)
            return None
        # A node that is being registered anew is absent for a moment only.
        since = self._orphaned.setdefault(key, clock.monotonic())
        left = _ORPHAN_SECONDS - (clock.monotonic() - since)
        if left > 0:
            return Plan(again_after=left)
        return Plan([Delete(PODS, pod, grace_seconds=0)])
