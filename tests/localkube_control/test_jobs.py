"""Jobs and CronJobs, as decisions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localkube.client.resources import JOBS
from localkube.controllers.actions import Create, Delete, Patch
from localkube.controllers.cronjob import parse_schedule, plan_cron_job
from localkube.controllers.job import INDEX, finished, index_ranges, plan_job
from localkube_control.objects import NOW, meta, of_type, owner_of, pod, workload


def job(**spec: Any) -> dict[str, Any]:
    fields = {"completions": 1, "parallelism": 1, "backoffLimit": 6, **spec}
    return workload("Job", "work", api="batch/v1", **fields)


def run(subject: dict[str, Any], pods: list[dict[str, Any]], seconds: float = 0) -> Any:
    """Plan, and take the status over as the server would."""
    plan = plan_job(subject, pods, NOW + timedelta(seconds=seconds))
    for patch in of_type(plan, Patch):
        merged = subject.get("status", {}) | patch.patch["status"]
        subject["status"] = {k: v for k, v in merged.items() if v is not None}
    return plan


def test_runs_no_more_pods_than_are_still_needed() -> None:
    subject = job(completions=5, parallelism=3)
    assert len(of_type(run(subject, []), Create)) == 3
    done = [pod(f"d{i}", owner=subject, phase="Succeeded") for i in range(3)]
    assert len(of_type(run(subject, done), Create)) == 2


def test_completes() -> None:
    subject = job()
    run(subject, [pod("a", owner=subject, phase="Succeeded")])
    done = finished(subject)
    assert done is not None
    assert done["type"] == "Complete"
    assert subject["status"]["succeeded"] == 1
    assert "completionTime" in subject["status"]


def test_retries_after_a_pause_and_fails_at_the_limit() -> None:
    subject = job(backoffLimit=1)
    failed = pod("a", owner=subject, phase="Failed")
    failed["metadata"]["creationTimestamp"] = NOW.isoformat()
    plan = run(subject, [failed])
    assert of_type(plan, Create) == []
    assert plan.again_after == pytest.approx(10)
    assert len(of_type(run(subject, [failed], seconds=11), Create)) == 1
    again = pod("b", owner=subject, phase="Failed")
    run(subject, [failed, again], seconds=20)
    done = finished(subject)
    assert done is not None
    assert (done["type"], done["reason"]) == ("Failed", "BackoffLimitExceeded")


def test_a_deadline_ends_the_job_and_its_pods() -> None:
    subject = job(activeDeadlineSeconds=30)
    run(subject, [])
    plan = run(subject, [pod("a", owner=subject)], seconds=31)
    assert [d.target["metadata"]["name"] for d in of_type(plan, Delete)] == ["a"]
    done = finished(subject)
    assert done is not None
    assert done["reason"] == "DeadlineExceeded"


def test_an_indexed_job_runs_each_index_once() -> None:
    subject = job(completions=3, parallelism=3, completionMode="Indexed")
    made = [c.object for c in of_type(run(subject, []), Create)]
    assert [p["metadata"]["annotations"][INDEX] for p in made] == ["0", "1", "2"]
    environment = made[1]["spec"]["containers"][0]["env"]
    assert environment[0]["name"] == "JOB_COMPLETION_INDEX"
    pods = [
        pod(f"w-{i}", owner=subject, labels={INDEX: str(i)}, phase=phase)
        for i, phase in ((0, "Succeeded"), (2, "Succeeded"))
    ]
    made = [c.object for c in of_type(run(subject, pods), Create)]
    assert [p["metadata"]["annotations"][INDEX] for p in made] == ["1"]
    assert subject["status"]["completedIndexes"] == "0,2"


def test_suspending_deletes_the_pods_and_keeps_the_job() -> None:
    subject = job(suspend=True)
    plan = run(subject, [pod("a", owner=subject)])
    assert len(of_type(plan, Delete)) == 1
    assert finished(subject) is None


def test_a_finished_job_is_deleted_after_its_time_to_live() -> None:
    subject = job(ttlSecondsAfterFinished=60)
    run(subject, [pod("a", owner=subject, phase="Succeeded")])
    assert run(subject, []).again_after == pytest.approx(60)
    assert of_type(run(subject, [], seconds=61), Delete)[0].resource == JOBS


@given(st.sets(st.integers(0, 40)))
def test_index_ranges_name_exactly_the_indexes(indexes: set[int]) -> None:
    named: set[int] = set()
    for part in filter(None, index_ranges(sorted(indexes)).split(",")):
        first, _, last = part.partition("-")
        named.update(range(int(first), int(last or first) + 1))
    assert named == indexes


@pytest.mark.parametrize(
    ("text", "after", "expected"),
    [
        ("* * * * *", "2026-03-01T12:00:30", "2026-03-01T12:01:00"),
        ("*/15 * * * *", "2026-03-01T12:46:00", "2026-03-01T13:00:00"),
        ("0 3 * * mon-fri", "2026-02-27T04:00:00", "2026-03-02T03:00:00"),
        ("0 0 31 * *", "2026-04-01T00:00:00", "2026-05-31T00:00:00"),
        ("0 0 13 * 5", "2026-03-01T00:00:00", "2026-03-06T00:00:00"),
        ("30 4 29 feb *", "2026-03-01T00:00:00", "2028-02-29T04:30:00"),
        ("@hourly", "2026-03-01T12:00:00", "2026-03-01T13:00:00"),
        ("0 0 * * 7", "2026-03-02T00:00:00", "2026-03-08T00:00:00"),
    ],
)
def test_schedules(text: str, after: str, expected: str) -> None:
    found = parse_schedule(text).after(datetime.fromisoformat(after).replace(tzinfo=UTC))
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "* * * *", "60 * * * *", "*/0 * * * *", "x * * * *"])
def test_bad_schedules_say_what_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match=r"field|within|step|number"):
        parse_schedule(text)


def cron(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": meta("tick"),
        "spec": {"schedule": "30 * * * *", "jobTemplate": {"spec": {"template": {}}}, **spec},
    }


def test_a_cron_job_starts_what_is_due_once() -> None:
    plan = plan_cron_job(cron(), [], NOW)  # created at 11:00, so 11:30 is due
    (created,) = of_type(plan, Create)
    status = of_type(plan, Patch)[0].patch["status"]
    assert status["lastScheduleTime"] == "2026-03-01T11:30:00Z"
    assert created.object["metadata"]["name"].startswith("tick-")
    again = cron()
    again["status"] = status
    assert of_type(plan_cron_job(again, [], NOW), Create) == []


def test_a_running_job_is_kept_or_replaced_as_asked() -> None:
    for policy, creates, deletes in (("Allow", 1, 0), ("Forbid", 0, 0), ("Replace", 1, 1)):
        subject = cron(concurrencyPolicy=policy)
        running = job()
        running["metadata"]["ownerReferences"] = owner_of(subject)
        plan = plan_cron_job(subject, [running], NOW)
        assert (len(of_type(plan, Create)), len(of_type(plan, Delete))) == (creates, deletes)


def test_an_impossible_schedule_is_told_and_stops_nothing() -> None:
    plan = plan_cron_job(cron(schedule="61 * * * *"), [], NOW)
    assert of_type(plan, Create) == []
    assert plan.actions[0].reason == "InvalidSchedule"  # type: ignore[union-attr]
