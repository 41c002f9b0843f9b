"""The status of a Deployment: counts, and the conditions Available, Progressing, ReplicaFailure.

In: the Deployment, its ReplicaSets and pods, the time. Out: the status patch, and in the plan when
the progress deadline has to be looked at again. `kubectl rollout status` reads this.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from localkube.client.resources import DEPLOYMENTS
from localkube.controllers.actions import Patch, PlanBuilder, status_patch
from localkube.controllers.pods import condition, is_finished, is_terminating, with_condition
from localkube.controllers.rollout import surge_and_unavailable
from localkube.kit.clock import parse_time, rfc3339

Object = dict[str, Any]


def deployment_status(
    plan: PlanBuilder,
    deployment: Object,
    new: Object | None,
    old: Sequence[Object],
    pods: Sequence[Object],
    now: datetime,
) -> Patch | None:
    """The patch that brings status up to date, or None."""
    every = [*old, *([new] if new is not None else [])]
    replicas = int(deployment["spec"].get("replicas", 1))
    counts = {
        "replicas": _sum(every, "replicas"),
        "updatedReplicas": _sum([new] if new is not None else [], "replicas"),
        "readyReplicas": _sum(every, "readyReplicas"),
        "availableReplicas": _sum(every, "availableReplicas"),
    }
    wanted = sum(int(rs["spec"].get("replicas", 1)) for rs in every)
    counts["unavailableReplicas"] = max(0, max(wanted, replicas) - counts["availableReplicas"])
    counts["terminatingReplicas"] = sum(
        is_terminating(pod) and not is_finished(pod) for pod in pods
    )
    status: Object = {name: count for name, count in counts.items() if count}
    status["observedGeneration"] = deployment["metadata"].get("generation", 1)
    collisions = (deployment.get("status") or {}).get("collisionCount")
    if collisions:
        status["collisionCount"] = collisions
    status["conditions"] = _conditions(plan, deployment, new, every, counts, now)
    return status_patch(DEPLOYMENTS, deployment, status)


def _sum(sets: Sequence[Object], field: str) -> int:
    return sum(int((rs.get("status") or {}).get(field) or 0) for rs in sets)


def complete(deployment: Object, counts: dict[str, int]) -> bool:
    """Whether all pods are of the new template, available, and no old one is left."""
    replicas = int(deployment["spec"].get("replicas", 1))
    return counts["updatedReplicas"] == counts["replicas"] == counts[
        "availableReplicas"
    ] == replicas and int((deployment.get("status") or {}).get("observedGeneration") or 0) <= int(
        deployment["metadata"].get("generation", 1)
    )


def _conditions(
    plan: PlanBuilder,
    deployment: Object,
    new: Object | None,
    every: Sequence[Object],
    counts: dict[str, int],
    now: datetime,
) -> list[Object]:
    text = rfc3339(now)
    conditions = list((deployment.get("status") or {}).get("conditions") or [])
    conditions = _set(conditions, _available(deployment, counts), text)
    progressing = _progressing(plan, deployment, new, counts, now)
    if progressing is not None:
        conditions = _set(conditions, progressing, text)
    conditions = [entry for entry in conditions if entry.get("type") != "ReplicaFailure"]
    for rs in every:
        failure = condition(rs, "ReplicaFailure")
        if failure is not None and failure.get("status") == "True":
            conditions.append({**failure, "lastUpdateTime": failure.get("lastTransitionTime")})
            break
    return conditions


def _set(conditions: list[Object], entry: Object, text: str) -> list[Object]:
    """Put a condition in; lastUpdateTime changes with its status, reason or message, or if the
    entry brings another one."""
    known = next((c for c in conditions if c.get("type") == entry["type"]), None)
    same = known is not None and all(
        known.get(field) == entry.get(field, known.get(field))
        for field in ("status", "reason", "message", "lastUpdateTime")
    )
    if same:
        return conditions
    return with_condition(conditions, {"lastUpdateTime": text, **entry}, text)


def _available(deployment: Object, counts: dict[str, int]) -> Object:
    replicas = int(deployment["spec"].get("replicas", 1))
    strategy = deployment["spec"].get("strategy") or {}
    unavailable = 0
    if strategy.get("type") != "Recreate":
        rolling = strategy.get("rollingUpdate") or {}
        _, unavailable = surge_and_unavailable(
            rolling.get("maxSurge", "25%"), rolling.get("maxUnavailable", "25%"), replicas
        )
    if counts["availableReplicas"] >= replicas - unavailable:
        return {
            "type": "Available",
            "status": "True",
            "reason": "MinimumReplicasAvailable",
            "message": "Deployment has minimum availability.",
        }
    return {
        "type": "Available",
        "status": "False",
        "reason": "MinimumReplicasUnavailable",
        "message": "Deployment does not have minimum availability.",
    }


def _progressing(
    plan: PlanBuilder,
    deployment: Object,
    new: Object | None,
    counts: dict[str, int],
    now: datetime,
) -> Object | None:
    known = condition(deployment, "Progressing")
    deadline = deployment["spec"].get("progressDeadlineSeconds", 600)
    if deployment["spec"].get("paused"):
        return _entry("Unknown", "DeploymentPaused", "Deployment is paused")
    if new is None:
        return known or _entry("True", "NewReplicaSetCreated", "Created new replica set")
    name = new["metadata"]["name"]
    if complete(deployment, counts):
        text = f'ReplicaSet "{name}" has successfully progressed.'
        return _entry("True", "NewReplicaSetAvailable", text)
    old = deployment.get("status") or {}
    moved = any(
        counts[field] > int(old.get(field) or 0)
        for field in ("updatedReplicas", "readyReplicas", "availableReplicas")
    ) or counts["replicas"] - counts["updatedReplicas"] < int(old.get("replicas") or 0) - int(
        old.get("updatedReplicas") or 0
    )
    fresh = int(old.get("observedGeneration") or 0) < int(
        deployment["metadata"].get("generation", 1)
    )
    progress = _entry("True", "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
    if moved or fresh or known is None or known.get("reason") == "DeploymentPaused":
        if known is not None and not fresh and known.get("reason") == "ReplicaSetUpdated":
            # The same words again: only the time of the last progress is new.
            progress["lastUpdateTime"] = rfc3339(now)
        plan.again(float(deadline) + 1)
        return progress
    if known.get("reason") == "NewReplicaSetAvailable":
        # A finished rollout that lost a pod is not a rollout; nothing times out.
        return known
    since = parse_time(known.get("lastUpdateTime") or known["lastTransitionTime"])
    left = float(deadline) - (now - since).total_seconds()
    if left > 0:
        plan.again(left + 1)
        return known
    text = f'ReplicaSet "{name}" has timed out progressing.'
    return _entry("False", "ProgressDeadlineExceeded", text)


def _entry(status: str, reason: str, message: str) -> Object:
    return {"type": "Progressing", "status": status, "reason": reason, "message": message}
