"""DaemonSet: one pod on every node that fits.

In: the DaemonSet, its pods and revisions, the nodes, the time. Out: a Plan. Pods are bound to their
node directly, and tolerate the taints of a node in trouble, as the documentation lists them.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from localkube.client.resources import CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS
from localkube.controllers.actions import Create, Delete, Plan, PlanBuilder, status_patch
from localkube.controllers.cache import Cache
from localkube.controllers.loop import Controller
from localkube.controllers.pods import (
    from_template,
    is_finished,
    is_ready,
    is_terminating,
    labels_of,
    seconds_until_available,
)
from localkube.controllers.replicaset import candidates_of, claim
from localkube.controllers.revisions import REVISION_LABEL, current_revision, forget_old, hash_of
from localkube.controllers.rollout import resolve_percentage
from localkube.controllers.scheduler import selects_node, untolerated
from localkube.controllers.statefulset import revisions_of
from localkube.kit import clock

Object = dict[str, Any]
COMPONENT: Final = "daemonset-controller"
_TOLERATED: Final = (
    ("not-ready", "NoExecute"),
    ("unreachable", "NoExecute"),
    ("disk-pressure", "NoSchedule"),
    ("memory-pressure", "NoSchedule"),
    ("pid-pressure", "NoSchedule"),
    ("unschedulable", "NoSchedule"),
)


def new_pod(owner: Object, node: str, hashed: str) -> Object:
    """The pod for a node."""
    pod = from_template(owner["spec"]["template"], owner, DAEMON_SETS)
    pod["metadata"].setdefault("labels", {})[REVISION_LABEL] = hashed
    pod["spec"]["nodeName"] = node
    pod["spec"]["tolerations"] = [
        *(pod["spec"].get("tolerations") or []),
        *(
            {"key": f"node.kubernetes.io/{name}", "operator": "Exists", "effect": effect}
            for name, effect in _TOLERATED
        ),
    ]
    return pod


def fits(pod: Object, node: Object) -> bool:
    """(may start there, may stay there) are the same here but for NoSchedule taints."""
    return selects_node(pod, node) and untolerated(pod, node, ("NoSchedule", "NoExecute")) is None


def may_stay(pod: Object, node: Object) -> bool:
    """A running pod is only driven out by NoExecute taints and by labels."""
    return selects_node(pod, node) and untolerated(pod, node, ("NoExecute",)) is None


def plan_daemon_set(
    owner: Object,
    pods: Sequence[Object],
    revisions: Sequence[Object],
    nodes: Sequence[Object],
    now: datetime,
) -> Plan:
    """Decide. `pods`: those it may claim."""
    plan = PlanBuilder()
    mine, claims = claim(DAEMON_SETS, owner, pods, PODS)
    plan.add(*claims)
    if is_terminating(owner):
        return plan.plan()
    update = current_revision(plan, DAEMON_SETS, owner, revisions)
    hashed = hash_of(update)
    by_node: dict[str, list[Object]] = {}
    for pod in mine:
        by_node.setdefault(pod["spec"].get("nodeName") or "", []).append(pod)
    wanted: set[str] = set()
    for node in nodes:
        name = node["metadata"]["name"]
        made = new_pod(owner, name, hashed)
        here = by_node.get(name, [])
        if fits(made, node) or (here and may_stay(made, node)):
            wanted.add(name)
            _one_pod(plan, owner, made, here)
    for name, here in by_node.items():
        if name not in wanted:
            plan.add(*(Delete(PODS, pod) for pod in here if not is_terminating(pod)))
    if (owner["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate":
        _replace(plan, owner, by_node, wanted, hashed)
    _status(plan, owner, by_node, wanted, hashed, now)
    used = {labels_of(pod).get(REVISION_LABEL, "") for pod in mine} | {hashed}
    forget_old(plan, owner, revisions, used)
    return plan.plan()


def _one_pod(plan: PlanBuilder, owner: Object, made: Object, here: list[Object]) -> None:
    """Exactly one pod on a node that shall have one; failed ones are replaced."""
    plan.add(*(Delete(PODS, p) for p in here if is_finished(p) and not is_terminating(p)))
    alive = [p for p in here if not is_finished(p)]
    if not alive:
        plan.add(Create(PODS, made, told_to=(owner, COMPONENT)))
        return
    extra = sorted(
        (p for p in alive if not is_terminating(p)),
        key=lambda p: (not is_ready(p), p["metadata"]["creationTimestamp"]),
    )[1:]
    plan.add(*(Delete(PODS, p) for p in extra))


def _replace(
    plan: PlanBuilder,
    owner: Object,
    by_node: dict[str, list[Object]],
    wanted: set[str],
    hashed: str,
) -> None:
    rolling = (owner["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    limit = resolve_percentage(rolling.get("maxUnavailable", 1), len(wanted), round_up=True)
    allowed = max(1, limit)
    outdated = []
    for name in sorted(wanted):
        alive = [p for p in by_node.get(name, []) if not is_finished(p)]
        if not any(is_ready(p) and not is_terminating(p) for p in alive):
            allowed -= 1
        for pod in alive:
            if labels_of(pod).get(REVISION_LABEL) != hashed and not is_terminating(pod):
                outdated.append(pod)
    # Those that serve nobody go first, and cost nothing.
    for pod in sorted(outdated, key=is_ready):
        if not is_ready(pod):
            plan.add(Delete(PODS, pod))
        elif allowed > 0:
            allowed -= 1
            plan.add(Delete(PODS, pod))


def _status(
    plan: PlanBuilder,
    owner: Object,
    by_node: dict[str, list[Object]],
    wanted: set[str],
    hashed: str,
    now: datetime,
) -> None:
    min_ready = int(owner["spec"].get("minReadySeconds") or 0)
    there = {n: [p for p in pods if not is_terminating(p)] for n, pods in by_node.items()}
    current = [there[n][0] for n in wanted if there.get(n)]
    available = 0
    for pod in current:
        left = seconds_until_available(pod, min_ready, now)
        available += left == 0.0
        if left:
            plan.again(left)
    status: Object = {
        "observedGeneration": owner["metadata"].get("generation", 1),
        "desiredNumberScheduled": len(wanted),
        "currentNumberScheduled": len(current),
        "numberMisscheduled": sum(bool(p) for n, p in there.items() if n not in wanted),
        "numberReady": sum(is_ready(pod) for pod in current),
        "numberAvailable": available,
        "numberUnavailable": len(wanted) - available,
        "updatedNumberScheduled": sum(
            labels_of(pod).get(REVISION_LABEL) == hashed for pod in current
        ),
    }
    optional = ("numberAvailable", "numberUnavailable", "updatedNumberScheduled")
    status = {key: value for key, value in status.items() if value or key not in optional}
    plan.add(status_patch(DAEMON_SETS, owner, status))


class DaemonSetController(Controller):
    """Keeps DaemonSets."""

    name = "daemonset"
    resource = DAEMON_SETS

    def watch(self, cache: Cache) -> None:
        """DaemonSets, their pods, nodes, revisions."""
        cache.of(DAEMON_SETS).on_change(self.enqueue)
        cache.of(PODS).on_change(self.enqueue_owner)
        cache.of(NODES).on_change(self._on_node)
        cache.of(CONTROLLER_REVISIONS)

    def _on_node(self, old: Object | None, new: Object | None) -> None:
        for owner in self.cache.of(DAEMON_SETS).items():
            self.enqueue(None, owner)

    def plan(self, key: str) -> Plan | None:
        """Decide about one DaemonSet."""
        owner = self.cache.of(DAEMON_SETS).by_key(key)
        if owner is None:
            return None
        pods = candidates_of(owner, self.cache.of(PODS))
        nodes = sorted(self.cache.of(NODES).items(), key=lambda n: str(n["metadata"]["name"]))
        revisions = revisions_of(self.cache, owner)
        return plan_daemon_set(owner, pods, revisions, nodes, clock.now())
