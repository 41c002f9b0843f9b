"""Rollout arithmetic, and Deployments brought to their end by repeated planning."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localkube.client.resources import REPLICA_SETS
from localkube.controllers.actions import Create, Delete, Patch, Plan
from localkube.controllers.deployment import HASH_LABEL, REVISION, plan_deployment
from localkube.controllers.rollout import (
    SetSize,
    proportional_sizes,
    resolve_percentage,
    rolling_step,
    surge_and_unavailable,
)
from localkube_control.objects import NOW, meta, of_type, owner_of, pod, template, workload


@pytest.mark.parametrize(
    ("value", "total", "up", "expected"),
    [
        ("25%", 10, True, 3),
        ("25%", 10, False, 2),
        (3, 10, True, 3),
        ("100%", 4, False, 4),
        (None, 4, False, 0),
        ("nonsense", 4, True, 0),
    ],
)
def test_percentages_round_as_documented(value: Any, total: int, up: bool, expected: int) -> None:
    assert resolve_percentage(value, total, round_up=up) == expected


def test_a_rollout_that_could_not_move_may_miss_one_pod() -> None:
    assert surge_and_unavailable(0, "10%", 3) == (0, 1)


@given(
    replicas=st.integers(1, 12),
    surge=st.integers(0, 5),
    unavailable=st.integers(0, 5),
    old_size=st.integers(0, 12),
)
def test_a_rollout_keeps_its_limits_and_ends(
    replicas: int, surge: int, unavailable: int, old_size: int
) -> None:
    """Every step stays within maxSurge and maxUnavailable; the end is all new, nothing old."""
    surge, unavailable = surge_and_unavailable(surge, unavailable, replicas)
    old_size = min(old_size, replicas)
    new, old = 0, old_size
    new_available = 0
    for _ in range(200):
        sizes = rolling_step(
            replicas,
            surge,
            unavailable,
            SetSize("new", new, new, new_available),
            [SetSize("old", old, old, old)],
        )
        if not sizes and new_available == new == replicas:
            break
        new, old = sizes.get("new", new), sizes.get("old", old)
        assert new + old <= replicas + surge
        if old_size == replicas:
            assert new_available + old >= replicas - unavailable
        # One more pod becomes available between two steps.
        new_available = min(new, new_available + 1)
    assert (new, old) == (replicas, 0)


def test_unhealthy_old_pods_go_first_and_cost_nothing() -> None:
    """Pods of a broken old set are given up although the new ones are not ready yet."""
    new = SetSize("new", 1, 1, 0)
    old = [SetSize("broken", 2, 2, 0), SetSize("good", 3, 3, 3)]
    assert rolling_step(4, 2, 1, new, old) == {"broken": 0}


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4), total=st.integers(0, 40))
def test_proportional_scaling_hands_out_exactly_the_total(sizes: list[int], total: int) -> None:
    sets = [SetSize(f"rs{i}", size, size, size) for i, size in enumerate(sizes)]
    result = proportional_sizes(sets, total)
    assert sum(result.get(s.name, s.wanted) for s in sets) == total
    assert all(size >= 0 for size in result.values())


class World:
    """A Deployment and its ReplicaSets, to which plans are applied; pods are ready at once."""

    def __init__(self, **spec: Any) -> None:
        self.deployment = workload("Deployment", "web", **spec)
        self.sets: dict[str, dict[str, Any]] = {}
        self.largest = 0
        self.smallest = 10**6

    def total(self, field: str) -> int:
        return sum(rs["status"].get(field, 0) for rs in self.sets.values())

    def run(self, rounds: int = 30) -> None:
        for _ in range(rounds):
            plan = plan_deployment(self.deployment, list(self.sets.values()), [], NOW)
            if not plan.actions:
                return
            self.apply(plan)
        raise AssertionError("the plans do not come to rest")

    def apply(self, plan: Plan) -> None:
        for action in plan.actions:
            if isinstance(action, Create):
                created = {**action.object, "status": {}}
                created["metadata"] = {
                    **meta(created["metadata"]["name"]),
                    **created["metadata"],
                }
                self.sets[created["metadata"]["name"]] = created
            elif isinstance(action, Delete):
                del self.sets[action.target["metadata"]["name"]]
            elif isinstance(action, Patch):
                self._patch(action)
        for rs in self.sets.values():
            size = rs["spec"]["replicas"]
            rs["status"] = {
                "replicas": size,
                "readyReplicas": size,
                "availableReplicas": size,
                "observedGeneration": 1,
            }
        if self.sets:
            self.largest = max(self.largest, self.total("replicas"))
            self.smallest = min(self.smallest, self.total("availableReplicas"))

    def _patch(self, action: Patch) -> None:
        target = (
            self.sets[action.target["metadata"]["name"]]
            if action.resource == REPLICA_SETS
            else self.deployment
        )
        for key, value in action.patch.get("metadata", {}).items():
            target["metadata"].setdefault(key, {}).update(value)
        for field in ("spec", "status"):
            merged = target.setdefault(field, {}) | action.patch.get(field, {})
            target[field] = {key: value for key, value in merged.items() if value is not None}

    def sizes(self) -> dict[str, int]:
        return {
            rs["spec"]["template"]["spec"]["containers"][0]["image"]: rs["spec"]["replicas"]
            for rs in self.sets.values()
        }

    def revisions(self) -> dict[str, str]:
        return {
            rs["spec"]["template"]["spec"]["containers"][0]["image"]: rs["metadata"]["annotations"][
                REVISION
            ]
            for rs in self.sets.values()
        }

    def set_image(self, image: str) -> None:
        self.deployment["spec"]["template"] = template(image)
        self.deployment["metadata"]["generation"] += 1


def test_a_new_template_replaces_the_old_one_within_limits() -> None:
    world = World(replicas=4)
    world.run()
    assert world.sizes() == {"x": 4}
    world.smallest = 10**6
    world.set_image("y")
    world.run()
    assert world.sizes() == {"x": 0, "y": 4}
    assert world.largest <= 5
    assert world.smallest >= 3
    status = world.deployment["status"]
    assert status["updatedReplicas"] == status["availableReplicas"] == 4
    assert {c["type"]: c["reason"] for c in status["conditions"]} == {
        "Available": "MinimumReplicasAvailable",
        "Progressing": "NewReplicaSetAvailable",
    }


def test_undo_reuses_the_old_set_as_a_new_revision() -> None:
    """`kubectl rollout undo` is a change back to the old template."""
    world = World(replicas=2)
    world.run()
    world.set_image("y")
    world.run()
    world.set_image("x")
    world.run()
    assert world.sizes() == {"x": 2, "y": 0}
    assert world.revisions() == {"x": "3", "y": "2"}
    assert world.deployment["metadata"]["annotations"][REVISION] == "3"


def test_a_list_that_became_empty_is_no_new_template() -> None:
    """As when a strategic merge patch deletes the last environment variable."""
    world = World(replicas=2)
    world.run()
    world.deployment["spec"]["template"]["spec"]["containers"][0]["env"] = []
    world.run()
    assert len(world.sets) == 1


def test_scaling_changes_the_one_active_set() -> None:
    world = World(replicas=2)
    world.run()
    world.deployment["spec"]["replicas"] = 5
    world.run()
    assert world.sizes() == {"x": 5}
    world.deployment["spec"]["replicas"] = 0
    world.run()
    assert world.sizes() == {"x": 0}


def test_a_paused_deployment_scales_but_does_not_roll_out() -> None:
    world = World(replicas=2)
    world.run()
    world.deployment["spec"]["paused"] = True
    world.set_image("y")
    world.deployment["spec"]["replicas"] = 3
    world.run()
    assert world.sizes() == {"x": 3}
    world.deployment["spec"]["paused"] = False
    world.run()
    assert world.sizes() == {"x": 0, "y": 3}


def test_recreate_waits_until_the_old_pods_are_gone() -> None:
    world = World(replicas=2, strategy={"type": "Recreate"})
    world.run()
    world.set_image("y")
    old = next(iter(world.sets.values()))
    ending = pod("web-1", owner=old, terminating=True)
    for _ in range(4):
        world.apply(plan_deployment(world.deployment, list(world.sets.values()), [ending], NOW))
    assert world.sizes() == {"x": 0, "y": 0}
    world.run()
    assert world.sizes() == {"x": 0, "y": 2}


def test_history_beyond_its_limit_is_deleted() -> None:
    world = World(replicas=1, revisionHistoryLimit=1)
    for image in ("a", "b", "c", "d"):
        world.set_image(image)
        world.run()
    assert world.sizes() == {"c": 0, "d": 1}


def test_the_progress_deadline_is_told_once_it_has_passed() -> None:
    deployment = workload("Deployment", "web", replicas=1, progressDeadlineSeconds=10)
    first = plan_deployment(deployment, [], [], NOW)
    created = of_type(first, Create)[0].object
    created["metadata"] = {**meta("rs"), **created["metadata"]}
    created["metadata"]["ownerReferences"] = owner_of(deployment)
    for seconds, reason in ((0, "ReplicaSetUpdated"), (5, "ReplicaSetUpdated")):
        plan = plan_deployment(deployment, [created], [], NOW + timedelta(seconds=seconds))
        for patch in of_type(plan, Patch):
            if "status" in patch.patch:
                deployment.setdefault("status", {}).update(patch.patch["status"])
        conditions = {c["type"]: c for c in deployment["status"]["conditions"]}
        assert conditions["Progressing"]["reason"] == reason
    late = plan_deployment(deployment, [created], [], NOW + timedelta(seconds=30))
    told = next(p.patch["status"] for p in of_type(late, Patch) if "status" in p.patch)
    progressing = next(c for c in told["conditions"] if c["type"] == "Progressing")
    assert progressing["reason"] == "ProgressDeadlineExceeded"
    assert progressing["status"] == "False"


def test_pods_of_different_templates_have_different_hashes() -> None:
    world = World(replicas=1)
    world.run()
    world.set_image("y")
    world.run()
    hashes = {rs["metadata"]["labels"][HASH_LABEL] for rs in world.sets.values()}
    assert len(hashes) == 2
