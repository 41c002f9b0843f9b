"""StatefulSet: pods with stable names, started in order and replaced in reverse order.

In: the StatefulSet, its pods and revisions, the time. Out: a Plan. volumeClaimTemplates are
accepted: there is no storage provisioner on one machine, so each becomes an emptyDir of its pod,
and an Event says so. Source: the Kubernetes documentation "StatefulSets".
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from localkube.client.resources import CONTROLLER_REVISIONS, PODS, STATEFUL_SETS
from localkube.controllers.actions import (
    Create,
    Delete,
    Note,
    Patch,
    Plan,
    PlanBuilder,
    status_patch,
)
from localkube.controllers.cache import BY_NAMESPACE, Cache
from localkube.controllers.loop import Controller
from localkube.controllers.pods import (
    controller_of,
    from_template,
    is_finished,
    is_ready,
    is_terminating,
    labels_of,
    seconds_until_available,
)
from localkube.controllers.replicaset import candidates_of, claim
from localkube.controllers.revisions import (
    REVISION_LABEL,
    current_revision,
    forget_old,
    hash_of,
    template_of,
)
from localkube.controllers.rollout import resolve_percentage
from localkube.kit import clock

Object = dict[str, Any]
COMPONENT: Final = "statefulset-controller"
NAME_LABEL: Final = "statefulset.kubernetes.io/pod-name"
INDEX_LABEL: Final = "apps.kubernetes.io/pod-index"


def ordinal_of(owner: Object, pod: Object) -> int | None:
    """N of a pod named OWNER-N, or None."""
    prefix, _, number = pod["metadata"]["name"].rpartition("-")
    if prefix != owner["metadata"]["name"] or not number.isdigit():
        return None
    return int(number)


def new_pod(owner: Object, template: Object, ordinal: int, hashed: str) -> Object:
    """The pod of an ordinal."""
    name = f"{owner['metadata']['name']}-{ordinal}"
    pod = from_template(template, owner, STATEFUL_SETS, name=name)
    labels = pod["metadata"].setdefault("labels", {})
    labels |= {NAME_LABEL: name, INDEX_LABEL: str(ordinal), REVISION_LABEL: hashed}
    pod["spec"]["hostname"] = name
    if owner["spec"].get("serviceName"):
        pod["spec"]["subdomain"] = owner["spec"]["serviceName"]
    claims = {c["metadata"]["name"] for c in owner["spec"].get("volumeClaimTemplates") or []}
    if claims:
        others = [v for v in pod["spec"].get("volumes") or [] if v["name"] not in claims]
        pod["spec"]["volumes"] = others + [{"name": c, "emptyDir": {}} for c in sorted(claims)]
    return pod


def plan_stateful_set(
    owner: Object, pods: Sequence[Object], revisions: Sequence[Object], now: datetime
) -> Plan:
    """Decide. `pods`: those it may claim."""
    plan = PlanBuilder()
    mine, claims = claim(STATEFUL_SETS, owner, pods, PODS)
    plan.add(*claims)
    if is_terminating(owner):
        return plan.plan()
    update = current_revision(plan, STATEFUL_SETS, owner, revisions)
    by_hash = {hash_of(r): r for r in [*revisions, update]}
    current_hash = str((owner.get("status") or {}).get("currentRevision") or "")
    current_hash = current_hash.removeprefix(f"{owner['metadata']['name']}-")
    current = by_hash.get(current_hash, update)
    by_ordinal = {o: pod for pod in mine if (o := ordinal_of(owner, pod)) is not None}
    # Whatever else the plan holds, pods come one step at a time.
    _step(plan, owner, by_ordinal, current, update, now)
    _status(plan, owner, by_ordinal, current, update, now)
    used = {labels_of(pod).get(REVISION_LABEL, "") for pod in mine}
    forget_old(plan, owner, revisions, used | {hash_of(current), hash_of(update)})
    return plan.plan()


def _first_ordinal(owner: Object) -> int:
    return int((owner["spec"].get("ordinals") or {}).get("start") or 0)


def _step(
    plan: PlanBuilder,
    owner: Object,
    by_ordinal: dict[int, Object],
    current: Object,
    update: Object,
    now: datetime,
) -> None:
    spec = owner["spec"]
    first = _first_ordinal(owner)
    wanted = range(first, first + int(spec.get("replicas", 1)))
    in_order = spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
    min_ready = int(spec.get("minReadySeconds") or 0)
    strategy = spec.get("updateStrategy") or {}
    rolling = strategy.get("rollingUpdate") or {}
    partition = int(rolling.get("partition") or 0)
    for ordinal in wanted:
        pod = by_ordinal.get(ordinal)
        if pod is None:
            revision = update if ordinal >= first + partition else current
            if strategy.get("type") == "OnDelete":
                revision = update
            made = new_pod(owner, template_of(revision), ordinal, hash_of(revision))
            plan.add(Create(PODS, made, exists_ok=True, told_to=(owner, COMPONENT)))
            if spec.get("volumeClaimTemplates"):
                plan.add(_claims_note(owner, made))
        elif is_finished(pod) and not is_terminating(pod):
            plan.add(Delete(PODS, pod))
        else:
            left = seconds_until_available(pod, min_ready, now)
            if left == 0.0 and not is_terminating(pod):
                continue
            if left:
                plan.again(left)
        if in_order:
            return  # one at a time: the next one when this one is available
    surplus = sorted((o for o in by_ordinal if o not in wanted), reverse=True)
    for ordinal in surplus:
        pod = by_ordinal[ordinal]
        if not is_terminating(pod):
            plan.add(Delete(PODS, pod))
            text = f"delete Pod {pod['metadata']['name']} in StatefulSet successful"
            plan.add(Note(owner, "Normal", "SuccessfulDelete", text, COMPONENT))
        if in_order:
            return
    if strategy.get("type", "RollingUpdate") == "RollingUpdate" and not surplus:
        _replace(plan, owner, by_ordinal, wanted, first + partition, update)


def _replace(
    plan: PlanBuilder,
    owner: Object,
    by_ordinal: dict[int, Object],
    wanted: range,
    from_ordinal: int,
    update: Object,
) -> None:
    """Delete outdated pods, the highest ordinal first, at most maxUnavailable at a time."""
    rolling = (owner["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
    allowed = max(
        1, resolve_percentage(rolling.get("maxUnavailable", 1), len(wanted), round_up=True)
    )
    for ordinal in reversed(wanted):
        if ordinal < from_ordinal:
            return
        pod = by_ordinal.get(ordinal)
        if pod is None or is_terminating(pod) or not is_ready(pod):
            allowed -= 1
            outdated = pod is not None and labels_of(pod).get(REVISION_LABEL) != hash_of(update)
            if pod is not None and outdated and not is_terminating(pod):
                plan.add(Delete(PODS, pod))
        elif labels_of(pod).get(REVISION_LABEL) != hash_of(update):
            plan.add(Delete(PODS, pod))
            allowed -= 1
        if allowed <= 0:
            return


def _claims_note(owner: Object, pod: Object) -> Note:
    names = ", ".join(c["metadata"]["name"] for c in owner["spec"]["volumeClaimTemplates"])
    text = (
        f"volumeClaimTemplates ({names}) of {pod['metadata']['name']} are emptyDirs here: their "
        "content lives as long as the pod"
    )
    return Note(owner, "Warning", "EphemeralVolumeClaims", text, COMPONENT)


def _status(
    plan: PlanBuilder,
    owner: Object,
    by_ordinal: dict[int, Object],
    current: Object,
    update: Object,
    now: datetime,
) -> None:
    spec = owner["spec"]
    min_ready = int(spec.get("minReadySeconds") or 0)
    alive = [pod for pod in by_ordinal.values() if not is_terminating(pod)]
    updated = [p for p in alive if labels_of(p).get(REVISION_LABEL) == hash_of(update)]
    replicas = int(spec.get("replicas", 1))
    ready = [pod for pod in alive if is_ready(pod)]
    done = len(updated) == len(alive) == replicas and len(ready) == replicas
    name = owner["metadata"]["name"]
    if done and (spec.get("updateStrategy") or {}).get("type") != "OnDelete":
        current = update
    same = [p for p in alive if labels_of(p).get(REVISION_LABEL) == hash_of(current)]
    status: Object = {
        "observedGeneration": owner["metadata"].get("generation", 1),
        "replicas": len(alive),
        "readyReplicas": len(ready),
        "availableReplicas": sum(
            seconds_until_available(pod, min_ready, now) == 0.0 for pod in alive
        ),
        "currentReplicas": len(same),
        "updatedReplicas": len(updated),
        "currentRevision": f"{name}-{hash_of(current)}",
        "updateRevision": f"{name}-{hash_of(update)}",
        "collisionCount": 0,
    }
    kept = ("replicas", "availableReplicas", "collisionCount")
    status = {key: value for key, value in status.items() if value or key in kept}
    patch: Patch | None = status_patch(STATEFUL_SETS, owner, status)
    plan.add(patch)


class StatefulSetController(Controller):
    """Keeps StatefulSets."""

    name = "statefulset"
    resource = STATEFUL_SETS

    def watch(self, cache: Cache) -> None:
        """StatefulSets, their pods and revisions."""
        cache.of(STATEFUL_SETS).on_change(self.enqueue)
        cache.of(PODS).on_change(self.enqueue_owner)
        cache.of(CONTROLLER_REVISIONS)

    def plan(self, key: str) -> Plan | None:
        """Decide about one StatefulSet."""
        owner = self.cache.of(STATEFUL_SETS).by_key(key)
        if owner is None:
            return None
        pods = candidates_of(owner, self.cache.of(PODS))
        return plan_stateful_set(owner, pods, revisions_of(self.cache, owner), clock.now())


def revisions_of(cache: Cache, owner: Object) -> list[Object]:
    """The ControllerRevisions that `owner` controls."""
    namespace = owner["metadata"]["namespace"]
    return [
        revision
        for revision in cache.of(CONTROLLER_REVISIONS).by_index(BY_NAMESPACE, namespace)
        if (controller_of(revision) or {}).get("uid") == owner["metadata"]["uid"]
    ]
