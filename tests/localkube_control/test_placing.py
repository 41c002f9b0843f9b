"""Which node a pod gets, which address a LoadBalancer gets, and what happens to silent nodes."""

from datetime import timedelta
from typing import Any

import pytest

from localkube.client.resources import NODES, PODS
from localkube.controllers.actions import Create, Delete, Note, Patch
from localkube.controllers.labels import matches
from localkube.controllers.loadbalancer import choose_address, plan_service
from localkube.controllers.nodelifecycle import evictions, plan_silent, wanted_taints
from localkube.controllers.scheduler import choose_node, needs_node, plan_pod, tolerates
from localkube_control.objects import NOW, node, of_type, pod, service

NOW_TEXT = "2026-03-01T12:00:00Z"


def waiting(**spec: Any) -> dict[str, Any]:
    return pod("new", node=None, phase="Pending", ready=False, ip=None, **spec)


def required(**expression: Any) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


class TestScheduling:
    def test_the_emptier_ready_node_wins(self) -> None:
        nodes = [node("a"), node("b"), node("c", ready="False")]
        assert choose_node(waiting(), nodes, {"a": 3, "b": 1}) == ("b", "")

    def test_binds_and_tells(self) -> None:
        plan = plan_pod(waiting(), [node()], {}, NOW_TEXT)
        (created,) = of_type(plan, Create)
        assert created.subresource == "binding"
        assert created.object["target"]["name"] == "node0"
        assert of_type(plan, Note)[0].reason == "Scheduled"

    @pytest.mark.parametrize(
        ("subject", "target", "why"),
        [
            (waiting(nodeSelector={"disk": "ssd"}), node(), "node affinity/selector"),
            (waiting(), node(taints=[{"key": "k", "effect": "NoSchedule"}]), "untolerated taint"),
            (waiting(), node(unschedulable=True), "unschedulable"),
            (waiting(), node(ready="Unknown"), "not ready"),
        ],
    )
    def test_says_why_a_pod_waits(
        self, subject: dict[str, Any], target: dict[str, Any], why: str
    ) -> None:
        plan = plan_pod(subject, [target], {}, NOW_TEXT)
        (patch,) = of_type(plan, Patch)
        (condition,) = [
            c for c in patch.patch["status"]["conditions"] if c["type"] == "PodScheduled"
        ]
        assert condition["reason"] == "Unschedulable"
        assert why in condition["message"]
        assert of_type(plan, Note)[0].message == condition["message"]

    def test_says_it_only_once(self) -> None:
        subject = waiting()
        plan = plan_pod(subject, [], {}, NOW_TEXT)
        subject["status"] |= of_type(plan, Patch)[0].patch["status"]
        assert plan_pod(subject, [], {}, NOW_TEXT).actions == ()

    @pytest.mark.parametrize(
        ("operator", "values", "fits"),
        [
            ("In", ["node0"], True),
            ("NotIn", ["node0"], False),
            ("Exists", [], True),
            ("DoesNotExist", [], False),
        ],
    )
    def test_node_affinity(self, operator: str, values: list[str], fits: bool) -> None:
        affinity = required(key="kubernetes.io/hostname", operator=operator, values=values)
        chosen, _ = choose_node(waiting(affinity=affinity), [node()], {})
        assert (chosen == "node0") is fits

    def test_gated_foreign_and_terminating_pods_are_left_alone(self) -> None:
        assert needs_node(waiting())
        assert not needs_node(waiting(schedulingGates=[{"name": "g"}]))
        assert not needs_node(waiting(schedulerName="mine"))
        assert not needs_node(pod("x", node=None, terminating=True))

    @pytest.mark.parametrize(
        ("toleration", "covers"),
        [
            ({"operator": "Exists"}, True),
            ({"key": "k", "operator": "Exists"}, True),
            ({"key": "k", "value": "v"}, True),
            ({"key": "k", "value": "w"}, False),
            ({"key": "k", "value": "v", "effect": "NoExecute"}, False),
        ],
    )
    def test_tolerations(self, toleration: dict[str, str], covers: bool) -> None:
        taint = {"key": "k", "value": "v", "effect": "NoSchedule"}
        assert tolerates(waiting(tolerations=[toleration]), taint) is covers


class TestLoadBalancer:
    def test_addresses_are_unique_and_kept(self) -> None:
        first, second = service("a", type="LoadBalancer"), service("b", type="LoadBalancer")
        plan = plan_service(first, [first, second], "127.20.30")
        assert plan is not None
        first["status"] = of_type(plan, Patch)[0].patch["status"]
        assert first["status"]["loadBalancer"]["ingress"][0]["ip"] == "127.20.30.1"
        assert plan_service(first, [first, second], "127.20.30") is None
        plan = plan_service(second, [first, second], "127.20.30")
        assert plan is not None
        ingress = of_type(plan, Patch)[0].patch["status"]["loadBalancer"]["ingress"]
        assert ingress[0]["ip"] == "127.20.30.2"

    def test_an_address_may_be_asked_for(self) -> None:
        assert choose_address("127.2.3", "127.9.9.9", []) == "127.9.9.9"
        assert choose_address("127.2.3", "127.9.9.9", ["127.9.9.9"]) is None
        assert choose_address("127.2.3", "10.0.0.1", []) is None
        refused = service("a", type="LoadBalancer", loadBalancerIP="10.0.0.1")
        plan = plan_service(refused, [refused], "127.2.3")
        assert plan is not None
        assert "10.0.0.1" in of_type(plan, Note)[0].message

    def test_a_service_that_stops_being_one_gives_its_address_back(self) -> None:
        svc = service("a")
        svc["status"] = {"loadBalancer": {"ingress": [{"ip": "127.2.3.1"}]}}
        plan = plan_service(svc, [svc], "127.2.3")
        assert plan is not None
        assert of_type(plan, Patch)[0].patch == {"status": {"loadBalancer": {"ingress": None}}}

    def test_other_classes_are_others_business(self) -> None:
        svc = service("a", type="LoadBalancer", loadBalancerClass="example.com/lb")
        assert plan_service(svc, [svc], "127.2.3") is None


class TestSilentNode:
    def test_is_marked_with_its_pods(self) -> None:
        plan = plan_silent(node(), [pod("a"), pod("b", ready=False)], NOW)
        patches = of_type(plan, Patch)
        assert [p.resource for p in patches] == [NODES, PODS]
        assert patches[0].patch["status"]["conditions"][0]["status"] == "Unknown"
        assert patches[1].patch["status"]["conditions"][0]["status"] == "False"

    def test_taints_follow_the_condition(self) -> None:
        silent = node(ready="Unknown")
        taints = wanted_taints(silent, NOW_TEXT)
        assert taints is not None
        assert {(t["key"], t["effect"]) for t in taints} == {
            ("node.kubernetes.io/unreachable", "NoSchedule"),
            ("node.kubernetes.io/unreachable", "NoExecute"),
        }
        assert wanted_taints(node(ready="True", taints=taints), NOW_TEXT) == []
        silent["spec"]["taints"] = taints
        assert wanted_taints(silent, NOW_TEXT) is None

    def test_pods_leave_after_their_tolerated_time(self) -> None:
        taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}
        silent = node(taints=[{**taint, "timeAdded": NOW_TEXT}])
        patient = pod("a", tolerations=[{"key": taint["key"], "operator": "Exists"}])
        hasty = pod(
            "b",
            tolerations=[{"key": taint["key"], "operator": "Exists", "tolerationSeconds": 30}],
        )
        pods = [patient, hasty]
        assert evictions(silent, pods, NOW).again_after == pytest.approx(30)
        plan = evictions(silent, pods, NOW + timedelta(seconds=31))
        assert [d.target["metadata"]["name"] for d in of_type(plan, Delete)] == ["b"]


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        (None, False),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, True),
        ({"matchExpressions": [{"key": "z", "operator": "NotIn", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
    ],
)
def test_label_selectors(selector: dict[str, Any] | None, selected: bool) -> None:
    assert matches(selector, {"a": "1", "b": "2"}) is selected
