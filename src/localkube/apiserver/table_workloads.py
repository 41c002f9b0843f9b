"""Columns of pods and of what makes pods. In and out: see `tables`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from localkube.apiserver.tables import (
    Cells,
    JsonObject,
    Printer,
    age,
    columns,
    dig,
    human_duration,
    label_text,
    selector_text,
    since,
)
from localkube.kit import clock


def _list(obj: Any, path: str) -> list[Any]:
    found = dig(obj, path, [])
    return found if isinstance(found, list) else []


def _containers(template: Any) -> tuple[str, str]:
    containers = _list(template, "spec.containers")
    names = ",".join(str(one.get("name", "")) for one in containers)
    images = ",".join(str(one.get("image", "")) for one in containers)
    return names, images


# -- pods -----------------------------------------------------------------------------------------


def _sidecar_names(pod: JsonObject) -> set[str]:
    """Init containers that restart always: they run beside the main ones."""
    return {
        one.get("name", "")
        for one in _list(pod, "spec.initContainers")
        if one.get("restartPolicy") == "Always"
    }


def _init_reason(pod: JsonObject, sidecars: set[str]) -> str:
    """Return why the pod is still initialising, "" if it is not."""
    statuses = _list(pod, "status.initContainerStatuses")
    for index, status in enumerate(statuses):
        state = status.get("state") or {}
        terminated, waiting = state.get("terminated"), state.get("waiting")
        if terminated and not terminated.get("exitCode", 0):
            continue
        if status.get("name") in sidecars and status.get("started"):
            continue
        if terminated:
            return _exit_reason(terminated, "Init:")
        reason = (waiting or {}).get("reason", "")
        if reason and reason != "PodInitializing":
            return f"Init:{reason}"
        return f"Init:{index}/{len(_list(pod, 'spec.initContainers'))}"
    return ""


def _exit_reason(terminated: JsonObject, prefix: str = "") -> str:
    if terminated.get("reason"):
        return f"{prefix}{terminated['reason']}"
    if terminated.get("signal"):
        return f"{prefix}Signal:{terminated['signal']}"
    return f"{prefix}ExitCode:{terminated.get('exitCode', 0)}"


def _is_true(pod: JsonObject, condition: str) -> bool:
    return any(
        one.get("type") == condition and one.get("status") == "True"
        for one in _list(pod, "status.conditions")
    )


def _running_reason(pod: JsonObject, reason: str) -> str:
    running = False
    for status in reversed(_list(pod, "status.containerStatuses")):
        state = status.get("state") or {}
        waiting, terminated = state.get("waiting") or {}, state.get("terminated")
        if waiting.get("reason"):
            reason = waiting["reason"]
        elif terminated:
            reason = _exit_reason(terminated)
        elif status.get("ready") and state.get("running") is not None:
            running = True
    if reason == "Completed" and running:
        return "Running" if _is_true(pod, "Ready") else "NotReady"
    return reason


def pod_status(pod: JsonObject) -> str:
    """Return the STATUS cell of a pod."""
    reason = str(dig(pod, "status.phase", "Unknown"))
    reason = str(dig(pod, "status.reason", "") or reason)
    if any(
        one.get("type") == "PodScheduled" and one.get("reason") == "SchedulingGated"
        for one in _list(pod, "status.conditions")
    ):
        reason = "SchedulingGated"
    init = _init_reason(pod, _sidecar_names(pod))
    if init and not _is_true(pod, "Initialized"):
        reason = init
    else:
        reason = _running_reason(pod, reason)
    if pod["metadata"].get("deletionTimestamp"):
        if dig(pod, "status.reason") == "NodeLost":
            return "Unknown"
        if dig(pod, "status.phase") not in ("Failed", "Succeeded"):
            return "Terminating"
    return reason


def _counted_statuses(pod: JsonObject) -> list[JsonObject]:
    sidecars = _sidecar_names(pod)
    side = [one for one in _list(pod, "status.initContainerStatuses") if one["name"] in sidecars]
    return [*side, *_list(pod, "status.containerStatuses")]


def _restarts(pod: JsonObject, now: datetime) -> str:
    statuses = _counted_statuses(pod)
    if not _is_true(pod, "Initialized") and not _list(pod, "status.containerStatuses"):
        statuses = _list(pod, "status.initContainerStatuses")
    count = sum(int(status.get("restartCount", 0)) for status in statuses)
    finished = [
        found
        for status in statuses
        if (found := dig(status, "lastState.terminated.finishedAt")) is not None
    ]
    if count and finished:
        return f"{count} ({since(max(finished), now)} ago)"
    return str(count)


def _pod(pod: JsonObject, now: datetime) -> Cells:
    total = len(_list(pod, "spec.containers")) + len(_sidecar_names(pod))
    ready = sum(
        1
        for status in _counted_statuses(pod)
        if status.get("ready") and dig(status, "state.running") is not None
    )
    gates = _list(pod, "spec.readinessGates")
    passed = sum(1 for gate in gates if _is_true(pod, gate.get("conditionType", "")))
    return [
        pod["metadata"].get("name", ""),
        f"{ready}/{total}",
        pod_status(pod),
        _restarts(pod, now),
        age(pod, now),
        dig(pod, "status.podIP", "<none>") or "<none>",
        dig(pod, "spec.nodeName", "<none>") or "<none>",
        dig(pod, "status.nominatedNodeName", "<none>") or "<none>",
        f"{passed}/{len(gates)}" if gates else "<none>",
    ]


# -- controllers ----------------------------------------------------------------------------------


def _deployment(obj: JsonObject, now: datetime) -> Cells:
    return [
        obj["metadata"].get("name", ""),
        f"{dig(obj, 'status.readyReplicas', 0)}/{dig(obj, 'spec.replicas', 0)}",
        dig(obj, "status.updatedReplicas", 0),
        dig(obj, "status.availableReplicas", 0),
        age(obj, now),
        *_containers(dig(obj, "spec.template")),
        selector_text(dig(obj, "spec.selector")),
    ]


def _replica_set(obj: JsonObject, now: datetime) -> Cells:
    selector = dig(obj, "spec.selector")
    is_controller = obj.get("kind") == "ReplicationController"
    return [
        obj["metadata"].get("name", ""),
        dig(obj, "spec.replicas", 0),
        dig(obj, "status.replicas", 0),
        dig(obj, "status.readyReplicas", 0),
        age(obj, now),
        *_containers(dig(obj, "spec.template")),
        label_text(selector) if is_controller else selector_text(selector),
    ]


def _stateful_set(obj: JsonObject, now: datetime) -> Cells:
    return [
        obj["metadata"].get("name", ""),
        f"{dig(obj, 'status.readyReplicas', 0)}/{dig(obj, 'spec.replicas', 0)}",
        age(obj, now),
        *_containers(dig(obj, "spec.template")),
    ]


def _daemon_set(obj: JsonObject, now: datetime) -> Cells:
    return [
        obj["metadata"].get("name", ""),
        dig(obj, "status.desiredNumberScheduled", 0),
        dig(obj, "status.currentNumberScheduled", 0),
        dig(obj, "status.numberReady", 0),
        dig(obj, "status.updatedNumberScheduled", 0),
        dig(obj, "status.numberAvailable", 0),
        label_text(dig(obj, "spec.template.spec.nodeSelector")),
        age(obj, now),
        *_containers(dig(obj, "spec.template")),
        selector_text(dig(obj, "spec.selector")),
    ]


def _conditions(obj: JsonObject) -> Iterable[str]:
    for condition in _list(obj, "status.conditions"):
        if condition.get("status") == "True":
            yield condition.get("type", "")


def _job(obj: JsonObject, now: datetime) -> Cells:
    held = set(_conditions(obj))
    status = "Running"
    for condition, shown in (
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ):
        if condition in held:
            status = shown
            break
    if status == "Running" and obj["metadata"].get("deletionTimestamp"):
        status = "Terminating"
    succeeded, wanted = dig(obj, "status.succeeded", 0), dig(obj, "spec.completions")
    if wanted is not None:
        completions = f"{succeeded}/{wanted}"
    else:
        parallelism = dig(obj, "spec.parallelism", 1)
        completions = f"{succeeded}/1" + (f" of {parallelism}" if parallelism > 1 else "")
    return [
        obj["metadata"].get("name", ""),
        status,
        completions,
        _job_duration(obj, now),
        age(obj, now),
        *_containers(dig(obj, "spec.template")),
        selector_text(dig(obj, "spec.selector")),
    ]


def _job_duration(obj: JsonObject, now: datetime) -> str:
    start, end = dig(obj, "status.startTime"), dig(obj, "status.completionTime")
    if start is None:
        return ""
    try:
        until = clock.parse_time(end) if end else now
        return human_duration((until - clock.parse_time(start)).total_seconds())
    except (ValueError, TypeError):
        return "<invalid>"


def _cron_job(obj: JsonObject, now: datetime) -> Cells:
    last = dig(obj, "status.lastScheduleTime")
    return [
        obj["metadata"].get("name", ""),
        dig(obj, "spec.schedule", ""),
        dig(obj, "spec.timeZone", "<none>"),
        "True" if dig(obj, "spec.suspend", False) else "False",
        len(_list(obj, "status.active")),
        since(last, now) if last else "<none>",
        age(obj, now),
        *_containers(dig(obj, "spec.jobTemplate.spec.template")),
        selector_text(dig(obj, "spec.jobTemplate.spec.selector")),
    ]


def _controller_revision(obj: JsonObject, now: datetime) -> Cells:
    owner = next(iter(obj["metadata"].get("ownerReferences") or ()), None)
    controller = "<none>"
    if owner:
        group = str(owner.get("apiVersion", "")).rpartition("/")[0]
        kind = str(owner.get("kind", "")).lower()
        controller = f"{kind}.{group}/{owner.get('name', '')}" if group else kind
    return [obj["metadata"].get("name", ""), controller, obj.get("revision", 0), age(obj, now)]


def _pod_template(obj: JsonObject, _now: datetime) -> Cells:
    labels = dig(obj, "template.metadata.labels")
    return [obj["metadata"].get("name", ""), *_containers(obj.get("template")), label_text(labels)]


def _hpa_targets(obj: JsonObject) -> str:
    shown: list[str] = []
    current = _list(obj, "status.currentMetrics")
    for index, metric in enumerate(_list(obj, "spec.metrics")):
        name = str(dig(metric, "resource.name", metric.get("type", "")))
        target = dig(metric, "resource.target", {})
        now = current[index] if index < len(current) else {}
        if target.get("averageUtilization") is not None:
            used = dig(now, "resource.current.averageUtilization")
            shown.append(
                f"{name}: {'<unknown>' if used is None else f'{used}%'}/"
                f"{target['averageUtilization']}%"
            )
        else:
            used = dig(now, "resource.current.averageValue", "<unknown>")
            shown.append(f"{name}: {used}/{target.get('averageValue', '<unknown>')}")
    return ", ".join(shown) or "<none>"


def _autoscaler(obj: JsonObject, now: datetime) -> Cells:
    target = dig(obj, "spec.scaleTargetRef", {})
    return [
        obj["metadata"].get("name", ""),
        f"{target.get('kind', '')}/{target.get('name', '')}",
        _hpa_targets(obj),
        str(dig(obj, "spec.minReplicas", "<unset>")),
        dig(obj, "spec.maxReplicas", 0),
        dig(obj, "status.currentReplicas", 0),
        age(obj, now),
    ]


def _disruption_budget(obj: JsonObject, now: datetime) -> Cells:
    return [
        obj["metadata"].get("name", ""),
        str(dig(obj, "spec.minAvailable", "N/A")),
        str(dig(obj, "spec.maxUnavailable", "N/A")),
        dig(obj, "status.disruptionsAllowed", 0),
        age(obj, now),
    ]


_TEMPLATE = "Containers|Images|Selector"
PRINTERS: dict[str, Printer] = {
    "pods": (
        columns("Name|Ready|Status|Restarts|Age", "IP|Node|Nominated Node|Readiness Gates"),
        _pod,
    ),
    "deployments.apps": (
        columns("Name|Ready|#Up-to-date|#Available|Age", _TEMPLATE),
        _deployment,
    ),
    "replicasets.apps": (columns("Name|#Desired|#Current|#Ready|Age", _TEMPLATE), _replica_set),
    "replicationcontrollers": (
        columns("Name|#Desired|#Current|#Ready|Age", _TEMPLATE),
        _replica_set,
    ),
    "statefulsets.apps": (columns("Name|Ready|Age", "Containers|Images"), _stateful_set),
    "daemonsets.apps": (
        columns(
            "Name|#Desired|#Current|#Ready|#Up-to-date|#Available|Node Selector|Age", _TEMPLATE
        ),
        _daemon_set,
    ),
    "jobs.batch": (columns("Name|Status|Completions|Duration|Age", _TEMPLATE), _job),
    "cronjobs.batch": (
        columns("Name|Schedule|Timezone|Suspend|#Active|Last Schedule|Age", _TEMPLATE),
        _cron_job,
    ),
    "controllerrevisions.apps": (
        columns("Name|Controller|#Revision|Age"),
        _controller_revision,
    ),
    "podtemplates": (columns("Name|Containers|Images|Pod Labels"), _pod_template),
    "horizontalpodautoscalers.autoscaling": (
        columns("Name|Reference|Targets|MinPods|#MaxPods|#Replicas|Age"),
        _autoscaler,
    ),
    "poddisruptionbudgets.policy": (
        columns("Name|Min Available|Max Unavailable|#Allowed Disruptions|Age"),
        _disruption_budget,
    ),
}
