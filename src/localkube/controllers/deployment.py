"""Deployment: rolls out a pod template through ReplicaSets, one for each template.

In: the Deployment, its ReplicaSets and their pods, the time. Out: a Plan. Sources: the Kubernetes
documentation of Deployment (strategies, revision history, progress deadline, conditions).
"""

import copy
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from localkube.client.resources import DEPLOYMENTS, PODS, REPLICA_SETS
from localkube.controllers.actions import Create, Delete, Note, Patch, Plan, PlanBuilder
from localkube.controllers.cache import BY_CONTROLLER, Cache
from localkube.controllers.deployment_status import deployment_status
from localkube.controllers.labels import matches
from localkube.controllers.loop import Controller
from localkube.controllers.pods import (
    controller_of,
    is_finished,
    is_terminating,
    labels_of,
    owner_reference,
    template_hash,
)
from localkube.controllers.replicaset import candidates_of, claim
from localkube.controllers.rollout import (
    SetSize,
    proportional_sizes,
    rolling_step,
    surge_and_unavailable,
)
from localkube.kit import clock
from localkube.kit.clock import parse_time

Object = dict[str, Any]
COMPONENT: Final = "deployment-controller"
HASH_LABEL: Final = "pod-template-hash"
REVISION: Final = "deployment.kubernetes.io/revision"
REVISION_HISTORY: Final = "deployment.kubernetes.io/revision-history"
DESIRED: Final = "deployment.kubernetes.io/desired-replicas"
MAX_REPLICAS: Final = "deployment.kubernetes.io/max-replicas"
# Annotations of a Deployment that say nothing about its ReplicaSets.
_NOT_COPIED: Final = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        REVISION,
        REVISION_HISTORY,
        DESIRED,
        MAX_REPLICAS,
    }
)


def plan_deployment(
    deployment: Object, candidates: Sequence[Object], pods: Sequence[Object], now: datetime
) -> Plan:
    """Decide. `candidates`: ReplicaSets it may claim; `pods`: all pods of those."""
    plan = PlanBuilder()
    mine, claims = claim(DEPLOYMENTS, deployment, candidates, REPLICA_SETS)
    plan.add(*claims)
    sets = sorted(mine, key=_age)
    new = find_new(deployment, sets)
    old = [rs for rs in sets if rs is not new]
    if is_terminating(deployment):
        plan.add(deployment_status(plan, deployment, new, old, pods, now))
        return plan.plan()
    paused = bool(deployment["spec"].get("paused"))
    created = None
    if new is None and not paused:
        created = _new_replica_set(deployment, old, pods)
        if created is not None:
            plan.add(Create(REPLICA_SETS, created))
            if created["spec"]["replicas"]:
                plan.add(_scaled_note(deployment, created, 0, created["spec"]["replicas"]))
            _revise(plan, deployment, created["metadata"]["annotations"][REVISION])
    elif new is not None:
        _refresh_annotations(plan, deployment, new, old)
    if created is None:
        _resize(plan, deployment, new, old, pods)
    if not paused:
        _clean_up(plan, deployment, old)
    plan.add(deployment_status(plan, deployment, new, old, pods, now))
    return plan.plan()


def find_new(deployment: Object, sets: Sequence[Object]) -> Object | None:
    """The ReplicaSet of the current template (the oldest, should there be several)."""
    wanted = _bare_template(deployment["spec"]["template"])
    for rs in sets:
        if _bare_template(rs["spec"]["template"]) == wanted:
            return rs
    return None


def _bare_template(template: Object) -> Object:
    bare = copy.deepcopy(template)
    meta = bare.setdefault("metadata", {}) or {}
    labels = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH_LABEL}
    return {
        "labels": labels,
        "annotations": meta.get("annotations") or {},
        "spec": _without_empty_lists(bare.get("spec")),
    }


def _without_empty_lists(value: Any) -> Any:
    """`env: []` says no more than no env: whoever takes the last entry away changes nothing else."""
    if isinstance(value, dict):
        return {k: _without_empty_lists(v) for k, v in value.items() if v != []}
    if isinstance(value, list):
        return [_without_empty_lists(v) for v in value]
    return value


def _age(rs: Object) -> tuple[str, str]:
    return rs["metadata"]["creationTimestamp"], rs["metadata"]["name"]


def revision_of(rs: Object) -> int:
    """A ReplicaSet's revision number; 0 if it has none."""
    text = (rs["metadata"].get("annotations") or {}).get(REVISION, "0")
    return int(text) if text.isdigit() else 0


def _size(rs: Object) -> SetSize:
    status = rs.get("status") or {}
    return SetSize(
        rs["metadata"]["name"],
        int(rs["spec"].get("replicas", 1)),
        int(status.get("replicas") or 0),
        int(status.get("availableReplicas") or 0),
    )


def _surge(deployment: Object) -> tuple[int, int]:
    strategy = deployment["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {}
    return surge_and_unavailable(
        rolling.get("maxSurge", "25%"),
        rolling.get("maxUnavailable", "25%"),
        _replicas(deployment),
    )


def _replicas(deployment: Object) -> int:
    return int(deployment["spec"].get("replicas", 1))


def _copied_annotations(deployment: Object) -> dict[str, str]:
    annotations = deployment["metadata"].get("annotations") or {}
    return {name: value for name, value in annotations.items() if name not in _NOT_COPIED}


def _size_annotations(deployment: Object) -> dict[str, str]:
    replicas = _replicas(deployment)
    return {DESIRED: str(replicas), MAX_REPLICAS: str(replicas + _surge(deployment)[0])}


def _new_replica_set(
    deployment: Object, old: Sequence[Object], pods: Sequence[Object]
) -> Object | None:
    """The ReplicaSet for the current template, or None if it must wait (Recreate)."""
    spec = deployment["spec"]
    collisions = int((deployment.get("status") or {}).get("collisionCount") or 0)
    template = copy.deepcopy(spec["template"])
    hashed = template_hash(_bare_template(template), collisions)
    meta = template.setdefault("metadata", {})
    meta["labels"] = {**(meta.get("labels") or {}), HASH_LABEL: hashed}
    selector = copy.deepcopy(spec["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH_LABEL: hashed}
    replicas = _replicas(deployment)
    recreate = (spec.get("strategy") or {}).get("type") == "Recreate"
    if recreate:
        size = 0 if _old_running(old, pods) else replicas
    else:
        surge, _ = _surge(deployment)
        room = replicas + surge - sum(_size(rs).wanted for rs in old)
        size = max(0, min(room, replicas))
    annotations = _copied_annotations(deployment) | _size_annotations(deployment)
    annotations[REVISION] = str(max((revision_of(rs) for rs in old), default=0) + 1)
    result: Object = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": f"{deployment['metadata']['name']}-{hashed}",
            "namespace": deployment["metadata"]["namespace"],
            "labels": dict(meta["labels"]),
            "annotations": annotations,
            "ownerReferences": [owner_reference(DEPLOYMENTS, deployment)],
        },
        "spec": {"replicas": size, "selector": selector, "template": template},
    }
    if spec.get("minReadySeconds"):
        result["spec"]["minReadySeconds"] = spec["minReadySeconds"]
    return result


def _old_running(old: Sequence[Object], pods: Sequence[Object]) -> bool:
    uids = {rs["metadata"]["uid"] for rs in old}
    return any(
        (controller_of(pod) or {}).get("uid") in uids and not is_finished(pod) for pod in pods
    )


def _refresh_annotations(
    plan: PlanBuilder, deployment: Object, new: Object, old: Sequence[Object]
) -> None:
    """Keep the new set's revision the highest (a rollback reuses an old set) and its notes fresh."""
    annotations = new["metadata"].get("annotations") or {}
    wanted = _copied_annotations(deployment) | _size_annotations(deployment)
    highest = max((revision_of(rs) for rs in old), default=0)
    current = revision_of(new)
    if current <= highest:
        wanted[REVISION] = str(highest + 1)
        if current:
            history = annotations.get(REVISION_HISTORY)
            wanted[REVISION_HISTORY] = f"{history},{current}" if history else str(current)
    changed = {name: value for name, value in wanted.items() if annotations.get(name) != value}
    patch: Object = {"metadata": {"annotations": changed}} if changed else {}
    min_ready = deployment["spec"].get("minReadySeconds") or 0
    if (new["spec"].get("minReadySeconds") or 0) != min_ready:
        patch["spec"] = {"minReadySeconds": min_ready}
    # The old size annotations tell a scaled Deployment from a rolling one: keep them until then.
    if patch and not _scaled(deployment, new, old):
        plan.add(Patch(REPLICA_SETS, new, patch))
    _revise(plan, deployment, wanted.get(REVISION, str(current)))


def _revise(plan: PlanBuilder, deployment: Object, revision: str) -> None:
    if (deployment["metadata"].get("annotations") or {}).get(REVISION) != revision:
        patch = {"metadata": {"annotations": {REVISION: revision}}}
        plan.add(Patch(DEPLOYMENTS, deployment, patch))


def _scaled(deployment: Object, new: Object | None, old: Sequence[Object]) -> bool:
    """Whether spec.replicas changed since the active sets were last sized."""
    for rs in [*old, *([new] if new is not None else [])]:
        desired = (rs["metadata"].get("annotations") or {}).get(DESIRED)
        if _size(rs).wanted > 0 and desired and desired != str(_replicas(deployment)):
            return True
    return False


def _resize(
    plan: PlanBuilder,
    deployment: Object,
    new: Object | None,
    old: Sequence[Object],
    pods: Sequence[Object],
) -> None:
    replicas = _replicas(deployment)
    by_name = {rs["metadata"]["name"]: rs for rs in [*old, *([new] if new is not None else [])]}
    paused = bool(deployment["spec"].get("paused"))
    recreate = (deployment["spec"].get("strategy") or {}).get("type") == "Recreate"
    scaled = _scaled(deployment, new, old)
    sizes: dict[str, int]
    if paused or scaled:
        sizes = _scale_sizes(deployment, new, old)
    elif new is None:
        return
    elif recreate:
        sizes = {rs["metadata"]["name"]: 0 for rs in old if _size(rs).wanted}
        if not sizes and not _old_running(old, pods) and _size(new).wanted != replicas:
            sizes = {new["metadata"]["name"]: replicas}
    else:
        surge, unavailable = _surge(deployment)
        sizes = rolling_step(replicas, surge, unavailable, _size(new), [_size(rs) for rs in old])
    if scaled:
        for name, rs in by_name.items():
            if _size(rs).wanted:
                sizes.setdefault(name, _size(rs).wanted)
    for name, size in sizes.items():
        _set_size(plan, deployment, by_name[name], size)


def _scale_sizes(deployment: Object, new: Object | None, old: Sequence[Object]) -> dict[str, int]:
    replicas = _replicas(deployment)
    active = [rs for rs in old if _size(rs).wanted]
    if new is not None and (_size(new).wanted or not active):
        active.append(new)
    if not active:
        return {}
    if len(active) == 1:
        size = _size(active[0])
        return {size.name: replicas} if size.wanted != replicas else {}
    surge, _ = _surge(deployment)
    total = replicas + surge if replicas else 0
    return proportional_sizes([_size(rs) for rs in active], total)


def _set_size(plan: PlanBuilder, deployment: Object, rs: Object, size: int) -> None:
    before = _size(rs).wanted
    patch: Object = {"metadata": {"annotations": _size_annotations(deployment)}}
    if before != size:
        patch["spec"] = {"replicas": size}
        plan.add(_scaled_note(deployment, rs, before, size))
    # Guarded: a size that rests on an outdated view of the set must not be written.
    plan.add(Patch(REPLICA_SETS, rs, patch, guarded=before != size))


def _scaled_note(deployment: Object, rs: Object, before: int, size: int) -> Note:
    direction = "up" if size > before else "down"
    name = rs["metadata"]["name"]
    text = f"Scaled {direction} replica set {name} from {before} to {size}"
    return Note(deployment, "Normal", "ScalingReplicaSet", text, COMPONENT)


def _clean_up(plan: PlanBuilder, deployment: Object, old: Sequence[Object]) -> None:
    """Delete the oldest empty ReplicaSets beyond revisionHistoryLimit."""
    limit = int(deployment["spec"].get("revisionHistoryLimit", 10))
    empty = [
        rs
        for rs in old
        if not is_terminating(rs)
        and _size(rs).wanted == 0
        and _size(rs).existing == 0
        and int((rs.get("status") or {}).get("observedGeneration") or 0)
        >= int(rs["metadata"].get("generation") or 0)
    ]
    empty.sort(key=lambda rs: (revision_of(rs), parse_time(rs["metadata"]["creationTimestamp"])))
    for rs in empty[: max(0, len(empty) - limit)]:
        plan.add(Delete(REPLICA_SETS, rs))


class DeploymentController(Controller):
    """Rolls out Deployments."""

    name = "deployment"
    resource = DEPLOYMENTS

    def watch(self, cache: Cache) -> None:
        """Deployments, their ReplicaSets, and the end of those sets' pods (for Recreate)."""
        cache.of(DEPLOYMENTS).on_change(self.enqueue)
        cache.of(REPLICA_SETS).on_change(self._on_replica_set)
        cache.of(PODS).on_change(self._on_pod)

    def _on_replica_set(self, old: Object | None, new: Object | None) -> None:
        self.enqueue_owner(old, new)
        if new is not None and controller_of(new) is None:
            for deployment in self.cache.of(DEPLOYMENTS).items():
                same = deployment["metadata"]["namespace"] == new["metadata"]["namespace"]
                if same and matches(deployment["spec"].get("selector"), labels_of(new)):
                    self.enqueue(None, deployment)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        if old is None or new is not None:
            return
        owner = controller_of(old)
        if owner is not None and owner["kind"] == "ReplicaSet":
            rs = self.cache.of(REPLICA_SETS).get(owner["name"], old["metadata"]["namespace"])
            if rs is not None:
                self.enqueue_owner(None, rs)

    def plan(self, key: str) -> Plan | None:
        """Decide about one Deployment."""
        deployment = self.cache.of(DEPLOYMENTS).by_key(key)
        if deployment is None:
            return None
        candidates = candidates_of(deployment, self.cache.of(REPLICA_SETS))
        pods = [
            pod
            for rs in candidates
            for pod in self.cache.of(PODS).by_index(BY_CONTROLLER, rs["metadata"]["uid"])
        ]
        return plan_deployment(deployment, candidates, pods, clock.now())
