"""Job: runs pods until enough of them have succeeded; and its removal some time after.

In: the Job, its pods, the time. Out: a Plan. Counts come from the pods that exist and are kept in
status, so finished pods must stay until the Job ends (as they do: nobody else deletes them).
Source: the Kubernetes documentation "Jobs" (completions, parallelism, back-off 10 s doubling up to
6 min, Indexed completion mode, suspend, activeDeadlineSeconds, ttlSecondsAfterFinished).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from localkube.client.resources import JOBS, PODS
from localkube.controllers.actions import (
    Create,
    Delete,
    Note,
    Plan,
    PlanBuilder,
    status_patch,
)
from localkube.controllers.cache import BY_CONTROLLER, Cache
from localkube.controllers.loop import Controller
from localkube.controllers.pods import (
    condition,
    from_template,
    is_active,
    is_ready,
    is_terminating,
    labels_of,
    phase,
)
from localkube.kit import clock
from localkube.kit.clock import parse_time, rfc3339

Object = dict[str, Any]
COMPONENT: Final = "job-controller"
INDEX: Final = "batch.kubernetes.io/job-completion-index"
_FIRST_PAUSE: Final = 10.0
_LONGEST_PAUSE: Final = 360.0


def finished(job: Object) -> Object | None:
    """The condition Complete or Failed, if it is true."""
    for kind in ("Complete", "Failed"):
        entry = condition(job, kind)
        if entry is not None and entry.get("status") == "True":
            return entry
    return None


def _index_of(pod: Object) -> int | None:
    text = labels_of(pod).get(INDEX) or (pod["metadata"].get("annotations") or {}).get(INDEX, "")
    return int(text) if text.isdigit() else None


def new_pod(job: Object, index: int | None) -> Object:
    """A pod of the Job."""
    pod = from_template(job["spec"]["template"], job, JOBS)
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    labels = pod["metadata"].setdefault("labels", {})
    for key, value in (("controller-uid", uid), ("job-name", name)):
        labels.setdefault(f"batch.kubernetes.io/{key}", value)
        labels.setdefault(key, value)
    if index is not None:
        pod["metadata"]["generateName"] = f"{name}-{index}-"
        pod["metadata"].setdefault("annotations", {})[INDEX] = str(index)
        labels[INDEX] = str(index)
        pod["spec"]["hostname"] = f"{name}-{index}"
        reference = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
        for container in [
            *(pod["spec"].get("initContainers") or []),
            *pod["spec"]["containers"],
        ]:
            known = {e["name"] for e in container.get("env") or []}
            if "JOB_COMPLETION_INDEX" not in known:
                entry = {"name": "JOB_COMPLETION_INDEX", "valueFrom": reference}
                container.setdefault("env", []).append(entry)
    return pod


def plan_job(job: Object, pods: Sequence[Object], now: datetime) -> Plan:
    """Decide. `pods`: those that the Job controls."""
    plan = PlanBuilder()
    done = finished(job)
    if is_terminating(job):
        return plan.plan()
    if done is not None:
        _expire(plan, job, done, now)
        return plan.plan()
    active = [pod for pod in pods if is_active(pod)]
    succeeded = [pod for pod in pods if phase(pod) == "Succeeded"]
    failed = [pod for pod in pods if phase(pod) == "Failed"]
    status: Object = dict(job.get("status") or {})
    suspended = bool(job["spec"].get("suspend"))
    if not suspended:
        status.setdefault("startTime", rfc3339(now))
    verdict = _verdict(plan, job, status, active, succeeded, failed, now)
    if verdict is not None:
        kind, reason, text = verdict
        plan.add(*(Delete(PODS, pod) for pod in active))
        active = []
        _conclude(status, kind, reason, text, now)
        plan.add(Note(job, "Normal" if kind == "Complete" else "Warning", reason, text, COMPONENT))
    elif suspended:
        plan.add(*(Delete(PODS, pod) for pod in active))
        active = []
    else:
        _run(plan, job, active, succeeded, failed, now)
    _counts(status, job, active, succeeded, failed)
    plan.add(status_patch(JOBS, job, status))
    return plan.plan()


def _verdict(
    plan: PlanBuilder,
    job: Object,
    status: Object,
    active: Sequence[Object],
    succeeded: Sequence[Object],
    failed: Sequence[Object],
    now: datetime,
) -> tuple[str, str, str] | None:
    """(condition, reason, message) once the Job has ended."""
    spec = job["spec"]
    completions = spec.get("completions")
    if len(failed) > int(spec.get("backoffLimit", 6)):
        return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and status.get("startTime"):
        left = float(deadline) - (now - parse_time(status["startTime"])).total_seconds()
        if left <= 0:
            text = "Job was active longer than specified deadline"
            return "Failed", "DeadlineExceeded", text
        plan.again(left)
    if completions is None:
        # A work queue: one success means that no more pods start; all must end.
        ended = bool(succeeded) and not active
    elif spec.get("completionMode") == "Indexed":
        ended = len({_index_of(pod) for pod in succeeded}) >= int(completions)
    else:
        ended = len(succeeded) >= int(completions)
    return ("Complete", "CompletionsReached", "Job completed") if ended else None


def _run(
    plan: PlanBuilder,
    job: Object,
    active: list[Object],
    succeeded: Sequence[Object],
    failed: Sequence[Object],
    now: datetime,
) -> None:
    spec = job["spec"]
    parallelism = int(spec.get("parallelism", 1))
    completions = spec.get("completions")
    indexed = spec.get("completionMode") == "Indexed"
    wanted = parallelism
    free: list[int] = []
    if completions is None:
        wanted = len(active) if succeeded else parallelism
    elif indexed:
        taken = {_index_of(pod) for pod in [*active, *succeeded]}
        free = [index for index in range(int(completions)) if index not in taken]
        wanted = min(parallelism, len(active) + len(free))
    else:
        wanted = min(parallelism, int(completions) - len(succeeded))
    if len(active) > wanted:
        surplus = sorted(active, key=is_ready)[: len(active) - wanted]
        plan.add(*(Delete(PODS, pod) for pod in surplus))
        active[:] = [pod for pod in active if pod not in surplus]
        return
    pause = _pause(failed, now)
    if len(active) < wanted and pause > 0:
        plan.again(pause)
        return
    for number in range(wanted - len(active)):
        pod = new_pod(job, free[number] if indexed else None)
        plan.add(Create(PODS, pod, told_to=(job, COMPONENT)))


def _pause(failed: Sequence[Object], now: datetime) -> float:
    """Seconds until another pod may start: after the n-th failure 10 s doubled n-1 times."""
    if not failed:
        return 0.0
    last: datetime = max(_ended(pod) for pod in failed)
    pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (len(failed) - 1))
    return max(0.0, pause - (now - last).total_seconds())


def _ended(pod: Object) -> datetime:
    times = [
        parse_time(terminated["finishedAt"])
        for status in (pod.get("status") or {}).get("containerStatuses") or []
        if (terminated := (status.get("state") or {}).get("terminated"))
        and terminated.get("finishedAt")
    ]
    return max(times, default=parse_time(pod["metadata"]["creationTimestamp"]))


def _conclude(status: Object, kind: str, reason: str, text: str, now: datetime) -> None:
    at = rfc3339(now)
    base = {"status": "True", "reason": reason, "message": text}
    base |= {"lastProbeTime": at, "lastTransitionTime": at}
    early = "SuccessCriteriaMet" if kind == "Complete" else "FailureTarget"
    status["conditions"] = [
        *(status.get("conditions") or []),
        {**base, "type": early},
        {**base, "type": kind},
    ]
    if kind == "Complete":
        status["completionTime"] = at


def _counts(
    status: Object,
    job: Object,
    active: Sequence[Object],
    succeeded: Sequence[Object],
    failed: Sequence[Object],
) -> None:
    counts = {"active": len(active), "succeeded": len(succeeded), "failed": len(failed)}
    for name, count in counts.items():
        status.pop(name, None)
        if count:
            status[name] = count
    status["ready"] = sum(is_ready(pod) for pod in active)
    if job["spec"].get("completionMode") == "Indexed":
        status["completedIndexes"] = index_ranges(
            sorted({i for pod in succeeded if (i := _index_of(pod)) is not None})
        )


def index_ranges(indexes: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5", as status.completedIndexes has it."""
    parts: list[str] = []
    start = None
    for position, index in enumerate(indexes):
        if start is None:
            start = index
        following = indexes[position + 1] if position + 1 < len(indexes) else None
        if following != index + 1:
            parts.append(str(start) if start == index else f"{start}-{index}")
            start = None
    return ",".join(parts)


def _expire(plan: PlanBuilder, job: Object, done: Object, now: datetime) -> None:
    ttl = job["spec"].get("ttlSecondsAfterFinished")
    if ttl is None:
        return
    left = float(ttl) - (now - parse_time(done["lastTransitionTime"])).total_seconds()
    if left > 0:
        plan.again(left)
    else:
        plan.add(Delete(JOBS, job, propagation="Foreground"))


class JobController(Controller):
    """Runs Jobs."""

    name = "job"
    resource = JOBS

    def watch(self, cache: Cache) -> None:
        """Jobs and their pods."""
        cache.of(JOBS).on_change(self.enqueue)
        cache.of(PODS).on_change(self.enqueue_owner)

    def plan(self, key: str) -> Plan | None:
        """Decide about one Job."""
        job = self.cache.of(JOBS).by_key(key)
        if job is None:
            return None
        pods = self.cache.of(PODS).by_index(BY_CONTROLLER, job["metadata"]["uid"])
        return plan_job(job, pods, clock.now())
