"""What to prune, and when an installation is healthy."""

from __future__ import annotations

from typing import Any

import pytest

from meltemi.install.plan import (
    ComponentHealth,
    deployment_ready,
    keep_live_fields,
    overall,
    status,
    to_prune,
)
from meltemi.install.render import render
from meltemi.install.webhooks import validation


def test_what_the_spec_no_longer_names_is_pruned() -> None:
    before = render("istio", "istio-system", {"profile": "demo"}, [])
    after = render("istio", "istio-system", {"profile": "minimal"}, [])
    pruned = {(m["kind"], m["metadata"]["name"]) for m in to_prune(after, before.manifests)}
    assert ("Deployment", "istio-ingressgateway") in pruned
    assert ("Service", "istio-egressgateway") in pruned
    assert not any(name.startswith("istiod") for _, name in pruned)


def deployment(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": fields}


@pytest.mark.parametrize(
    ("live", "ready", "missing"),
    [
        (None, False, "not created"),
        (deployment(observedGeneration=1), False, "not been seen"),
        (deployment(observedGeneration=2, updatedReplicas=1), False, "1 of 2 pods are of the new"),
        (
            deployment(observedGeneration=2, updatedReplicas=2, availableReplicas=1),
            False,
            "1 of 2 pods are ready",
        ),
        (deployment(observedGeneration=2, updatedReplicas=2, availableReplicas=2), True, ""),
        (
            deployment(observedGeneration=2, replicas=3, updatedReplicas=2, availableReplicas=2),
            False,
            "1 pods of the old version still run",
        ),
        (
            deployment(
                observedGeneration=2,
                conditions=[{"type": "ReplicaFailure", "status": "True", "message": "denied"}],
            ),
            False,
            "denied",
        ),
    ],
)
def test_a_deployment_is_ready_when_all_its_new_pods_are(
    live: dict[str, Any] | None, ready: bool, missing: str
) -> None:
    found, text = deployment_ready(live)
    assert (found, missing in text) == (ready, True)


def test_the_status_is_that_of_the_worst_component() -> None:
    healths = [ComponentHealth("Base", "HEALTHY"), ComponentHealth("Pilot", "ERROR", "no pods")]
    assert overall(healths) == "ERROR"
    assert status(healths, 3) == {
        "status": "ERROR",
        "componentStatus": {
            "Base": {"status": "HEALTHY"},
            "Pilot": {"status": "ERROR", "error": "no pods"},
        },
        "observedGeneration": 3,
        "message": "Pilot: no pods",
    }


def test_applying_again_does_not_turn_the_validating_webhook_back() -> None:
    made = validation(render("istio", "istio-system", {}, []).context)
    assert made["webhooks"][0]["failurePolicy"] == "Ignore"
    live = {"webhooks": [{"name": made["webhooks"][0]["name"], "failurePolicy": "Fail"}]}
    assert keep_live_fields(made, live)["webhooks"][0]["failurePolicy"] == "Fail"
    assert keep_live_fields(made, None) is made
