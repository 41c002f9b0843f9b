"""ReplicaSet, StatefulSet, DaemonSet and PodDisruptionBudget, as decisions."""

import copy
from datetime import timedelta
from typing import Any

import pytest

from localkube.client.resources import PODS
from localkube.controllers.actions import Create, Delete, Note, Patch
from localkube.controllers.daemonset import plan_daemon_set
from localkube.controllers.disruption import plan_budget
from localkube.controllers.pods import deletion_order
from localkube.controllers.replicaset import plan_replica_set
from localkube.controllers.statefulset import plan_stateful_set
from localkube_control.objects import NOW, meta, node, of_type, pod, template, workload


def names(actions: list[Any]) -> list[str]:
    return [action.target["metadata"]["name"] for action in actions]


def status_of(plan: Any) -> dict[str, Any]:
    patches = [p for p in of_type(plan, Patch) if p.subresource == "status"]
    status: dict[str, Any] = patches[-1].patch["status"]
    return status


class TestReplicaSet:
    def test_creates_what_is_missing(self) -> None:
        rs = workload("ReplicaSet", "web", replicas=3)
        plan = plan_replica_set(rs, [pod("a", owner=rs)], NOW)
        created = of_type(plan, Create)
        assert len(created) == 2
        reference = created[0].object["metadata"]["ownerReferences"][0]
        assert reference["uid"] == rs["metadata"]["uid"]
        assert reference["controller"]

    def test_finished_and_terminating_pods_do_not_count(self) -> None:
        rs = workload("ReplicaSet", "web", replicas=1)
        pods = [pod("a", owner=rs, phase="Failed"), pod("b", owner=rs, terminating=True)]
        assert len(of_type(plan_replica_set(rs, pods, NOW), Create)) == 1

    def test_adopts_orphans_and_releases_strangers(self) -> None:
        rs = workload("ReplicaSet", "web", replicas=1)
        orphan = pod("orphan")
        stranger = pod("stranger", owner=rs, labels={"app": "changed"})
        plan = plan_replica_set(rs, [orphan, stranger], NOW)
        patches = [p for p in of_type(plan, Patch) if p.resource == PODS]
        assert {p.target["metadata"]["name"]: p.patch["metadata"] for p in patches} == {
            "orphan": {"ownerReferences": [_reference(rs)]},
            "stranger": {"ownerReferences": None},
        }
        assert of_type(plan, Create) == []

    def test_leaves_pods_of_another_controller_alone(self) -> None:
        rs, other = workload("ReplicaSet", "web", replicas=1), workload("ReplicaSet", "other")
        plan = plan_replica_set(rs, [pod("a", owner=other)], NOW)
        assert len(of_type(plan, Create)) == 1
        assert [p for p in of_type(plan, Patch) if p.resource == PODS] == []

    def test_a_deleted_set_manages_nothing(self) -> None:
        rs = workload("ReplicaSet", "web", replicas=3)
        rs["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
        assert of_type(plan_replica_set(rs, [], NOW), Create) == []

    def test_status_counts_and_waits_for_min_ready_seconds(self) -> None:
        rs = workload("ReplicaSet", "web", replicas=2, minReadySeconds=30)
        pods = [
            pod("old", owner=rs),
            pod("new", owner=rs, since=(NOW - timedelta(seconds=10)).isoformat()),
        ]
        plan = plan_replica_set(rs, pods, NOW)
        status = status_of(plan)
        assert (status["replicas"], status["readyReplicas"]) == (2, 2)
        assert status["availableReplicas"] == 1
        assert plan.again_after == pytest.approx(20)

    def test_a_refusal_is_told_and_not_repeated_at_once(self) -> None:
        rs = workload("ReplicaSet", "web", replicas=1)
        plan = plan_replica_set(rs, [], NOW, failure="a webhook said no")
        assert of_type(plan, Create) == []
        (condition,) = status_of(plan)["conditions"]
        assert condition["type"] == "ReplicaFailure"
        assert condition["message"] == "a webhook said no"


def _reference(owner: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def test_pods_that_serve_least_are_given_up_first() -> None:
    cheap = pod("cheap")
    cheap["metadata"]["annotations"] = {"controller.kubernetes.io/pod-deletion-cost": "-5"}
    pods = [
        pod("steady"),
        pod("fresh", since="2026-03-01T11:59:00Z"),
        cheap,
        pod("unready", ready=False),
        pod("pending", phase="Pending", ready=False),
        pod("unbound", node=None, phase="Pending", ready=False),
    ]
    order = [p["metadata"]["name"] for p in deletion_order(pods)]
    assert order == ["unbound", "pending", "unready", "cheap", "fresh", "steady"]


class TestStatefulSet:
    def revision(self, sts: dict[str, Any]) -> dict[str, Any]:
        created = of_type(plan_stateful_set(sts, [], [], NOW), Create)[0].object
        return {**created, "metadata": {**meta("r"), **created["metadata"]}}

    def member(
        self, sts: dict[str, Any], revision: dict[str, Any], ordinal: int, **fields: Any
    ) -> dict[str, Any]:
        hashed = revision["metadata"]["labels"]["controller-revision-hash"]
        labels = {"app": "web", "controller-revision-hash": hashed}
        return pod(f"db-{ordinal}", owner=sts, labels=labels, **fields)

    def test_starts_in_order(self) -> None:
        sts = workload("StatefulSet", "db", replicas=3, serviceName="db")
        revision = self.revision(sts)
        for ready, expected in ((False, []), (True, ["db-1"])):
            members = [self.member(sts, revision, 0, ready=ready)]
            plan = plan_stateful_set(sts, members, [revision], NOW)
            pods = [c.object for c in of_type(plan, Create) if c.resource == PODS]
            assert [p["metadata"]["name"] for p in pods] == expected
        assert pods[0]["spec"]["hostname"] == "db-1"
        assert pods[0]["spec"]["subdomain"] == "db"

    def test_starts_all_at_once_when_parallel(self) -> None:
        sts = workload("StatefulSet", "db", replicas=3, podManagementPolicy="Parallel")
        plan = plan_stateful_set(sts, [], [], NOW)
        assert len([c for c in of_type(plan, Create) if c.resource == PODS]) == 3

    def test_scales_down_from_the_top_one_by_one(self) -> None:
        sts = workload("StatefulSet", "db", replicas=1)
        revision = self.revision(sts)
        members = [self.member(sts, revision, i) for i in range(3)]
        plan = plan_stateful_set(sts, members, [revision], NOW)
        assert names(of_type(plan, Delete)) == ["db-2"]

    def test_updates_from_the_top_and_stops_at_the_partition(self) -> None:
        sts = workload("StatefulSet", "db", replicas=3)
        old = self.revision(sts)
        sts["status"] = {"currentRevision": old["metadata"]["name"]}
        sts["spec"]["template"] = template("new")
        members = [self.member(sts, old, i) for i in range(3)]
        plan = plan_stateful_set(sts, members, [old], NOW)
        assert names(of_type(plan, Delete)) == ["db-2"]
        sts["spec"]["updateStrategy"] = {
            "type": "RollingUpdate",
            "rollingUpdate": {"partition": 3},
        }
        assert of_type(plan_stateful_set(sts, members, [old], NOW), Delete) == []

    def test_a_pod_below_the_partition_is_recreated_from_the_old_template(self) -> None:
        sts = workload("StatefulSet", "db", replicas=2)
        old = self.revision(sts)
        sts["status"] = {"currentRevision": old["metadata"]["name"]}
        sts["spec"]["template"] = template("new")
        sts["spec"]["updateStrategy"] = {
            "type": "RollingUpdate",
            "rollingUpdate": {"partition": 2},
        }
        plan = plan_stateful_set(sts, [], [old], NOW)
        created = [c.object for c in of_type(plan, Create) if c.resource == PODS]
        assert created[0]["spec"]["containers"][0]["image"] == "x"

    def test_volume_claims_become_empty_dirs_and_are_told(self) -> None:
        claims = [{"metadata": {"name": "data"}, "spec": {}}]
        sts = workload("StatefulSet", "db", replicas=1, volumeClaimTemplates=claims)
        plan = plan_stateful_set(sts, [], [], NOW)
        created = [c.object for c in of_type(plan, Create) if c.resource == PODS]
        assert created[0]["spec"]["volumes"] == [{"name": "data", "emptyDir": {}}]
        assert [n.reason for n in of_type(plan, Note)] == ["EphemeralVolumeClaims"]


class TestDaemonSet:
    def test_one_pod_on_each_node_that_fits(self) -> None:
        ds = workload("DaemonSet", "agent")
        tainted = node("tainted", taints=[{"key": "k", "effect": "NoSchedule"}])
        plan = plan_daemon_set(ds, [], [], [node("a"), node("b"), tainted], NOW)
        made = [c.object for c in of_type(plan, Create) if c.resource == PODS]
        assert sorted(p["spec"]["nodeName"] for p in made) == ["a", "b"]
        assert status_of(plan)["desiredNumberScheduled"] == 2

    def test_pods_on_nodes_that_no_longer_fit_are_deleted(self) -> None:
        ds = workload("DaemonSet", "agent")
        ds["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "ssd"}
        plan = plan_daemon_set(ds, [pod("a", owner=ds)], [], [node()], NOW)
        assert names(of_type(plan, Delete)) == ["a"]

    def test_an_outdated_pod_is_replaced_after_its_predecessor_is_back(self) -> None:
        ds = workload("DaemonSet", "agent")
        pods = [pod("a", owner=ds, node="a"), pod("b", owner=ds, node="b")]
        nodes = [node("a"), node("b")]
        assert names(of_type(plan_daemon_set(ds, pods, [], nodes, NOW), Delete)) == ["a"]
        waiting = copy.deepcopy(pods)
        waiting[0]["metadata"]["deletionTimestamp"] = "2026-03-01T12:00:00Z"
        assert of_type(plan_daemon_set(ds, waiting, [], nodes, NOW), Delete) == []


@pytest.mark.parametrize(
    ("spec", "healthy", "allowed"),
    [
        ({"minAvailable": 2}, 3, 1),
        ({"minAvailable": "50%"}, 3, 1),
        ({"maxUnavailable": 1}, 3, 1),
        ({"maxUnavailable": 1}, 2, 0),
        ({"minAvailable": 3}, 3, 0),
    ],
)
def test_budget(spec: dict[str, Any], healthy: int, allowed: int) -> None:
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta("b"),
        "spec": {"selector": {"matchLabels": {"app": "web"}}, **spec},
    }
    pods = [pod(f"p{i}", ready=i < healthy) for i in range(3)]
    assert status_of(plan_budget(budget, pods, NOW))["disruptionsAllowed"] == allowed
