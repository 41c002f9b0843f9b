"""Which endpoints a Service has, and how little is written when they change."""

from typing import Any

from localkube.controllers.actions import Create, Delete, Update
from localkube.controllers.endpoint_slices import (
    MAX_ENDPOINTS,
    endpoints_object,
    slices_to_write,
)
from localkube.controllers.mirroring import plan_mirror
from localkube_control.objects import meta, node, of_type, pod, service

NODES = {"node0": node()}


def stored(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result = []
    for number, obj in enumerate(slices):
        metadata = {**meta(f"web-{number}"), **obj["metadata"]}
        result.append({**obj, "metadata": metadata})
    return result


def only_slice(svc: dict[str, Any], pods: list[dict[str, Any]]) -> dict[str, Any]:
    create, update, delete = slices_to_write(svc, pods, NODES, [])
    assert len(create) == 1
    assert update == delete == []
    return create[0]


def test_a_ready_pod_is_a_ready_endpoint() -> None:
    endpoint = only_slice(service(), [pod("a", ip="10.244.0.2")])["endpoints"][0]
    assert endpoint["addresses"] == ["10.244.0.2"]
    assert endpoint["conditions"] == {"ready": True, "serving": True, "terminating": False}
    assert endpoint["targetRef"]["name"] == "a"
    assert endpoint["nodeName"] == "node0"


def test_a_terminating_pod_is_not_ready_but_still_serves() -> None:
    endpoint = only_slice(service(), [pod("a", terminating=True)])["endpoints"][0]
    assert endpoint["conditions"] == {"ready": False, "serving": True, "terminating": True}


def test_unready_pods_are_published_as_ready_only_on_request() -> None:
    pods = [pod("a", ready=False)]
    assert not only_slice(service(), pods)["endpoints"][0]["conditions"]["ready"]
    published = only_slice(service(publishNotReadyAddresses=True), pods)["endpoints"][0]
    assert published["conditions"] == {"ready": True, "serving": False, "terminating": False}


def test_finished_addressless_and_foreign_pods_have_no_endpoint() -> None:
    pods = [
        pod("done", phase="Succeeded"),
        pod("new", ip=None),
        pod("other", labels={"app": "other"}),
    ]
    assert only_slice(service(), pods)["endpoints"] == []


def test_a_named_port_may_differ_between_pods() -> None:
    def with_port(name: str, ip: str, port: int) -> dict[str, Any]:
        ports = [{"name": "http", "containerPort": port}]
        return pod(name, ip=ip, containers=[{"name": "c", "image": "x", "ports": ports}])

    svc = service(ports=[{"name": "web", "port": 80, "targetPort": "http"}])
    create, _, _ = slices_to_write(
        svc, [with_port("a", "10.0.0.1", 8080), with_port("b", "10.0.0.2", 9090)], NODES, []
    )
    assert {s["ports"][0]["port"]: s["endpoints"][0]["addresses"] for s in create} == {
        8080: ["10.0.0.1"],
        9090: ["10.0.0.2"],
    }


def test_hostname_is_told_for_pods_of_this_headless_service() -> None:
    svc = service(clusterIP="None")
    found = only_slice(svc, [pod("a", hostname="db-0", subdomain="web")])
    assert found["endpoints"][0]["hostname"] == "db-0"
    assert found["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


def test_nothing_is_written_when_nothing_changed() -> None:
    svc, pods = service(), [pod("a", ip="10.0.0.1"), pod("b", ip="10.0.0.2")]
    existing = stored([only_slice(svc, pods)])
    assert slices_to_write(svc, pods, NODES, existing) == ([], [], [])


def test_one_change_among_many_touches_one_slice() -> None:
    svc = service()
    pods = [pod(f"p{i}", ip=f"10.0.{i // 250}.{i % 250 + 1}") for i in range(250)]
    create, _, _ = slices_to_write(svc, pods, NODES, [])
    assert [len(s["endpoints"]) for s in create] == [MAX_ENDPOINTS, MAX_ENDPOINTS, 50]
    existing = stored(create)
    gone = pods.pop(120)
    create, update, delete = slices_to_write(svc, pods, NODES, existing)
    assert (create, delete) == ([], [])
    assert len(update) == 1
    left = {e["addresses"][0] for e in update[0]["endpoints"]}
    assert len(left) == MAX_ENDPOINTS - 1
    assert gone["status"]["podIP"] not in left


def test_a_changed_port_rewrites_the_slice_in_place() -> None:
    pods = [pod("a")]
    existing = stored([only_slice(service(), pods)])
    changed = service(ports=[{"name": "http", "port": 80, "targetPort": 9000}])
    create, update, delete = slices_to_write(changed, pods, NODES, existing)
    assert (create, delete) == ([], [])
    assert update[0]["metadata"]["name"] == existing[0]["metadata"]["name"]
    assert update[0]["ports"][0]["port"] == 9000


def test_the_last_pod_leaves_one_empty_slice() -> None:
    svc, pods = service(), [pod("a")]
    existing = stored([only_slice(svc, pods)])
    create, update, delete = slices_to_write(svc, [], NODES, existing)
    assert (create, delete) == ([], [])
    assert update[0]["endpoints"] == []


def test_endpoints_split_ready_from_waiting_and_forget_the_terminating() -> None:
    pods = [
        pod("a", ip="10.0.0.1"),
        pod("b", ip="10.0.0.2", ready=False),
        pod("c", ip="10.0.0.3", terminating=True),
    ]
    svc = service()
    wanted = endpoints_object(svc, pods, None)
    assert wanted is not None
    (subset,) = wanted["subsets"]
    assert [a["ip"] for a in subset["addresses"]] == ["10.0.0.1"]
    assert [a["ip"] for a in subset["notReadyAddresses"]] == ["10.0.0.2"]
    assert subset["ports"] == [{"name": "http", "protocol": "TCP", "port": 8000}]
    assert endpoints_object(svc, pods, wanted) is None


def written_by_hand(**metadata: Any) -> dict[str, Any]:
    addresses = [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]
    subset = {
        "addresses": addresses,
        "notReadyAddresses": [{"ip": "192.0.2.2", "hostname": "b"}],
        "ports": [{"name": "http", "port": 8080}],
    }
    return {"metadata": meta("web", **metadata), "subsets": [subset]}


def test_endpoints_written_by_hand_become_slices() -> None:
    endpoints, bare = written_by_hand(labels={"team": "a"}), service(selector=None)
    slices = [a.object for a in of_type(plan_mirror(endpoints, bare, []), Create)]
    assert [s["addressType"] for s in slices] == ["IPv4", "IPv6"]
    assert slices[0]["endpoints"] == [
        {"addresses": ["192.0.2.1"], "conditions": {"ready": True}},
        {"addresses": ["192.0.2.2"], "conditions": {"ready": False}, "hostname": "b"},
    ]
    assert slices[0]["ports"] == [{"name": "http", "protocol": "TCP", "port": 8080}]
    assert slices[0]["metadata"]["labels"] == {
        "team": "a",
        "kubernetes.io/service-name": "web",
        "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io",
    }
    known = stored(slices)
    assert not plan_mirror(endpoints, bare, known).actions
    endpoints["subsets"][0]["addresses"] = [{"ip": "192.0.2.9"}]
    plan = plan_mirror(endpoints, bare, known)
    assert [a.object["endpoints"][0]["addresses"] for a in of_type(plan, Update)] == [["192.0.2.9"]]
    assert [a.target for a in of_type(plan, Delete)] == [known[1]]


def test_endpoints_that_are_not_for_mirroring_have_no_slices_of_ours() -> None:
    bare = service(selector=None)
    known = stored([a.object for a in of_type(plan_mirror(written_by_hand(), bare, []), Create)])
    for endpoints, svc in (
        (written_by_hand(), service()),
        (written_by_hand(), None),
        (None, bare),
        (written_by_hand(labels={"endpointslice.kubernetes.io/skip-mirror": "true"}), bare),
    ):
        assert len(of_type(plan_mirror(endpoints, svc, known), Delete)) == 2
        assert not of_type(plan_mirror(endpoints, svc, []), Create)
