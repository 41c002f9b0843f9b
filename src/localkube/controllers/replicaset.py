"""ReplicaSet: as many pods of a template as spec.replicas says.

In: the ReplicaSet, the pods of its namespace, the time. Out: a Plan: adopt and release pods, create
or delete the difference, report the status.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from localkube.client import ApiStatusError, Informer, ResourceType
from localkube.client.resources import PODS, REPLICA_SETS
from localkube.controllers.actions import (
    Action,
    Create,
    Delete,
    Note,
    Patch,
    Plan,
    PlanBuilder,
    status_patch,
)
from localkube.controllers.cache import BY_CONTROLLER, BY_NAMESPACE, Cache
from localkube.controllers.labels import matches
from localkube.controllers.loop import Controller
from localkube.controllers.pods import (
    controller_of,
    deletion_order,
    from_template,
    is_active,
    is_finished,
    is_ready,
    is_terminating,
    labels_of,
    owner_reference,
    seconds_until_available,
    with_condition,
)
from localkube.kit import clock

Object = dict[str, Any]
COMPONENT: Final = "replicaset-controller"
_BURST: Final = 500  # pods created or deleted by one plan, as in Kubernetes


def claim(
    resource: ResourceType, owner: Object, candidates: Iterable[Object], target: ResourceType
) -> tuple[list[Object], list[Action]]:
    """Which candidates belong to `owner`, and what makes it so: orphans that its selector matches
    are adopted, owned objects that it no longer matches are released."""
    mine: list[Object] = []
    actions: list[Action] = []
    uid = owner["metadata"]["uid"]
    selector = owner["spec"].get("selector")
    for obj in candidates:
        references = obj["metadata"].get("ownerReferences") or []
        controller = controller_of(obj)
        fits = matches(selector, labels_of(obj))
        if controller is not None:
            if controller["uid"] != uid:
                continue
            if fits or is_terminating(owner):
                mine.append(obj)
            else:
                kept = [ref for ref in references if ref["uid"] != uid]
                actions.append(Patch(target, obj, {"metadata": {"ownerReferences": kept or None}}))
        elif fits and not is_terminating(owner) and not is_terminating(obj):
            if target == PODS and is_finished(obj):
                continue
            added = [*references, owner_reference(resource, owner)]
            actions.append(
                Patch(target, obj, {"metadata": {"ownerReferences": added}}, guarded=True)
            )
            mine.append(obj)
    return mine, actions


def candidates_of(owner: Object, informer: Informer) -> list[Object]:
    """The objects an owner may claim: those it controls, and its namespace's others by label."""
    namespace = owner["metadata"]["namespace"]
    owned = informer.by_index(BY_CONTROLLER, owner["metadata"]["uid"])
    orphans = [
        obj for obj in informer.by_index(BY_NAMESPACE, namespace) if controller_of(obj) is None
    ]
    return owned + orphans


def plan_replica_set(
    rs: Object, pods: Iterable[Object], now: datetime, failure: str | None = None
) -> Plan:
    """Decide. `failure` is the server's answer to the last attempt to create or delete pods."""
    plan = PlanBuilder()
    mine, claims = claim(REPLICA_SETS, rs, pods, PODS)
    plan.add(*claims)
    active = [pod for pod in mine if is_active(pod)]
    if failure is None and not is_terminating(rs):
        wanted = int(rs["spec"].get("replicas", 1))
        _scale(plan, rs, active, wanted)
    terminating = sum(is_terminating(pod) and not is_finished(pod) for pod in mine)
    plan.add(_status(plan, rs, active, terminating, now, failure))
    return plan.plan()


def _scale(plan: PlanBuilder, rs: Object, active: list[Object], wanted: int) -> None:
    missing = wanted - len(active)
    for _ in range(min(missing, _BURST)):
        pod = from_template(rs["spec"]["template"], rs, REPLICA_SETS)
        plan.add(Create(PODS, pod, told_to=(rs, COMPONENT)))
    if missing < 0:
        for pod in deletion_order(active)[: min(-missing, _BURST)]:
            name = pod["metadata"]["name"]
            plan.add(Delete(PODS, pod))
            plan.add(Note(rs, "Normal", "SuccessfulDelete", f"Deleted pod: {name}", COMPONENT))
        # Deletions side by side, then the notes.
        plan.actions.sort(key=lambda action: isinstance(action, Note))


def _status(
    plan: PlanBuilder,
    rs: Object,
    active: list[Object],
    terminating: int,
    now: datetime,
    failure: str | None,
) -> Action | None:
    min_ready = int(rs["spec"].get("minReadySeconds") or 0)
    template_labels = (rs["spec"]["template"].get("metadata") or {}).get("labels") or {}
    available = 0
    for pod in active:
        left = seconds_until_available(pod, min_ready, now)
        if left == 0.0:
            available += 1
        elif left is not None:
            plan.again(left)
    status: Object = {
        "replicas": len(active),
        "fullyLabeledReplicas": sum(
            template_labels.items() <= dict(labels_of(pod)).items() for pod in active
        ),
        "readyReplicas": sum(is_ready(pod) for pod in active),
        "availableReplicas": available,
        "terminatingReplicas": terminating,
        "observedGeneration": rs["metadata"].get("generation", 1),
    }
    # Zero counts are left out, as Kubernetes does; replicas is required.
    status = {name: value for name, value in status.items() if value or name == "replicas"}
    old = (rs.get("status") or {}).get("conditions") or []
    conditions = [entry for entry in old if entry.get("type") != "ReplicaFailure"]
    if failure is not None:
        entry = {
            "type": "ReplicaFailure",
            "status": "True",
            "reason": "FailedCreate",
            "message": failure,
        }
        conditions = with_condition(old, entry, clock.rfc3339(now))
    if conditions:
        status["conditions"] = conditions
    return status_patch(REPLICA_SETS, rs, status)


class ReplicaSetController(Controller):
    """Keeps ReplicaSets at their size."""

    name = "replicaset"
    resource = REPLICA_SETS
    workers = 4

    def watch(self, cache: Cache) -> None:
        """ReplicaSets, and pods that they own or might adopt."""
        cache.of(REPLICA_SETS).on_change(self.enqueue)
        cache.of(PODS).on_change(self._on_pod)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        self.enqueue_owner(old, new)
        if new is not None and controller_of(new) is None:
            namespace = new["metadata"]["namespace"]
            for rs in self.cache.of(REPLICA_SETS).by_index(BY_NAMESPACE, namespace):
                if matches(rs["spec"].get("selector"), labels_of(new)):
                    self.enqueue(None, rs)

    def plan(self, key: str) -> Plan | None:
        """Decide about one ReplicaSet."""
        rs = self.cache.of(REPLICA_SETS).by_key(key)
        if rs is None:
            return None
        return plan_replica_set(rs, candidates_of(rs, self.cache.of(PODS)), clock.now())

    async def reconcile(self, key: str) -> float | None:
        """As usual, but a refusal (by a quota or webhook, say) is told in status and events."""
        try:
            return await super().reconcile(key)
        except ApiStatusError as error:
            rs = self.cache.of(REPLICA_SETS).by_key(key)
            if rs is not None and not error.conflict and not error.not_found:
                note = Note(rs, "Warning", "FailedCreate", f"Error creating: {error}", COMPONENT)
                pods = candidates_of(rs, self.cache.of(PODS))
                told = plan_replica_set(rs, pods, clock.now(), failure=str(error))
                await self.executor.run([note, *told.actions])
            raise
