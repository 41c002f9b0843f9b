"""What controllers ask about pods, and how they make them from templates. Pure.

Sources: the API reference of Pod and ownerReferences; for the order in which a ReplicaSet gives up
pods, the documentation of ReplicaSet ("Scaling down").
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from localkube.client import ResourceType
from localkube.kit.clock import parse_time

Object = dict[str, Any]
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
# Kubernetes' alphabet for generated name parts: no vowels, so no words by accident.
_SAFE: Final = "bcdfghjklmnpqrstvwxz2456789"


def controller_of(obj: Object) -> Object | None:
    """The owner reference marked as controller, or None."""
    for reference in obj["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            return dict(reference)
    return None


def owner_reference(resource: ResourceType, owner: Object) -> Object:
    """The reference by which `owner` controls another object."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def labels_of(obj: Object) -> Mapping[str, str]:
    """An object's labels, never None."""
    return obj["metadata"].get("labels") or {}


def is_terminating(obj: Object) -> bool:
    """Whether deletion has been asked for."""
    return bool(obj["metadata"].get("deletionTimestamp"))


def phase(pod: Object) -> str:
    """status.phase; Pending until there is one."""
    return str((pod.get("status") or {}).get("phase") or "Pending")


def is_finished(pod: Object) -> bool:
    """Whether no container will run again."""
    return phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Whether the pod counts for its controller."""
    return not is_finished(pod) and not is_terminating(pod)


def condition(obj: Object, kind: str) -> Object | None:
    """A status condition by type."""
    for entry in (obj.get("status") or {}).get("conditions") or []:
        if entry.get("type") == kind:
            return dict(entry)
    return None


def is_ready(pod: Object) -> bool:
    """Whether the Ready condition is true."""
    entry = condition(pod, "Ready")
    return entry is not None and entry.get("status") == "True"


def ready_since(pod: Object) -> datetime | None:
    """When the pod became ready, or None if it is not."""
    entry = condition(pod, "Ready")
    if entry is None or entry.get("status") != "True" or not entry.get("lastTransitionTime"):
        return None
    return parse_time(entry["lastTransitionTime"])


def seconds_until_available(pod: Object, min_ready_seconds: int, now: datetime) -> float | None:
    """0 if the pod is available, the seconds to go if it only has to stay ready, else None."""
    if not is_ready(pod):
        return None
    if min_ready_seconds <= 0:
        return 0.0
    since = ready_since(pod)
    if since is None:
        return None
    return max(0.0, min_ready_seconds - (now - since).total_seconds())


def is_available(pod: Object, min_ready_seconds: int, now: datetime) -> bool:
    """Ready for at least `min_ready_seconds`."""
    return seconds_until_available(pod, min_ready_seconds, now) == 0.0


def restarts(pod: Object) -> int:
    """The largest restart count of its containers."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return max((int(s.get("restartCount") or 0) for s in statuses), default=0)


def deletion_order(pods: Iterable[Object]) -> list[Object]:
    """Those to give up first come first: without a node, not running, not ready, cheap, newly
    ready, often restarted, young."""
    phases = {"Pending": 0, "Unknown": 1, "Running": 2}

    def rank(pod: Object) -> tuple[Any, ...]:
        since = ready_since(pod)
        cost = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
        return (
            bool(pod["spec"].get("nodeName")),
            phases.get(phase(pod), 0),
            is_ready(pod),
            int(cost) if cost.lstrip("-").isdigit() else 0,
            # the later, the sooner it goes: minus the time
            -(since.timestamp() if since else 0.0),
            -restarts(pod),
            -parse_time(pod["metadata"]["creationTimestamp"]).timestamp(),
            pod["metadata"]["name"],
        )

    return sorted(pods, key=rank)


def from_template(
    template: Object, owner: Object, resource: ResourceType, *, name: str | None = None
) -> Object:
    """A new pod as `owner`'s template says; without `name` the server makes one up."""
    meta = copy.deepcopy(template.get("metadata") or {})
    kept: Object = {
        field: meta[field] for field in ("labels", "annotations", "finalizers") if meta.get(field)
    }
    kept["namespace"] = owner["metadata"]["namespace"]
    if name is not None:
        kept["name"] = name
    else:
        kept["generateName"] = f"{owner['metadata']['name']}-"
    kept["ownerReferences"] = [owner_reference(resource, owner)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": kept,
        "spec": copy.deepcopy(template["spec"]),
    }


def template_hash(template: Object, collisions: int = 0) -> str:
    """Ten characters that stand for a template, fit for names and labels."""
    text = json.dumps([template, collisions], sort_keys=True).encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:8])
    letters = []
    for _ in range(10):
        number, index = divmod(number, len(_SAFE))
        letters.append(_SAFE[index])
    return "".join(letters)


def with_condition(old: Iterable[Object], new: Object, now_text: str) -> list[Object]:
    """The conditions with `new` put in: its transition time changes only if its status does."""
    result = []
    placed = False
    for entry in old:
        if entry.get("type") != new["type"]:
            result.append(entry)
            continue
        placed = True
        moved = entry.get("status") != new["status"]
        since = now_text if moved else entry.get("lastTransitionTime", now_text)
        result.append({**new, "lastTransitionTime": since})
    if not placed:
        result.append({**new, "lastTransitionTime": now_text})
    return result
