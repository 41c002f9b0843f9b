"""A pod's status from what its containers do. Pure.

In: the pod, one ``ContainerRecord`` per container, addresses, the time. Out: the ``status`` object.
Rules: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["init", "sidecar", "main"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not running; ``reason`` is one of Kubernetes' words (ContainerCreating, CrashLoopBackOff...)."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """Runs since ``started_at`` (RFC 3339)."""

    started_at: str


@dataclass(frozen=True, slots=True)
class Terminated:
    """Ended. ``exit_code`` 128+N means signal N."""

    exit_code: int
    reason: str
    message: str
    started_at: str
    finished_at: str
    container_id: str


State = Waiting | Running | Terminated


@dataclass(slots=True)
class ContainerRecord:
    """What is known about one container; its runner changes it, the status is derived from it."""

    name: str
    image: str
    kind: Kind
    state: State
    last: Terminated | None = None
    restart_count: int = 0
    ready: bool = False
    started: bool = False
    image_id: str = ""
    container_id: str = ""
    finished: bool = False
    """Has ended for good: it will not be started again."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the status says besides containers."""

    host_ip: str
    pod_ip: str
    start_time: str
    sandbox_ready: bool = False
    phase: str = ""
    reason: str = ""
    message: str = ""


def container_kind(pod: Mapping[str, Any], name: str) -> Kind:
    """Return whether a container is an init container, a native sidecar or an ordinary one."""
    for container in pod["spec"].get("initContainers") or []:
        if container["name"] == name:
            return "sidecar" if container.get("restartPolicy") == "Always" else "init"
    return "main"


def will_restart(kind: Kind, policy: str, exit_code: int) -> bool:
    """Return whether a container that ended with ``exit_code`` is started again."""
    if kind == "sidecar":
        return True
    if kind == "init":
        return exit_code != 0 and policy != "Never"
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def restore_record(
    pod: Mapping[str, Any], container: Mapping[str, Any], now: str
) -> ContainerRecord:
    """Return the record of a container at the agent's start.

    A run that the API knows of ended with the former agent: it counts as one to restart.
    """
    name = container["name"]
    kind = container_kind(pod, name)
    waits = kind == "main" and bool(pod["spec"].get("initContainers"))
    state: State = Waiting("PodInitializing" if waits else "ContainerCreating")
    record = ContainerRecord(name, container.get("image") or "", kind, state)
    status = pod.get("status") or {}
    for field in ("containerStatuses", "initContainerStatuses"):
        for old in status.get(field) or []:
            if old["name"] == name and old.get("containerID"):
                record.restart_count = int(old.get("restartCount") or 0) + (kind != "init")
                record.last = _ended(old, now)
    return record


def _ended(old: Mapping[str, Any], now: str) -> Terminated:
    state = old.get("state") or {}
    ended = state.get("terminated")
    if ended:
        return Terminated(
            int(ended.get("exitCode") or 0),
            ended.get("reason") or "",
            ended.get("message") or "",
            ended.get("startedAt") or now,
            ended.get("finishedAt") or now,
            old["containerID"],
        )
    began = (state.get("running") or {}).get("startedAt") or now
    why = "The node agent was restarted"
    return Terminated(137, "NodeRestarted", why, began, now, old["containerID"])


def end_lost_runs(records: Sequence[ContainerRecord]) -> bool:
    """Mark restored runs as the last ones; return whether a main container had run at all."""
    for record in records:
        if record.last is not None:
            record.state, record.last = record.last, None
            record.restart_count = max(0, record.restart_count - (record.kind != "init"))
            record.finished = True
    return any(r.finished for r in records if r.kind == "main")


def build_status(
    pod: Mapping[str, Any], records: Sequence[ContainerRecord], facts: PodFacts, now: str
) -> dict[str, Any]:
    """Return the whole status; conditions of other controllers are kept as they are."""
    initialized = _initialized(pod, records)
    phase = facts.phase or derive_phase(pod, records)
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": _conditions(pod, records, facts, phase, initialized, now),
        "startTime": facts.start_time,
        "qosClass": (pod.get("status") or {}).get("qosClass") or _qos_class(pod),
        "containerStatuses": [_container_status(r) for r in records if r.kind == "main"],
    }
    inits = [_container_status(r) for r in records if r.kind != "main"]
    if inits:
        status["initContainerStatuses"] = inits
    if facts.host_ip:
        status["hostIP"] = facts.host_ip
        status["hostIPs"] = [{"ip": facts.host_ip}]
    if facts.pod_ip:
        status["podIP"] = facts.pod_ip
        status["podIPs"] = [{"ip": facts.pod_ip}]
    if facts.reason:
        status["reason"] = facts.reason
    if facts.message:
        status["message"] = facts.message
    return status


def derive_phase(pod: Mapping[str, Any], records: Sequence[ContainerRecord]) -> str:
    """Return Pending, Running, Succeeded or Failed."""
    mains = [r for r in records if r.kind == "main"]
    failed_init = any(
        r.kind == "init" and r.finished and isinstance(r.state, Terminated) and r.state.exit_code
        for r in records
    )
    if failed_init:
        return "Failed"
    if mains and all(r.finished for r in mains):
        codes = [r.state.exit_code for r in mains if isinstance(r.state, Terminated)]
        return "Succeeded" if codes and not any(codes) else "Failed"
    if any(not isinstance(r.state, Waiting) or r.last is not None for r in mains):
        return "Running"
    return "Pending"


def _initialized(pod: Mapping[str, Any], records: Sequence[ContainerRecord]) -> bool:
    if not pod["spec"].get("initContainers"):
        return True
    for record in records:
        if record.kind == "init":
            if not (isinstance(record.state, Terminated) and record.state.exit_code == 0):
                return False
        elif record.kind == "sidecar" and not record.started:
            return False
    return True


def _conditions(
    pod: Mapping[str, Any],
    records: Sequence[ContainerRecord],
    facts: PodFacts,
    phase: str,
    initialized: bool,
    now: str,
) -> list[dict[str, Any]]:
    over = phase in ("Succeeded", "Failed")
    unready = [r.name for r in records if r.kind != "init" and not r.ready]
    unready_text = f"containers with unready status: [{' '.join(unready)}]"
    containers_ready = not unready and initialized and not over
    known = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or []}
    gates = [g["conditionType"] for g in pod["spec"].get("readinessGates") or []]
    closed = [g for g in gates if (known.get(g) or {}).get("status") != "True"]
    why_not = ("PodCompleted", "") if phase == "Succeeded" else ("ContainersNotReady", unready_text)
    if phase == "Failed":
        why_not = ("PodFailed", "")
    ready_reason = why_not
    if containers_ready and closed:
        ready_reason = (
            "ReadinessGatesNotReady",
            f"the status of pod readiness gates is not True: {', '.join(closed)}",
        )
    init_reason: tuple[str, str] = ("", "")
    if not initialized:
        waiting = [r.name for r in records if r.kind != "main" and not _init_done(r)]
        init_reason = (
            "ContainersNotInitialized",
            f"containers with incomplete status: [{' '.join(waiting)}]",
        )
    wanted = [
        ("PodReadyToStartContainers", facts.sandbox_ready, ("", "")),
        ("Initialized", initialized, init_reason),
        ("Ready", containers_ready and not closed, ready_reason),
        ("ContainersReady", containers_ready, why_not),
        ("PodScheduled", True, ("", "")),
    ]
    own = [_condition(known.get(name), name, value, why, now) for name, value, why in wanted]
    names = {c["type"] for c in own}
    return own + [c for name, c in known.items() if name not in names]


def _init_done(record: ContainerRecord) -> bool:
    if record.kind == "sidecar":
        return record.started
    return isinstance(record.state, Terminated) and record.state.exit_code == 0


def _condition(
    old: Mapping[str, Any] | None, name: str, value: bool, why: tuple[str, str], now: str
) -> dict[str, Any]:
    text = "True" if value else "False"
    unchanged = old is not None and old.get("status") == text
    condition: dict[str, Any] = {
        "type": name,
        "status": text,
        "lastProbeTime": None,
        "lastTransitionTime": old["lastTransitionTime"]
        if unchanged and old and old.get("lastTransitionTime")
        else now,
    }
    reason, message = ("", "") if value else why
    # Null removes a former reason when this is sent as a patch.
    condition["reason"] = reason or None
    condition["message"] = message or None
    return condition


def _container_status(record: ContainerRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "image": record.image,
        "imageID": record.image_id,
        "containerID": record.container_id,
        "ready": record.ready or (record.kind == "init" and _init_done(record)),
        "started": record.started,
        "restartCount": record.restart_count,
        "state": _state(record.state),
        "lastState": _state(record.last) if record.last else {},
    }


def _state(state: State) -> dict[str, Any]:
    if isinstance(state, Running):
        return {"running": {"startedAt": state.started_at}}
    if isinstance(state, Waiting):
        waiting = {"reason": state.reason}
        if state.message:
            waiting["message"] = state.message
        return {"waiting": waiting}
    terminated: dict[str, Any] = {
        "exitCode": state.exit_code,
        "reason": state.reason,
        "startedAt": state.started_at,
        "finishedAt": state.finished_at,
        "containerID": state.container_id,
    }
    if state.message:
        terminated["message"] = state.message
    return {"terminated": terminated}


def _qos_class(pod: Mapping[str, Any]) -> str:
    resources = [c.get("resources") or {} for c in pod["spec"]["containers"]]
    if not any(r.get("limits") or r.get("requests") for r in resources):
        return "BestEffort"
    for r in resources:
        limits, requests = r.get("limits") or {}, r.get("requests") or r.get("limits") or {}
        if not {"cpu", "memory"} <= limits.keys() or any(
            requests.get(name, limits[name]) != limits[name] for name in ("cpu", "memory")
        ):
            return "Burstable"
    return "Guaranteed"
