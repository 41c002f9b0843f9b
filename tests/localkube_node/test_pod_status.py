"""Phases and conditions from container records."""

from __future__ import annotations

from typing import Any

import pytest

from localkube.node.pod_status import (
    ContainerRecord,
    Kind,
    PodFacts,
    Running,
    State,
    Terminated,
    Waiting,
    build_status,
    derive_phase,
    end_lost_runs,
    restore_record,
    will_restart,
)

NOW = "2026-01-01T00:00:00Z"


def ended(code: int) -> Terminated:
    return Terminated(code, "Error" if code else "Completed", "", NOW, NOW, "id")


def record(state: State, kind: Kind = "main", **fields: Any) -> ContainerRecord:
    return ContainerRecord("c", "image", kind, state, **fields)


def pod(**spec: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "image"}]
    return {"metadata": {"name": "p"}, "spec": {"containers": containers, **spec}}


@pytest.mark.parametrize(
    ("records", "phase"),
    [
        ([record(Waiting("ContainerCreating"))], "Pending"),
        ([record(Running(NOW))], "Running"),
        ([record(Waiting("CrashLoopBackOff"), last=ended(1))], "Running"),
        ([record(ended(0), finished=True)], "Succeeded"),
        ([record(ended(0), finished=True), record(ended(2), finished=True)], "Failed"),
        ([record(ended(0), finished=True), record(Running(NOW))], "Running"),
        ([record(ended(1), "init", finished=True), record(Waiting("PodInitializing"))], "Failed"),
    ],
)
def test_phase(records: list[ContainerRecord], phase: str) -> None:
    assert derive_phase(pod(), records) == phase


@pytest.mark.parametrize(
    ("kind", "policy", "code", "again"),
    [
        ("main", "Always", 0, True),
        ("main", "OnFailure", 0, False),
        ("main", "OnFailure", 1, True),
        ("main", "Never", 1, False),
        ("init", "Always", 0, False),
        ("init", "Always", 1, True),
        ("init", "Never", 1, False),
        ("sidecar", "Never", 0, True),
    ],
)
def test_restart_policy(kind: Kind, policy: str, code: int, again: bool) -> None:
    assert will_restart(kind, policy, code) is again


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


FACTS = PodFacts("172.30.0.1", "10.244.0.2", NOW, sandbox_ready=True)


def test_ready_needs_every_container_and_every_gate() -> None:
    records = [record(Running(NOW), ready=True, started=True)]
    assert conditions(build_status(pod(), records, FACTS, NOW))["Ready"] == "True"
    gated = pod(readinessGates=[{"conditionType": "x/gate"}])
    status = build_status(gated, records, FACTS, NOW)
    assert conditions(status)["ContainersReady"] == "True"
    assert conditions(status)["Ready"] == "False"
    gated["status"] = {"conditions": [{"type": "x/gate", "status": "True"}]}
    assert conditions(build_status(gated, records, FACTS, NOW)) == {
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "Ready": "True",
        "ContainersReady": "True",
        "PodScheduled": "True",
        "x/gate": "True",
    }


def test_a_condition_that_stays_keeps_its_time() -> None:
    old = {"type": "Ready", "status": "False", "lastTransitionTime": "2020-01-01T00:00:00Z"}
    known = {**pod(), "status": {"conditions": [old]}}
    unready = build_status(known, [record(Running(NOW))], FACTS, NOW)
    ready = next(c for c in unready["conditions"] if c["type"] == "Ready")
    assert ready["lastTransitionTime"] == "2020-01-01T00:00:00Z"
    assert ready["message"] == "containers with unready status: [c]"
    done = build_status(known, [record(Running(NOW), ready=True, started=True)], FACTS, NOW)
    assert next(c for c in done["conditions"] if c["type"] == "Ready")["lastTransitionTime"] == NOW


def test_waiting_init_containers_hold_initialized_back() -> None:
    spec = pod(initContainers=[{"name": "i"}])
    records = [
        ContainerRecord("i", "image", "init", Running(NOW)),
        record(Waiting("PodInitializing")),
    ]
    status = build_status(spec, records, FACTS, NOW)
    initialized = next(c for c in status["conditions"] if c["type"] == "Initialized")
    assert initialized["status"] == "False"
    assert initialized["message"] == "containers with incomplete status: [i]"
    records[0].state = ended(0)
    assert conditions(build_status(spec, records, FACTS, NOW))["Initialized"] == "True"


def test_a_run_before_the_agents_start_counts_as_a_restart() -> None:
    old = {
        "name": "c",
        "containerID": "localkube://1",
        "restartCount": 2,
        "state": {"running": {"startedAt": NOW}},
    }
    known = {**pod(), "status": {"containerStatuses": [old]}}
    restored = restore_record(known, known["spec"]["containers"][0], NOW)
    assert restored.restart_count == 3
    assert restored.last is not None
    assert restored.last.reason == "NodeRestarted"
    assert end_lost_runs([restored])
    assert isinstance(restored.state, Terminated)
    assert restored.restart_count == 2
    assert not end_lost_runs([restore_record(pod(), {"name": "c"}, NOW)])
