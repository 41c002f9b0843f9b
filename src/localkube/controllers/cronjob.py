"""CronJob: creates Jobs on a schedule.

In: the CronJob, its Jobs, the time. Out: a Plan. Schedules are the five classic fields (lists,
ranges, steps, names of months and days) and @hourly, @daily, @weekly, @monthly, @yearly; times are
UTC unless spec.timeZone names a zone. Source: the Kubernetes documentation "CronJob".
"""

import copy
import zoneinfo
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from localkube.client.resources import CRON_JOBS, JOBS
from localkube.controllers.actions import (
    Create,
    Delete,
    Note,
    Plan,
    PlanBuilder,
    status_patch,
)
from localkube.controllers.cache import BY_NAMESPACE, Cache
from localkube.controllers.job import finished
from localkube.controllers.loop import Controller
from localkube.controllers.pods import controller_of, is_terminating, owner_reference
from localkube.kit import clock
from localkube.kit.clock import parse_time, rfc3339

Object = dict[str, Any]
COMPONENT: Final = "cronjob-controller"
_MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_BOUNDS: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_MONTHS: Final = [
    "jan",
    "feb",
    "mar",
    "apr",
    "may",
    "jun",
    "jul",
    "aug",
    "sep",
    "oct",
    "nov",
    "dec",
]
_DAYS: Final = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_HORIZON: Final = timedelta(days=366 * 5)  # a schedule with no time in five years has none
_MISSED: Final = 100  # missed starts beyond which only the last counts


@dataclass(frozen=True)
class Schedule:
    """The minutes, hours, days, months and weekdays at which something starts."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool  # the day-of-month field is *
    any_weekday: bool

    def _day_fits(self, moment: datetime) -> bool:
        day = moment.day in self.days
        weekday = (moment.weekday() + 1) % 7 in self.weekdays
        # cron's rule: with both fields given, either suffices.
        if self.any_day or self.any_weekday:
            return day and weekday
        return day or weekday

    def after(self, moment: datetime) -> datetime | None:
        """The first start strictly after `moment`, in the zone of `moment`."""
        at = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        end = moment + _HORIZON
        while at < end:
            if at.month not in self.months or not self._day_fits(at):
                at = at.replace(hour=0, minute=0) + timedelta(days=1)
            elif at.hour not in self.hours:
                at = at.replace(minute=0) + timedelta(hours=1)
            elif at.minute not in self.minutes:
                at += timedelta(minutes=1)
            else:
                return at
        return None


def parse_schedule(text: str) -> Schedule:
    """Five fields or a macro -> Schedule. Raises ValueError that says which field is wrong."""
    fields = _MACROS.get(text.strip().lower(), text).split()
    if len(fields) != 5:
        raise ValueError(f"schedule {text!r} must have five fields: minute hour day month weekday")
    sets = [_field(f, low, high) for f, (low, high) in zip(fields, _BOUNDS, strict=True)]
    weekdays = frozenset(day % 7 for day in sets[4])
    return Schedule(
        sets[0], sets[1], sets[2], sets[3], weekdays, fields[2][0] in "*?", fields[4][0] in "*?"
    )


def _field(text: str, low: int, high: int) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        step = int(step_text) if step_text.isdigit() else 0 if slash else 1
        if step < 1:
            raise ValueError(f"{text!r}: the step after / must be a positive number")
        first, dash, last = span.partition("-")
        if span in ("*", "?"):
            start, end = low, high
        else:
            start = _number(first, low, text)
            end = _number(last, low, text) if dash else (high if slash else start)
        if not low <= start <= end <= high:
            raise ValueError(f"{text!r}: must be within {low} to {high}")
        values.update(range(start, end + 1, step))
    return frozenset(values)


def _number(word: str, low: int, text: str) -> int:
    lower = word.lower()
    if word.isdigit():
        return int(word)
    if lower in _MONTHS and low == 1:
        return _MONTHS.index(lower) + 1
    if lower in _DAYS:
        return _DAYS.index(lower)
    raise ValueError(f"{text!r}: {word!r} is neither a number nor a name")


def plan_cron_job(cron: Object, jobs: Sequence[Object], now: datetime) -> Plan:
    """Decide. `jobs`: those that the CronJob controls."""
    plan = PlanBuilder()
    if is_terminating(cron):
        return plan.plan()
    active = [job for job in jobs if finished(job) is None]
    status: Object = {
        name: value for name, value in (cron.get("status") or {}).items() if name != "active"
    }
    _prune(plan, cron, jobs)
    done = [parse_time(t) for j in jobs if (t := (j.get("status") or {}).get("completionTime"))]
    if done:
        status["lastSuccessfulTime"] = rfc3339(max(done))
    if not cron["spec"].get("suspend"):
        try:
            active = _start_due(plan, cron, active, status, now)
        except (ValueError, zoneinfo.ZoneInfoNotFoundError) as error:
            plan.add(Note(cron, "Warning", "InvalidSchedule", str(error), COMPONENT))
    references = [_reference(job) for job in active if "uid" in job["metadata"]]
    if references:
        status["active"] = references
    plan.add(status_patch(CRON_JOBS, cron, status))
    return plan.plan()


def _start_due(
    plan: PlanBuilder, cron: Object, active: list[Object], status: Object, now: datetime
) -> list[Object]:
    spec = cron["spec"]
    zone = zoneinfo.ZoneInfo(spec["timeZone"]) if spec.get("timeZone") else UTC
    schedule = parse_schedule(spec["schedule"])
    last = status.get("lastScheduleTime") or cron["metadata"]["creationTimestamp"]
    due = None
    following = schedule.after(parse_time(last).astimezone(zone))
    for _ in range(_MISSED):
        if following is None or following > now:
            break
        due = following
        following = schedule.after(following)
    else:
        # Long stopped: what was missed is too much to go through; the next one counts.
        following = schedule.after(now.astimezone(zone))
    if following is not None:
        plan.again((following - now).total_seconds() + 0.05)
    if due is None:
        return active
    deadline = spec.get("startingDeadlineSeconds")
    if deadline is not None and (now - due).total_seconds() > float(deadline):
        return active
    policy = spec.get("concurrencyPolicy", "Allow")
    if active and policy == "Forbid":
        text = (
            "Not starting job because prior execution is running and concurrency policy is Forbid"
        )
        plan.add(Note(cron, "Normal", "JobAlreadyActive", text, COMPONENT))
        return active
    if active and policy == "Replace":
        plan.add(*(Delete(JOBS, job, propagation="Background") for job in active))
        active = []
    # The name holds the time, so that a start can never happen twice.
    job = new_job(cron, f"{cron['metadata']['name']}-{int(due.timestamp()) // 60}")
    plan.add(Create(JOBS, job, exists_ok=True, told_to=(cron, COMPONENT)))
    status["lastScheduleTime"] = rfc3339(due)
    return active


def new_job(cron: Object, name: str) -> Object:
    """A Job of the CronJob's template."""
    template = copy.deepcopy(cron["spec"]["jobTemplate"])
    meta = template.get("metadata") or {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": cron["metadata"]["namespace"],
            "labels": meta.get("labels") or {},
            "annotations": meta.get("annotations") or {},
            "ownerReferences": [owner_reference(CRON_JOBS, cron)],
        },
        "spec": template["spec"],
    }


def _reference(job: Object) -> Object:
    meta = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": meta["name"],
        "namespace": meta["namespace"],
        "uid": meta["uid"],
    }


def _prune(plan: PlanBuilder, cron: Object, jobs: Sequence[Object]) -> None:
    """Delete finished Jobs beyond the history limits, the oldest first."""
    for kind, field, default in (
        ("Complete", "successfulJobsHistoryLimit", 3),
        ("Failed", "failedJobsHistoryLimit", 1),
    ):
        ended = [j for j in jobs if (done := finished(j)) is not None and done["type"] == kind]
        ended.sort(key=lambda job: str(job["metadata"]["creationTimestamp"]))
        limit = int(cron["spec"].get(field, default))
        for job in ended[: max(0, len(ended) - limit)]:
            plan.add(Delete(JOBS, job, propagation="Background"))


class CronJobController(Controller):
    """Keeps CronJobs."""

    name = "cronjob"
    resource = CRON_JOBS

    def watch(self, cache: Cache) -> None:
        """CronJobs and their Jobs."""
        cache.of(CRON_JOBS).on_change(self.enqueue)
        cache.of(JOBS).on_change(self.enqueue_owner)

    def plan(self, key: str) -> Plan | None:
        """Decide about one CronJob."""
        cron = self.cache.of(CRON_JOBS).by_key(key)
        if cron is None:
            return None
        jobs = [
            job
            for job in self.cache.of(JOBS).by_index(BY_NAMESPACE, key.partition("/")[0])
            if (controller_of(job) or {}).get("uid") == cron["metadata"]["uid"]
        ]
        return plan_cron_job(cron, jobs, clock.now())
