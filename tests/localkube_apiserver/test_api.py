"""The API over real TLS: verbs, lists, watches, deletion, errors, as clients see them."""

from __future__ import annotations

import base64
import concurrent.futures
from pathlib import Path
from typing import Any

from localkube_apiserver.api_process import ApiProcess


def _configmaps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def _configmap(name: str, **more: Any) -> dict[str, Any]:
    metadata = {"name": name, **more.pop("metadata", {})}
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": more}


def _create(api: ApiProcess, path: str, obj: dict[str, Any]) -> dict[str, Any]:
    answer = api.post(path, obj)
    assert answer.status == 201, answer.body
    created: dict[str, Any] = answer.body
    return created


def _pod(name: str, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "a", "image": "x"}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}}


# -- verbs and concurrency ------------------------------------------------------------------------


def test_create_sets_what_the_server_sets(api: ApiProcess, namespace: str) -> None:
    created = _create(api, _configmaps(namespace), _configmap("a", x="1"))
    metadata = created["metadata"]
    assert metadata["namespace"] == namespace
    assert len(metadata["uid"]) == 36
    assert metadata["creationTimestamp"].endswith("Z")
    assert api.get(f"{_configmaps(namespace)}/a").body == created
    again = api.post(_configmaps(namespace), _configmap("a"))
    assert (again.status, again.reason) == (409, "AlreadyExists")
    assert again.body["message"] == 'configmaps "a" already exists'


def test_generated_names_are_fresh(api: ApiProcess, namespace: str) -> None:
    body = {"metadata": {"generateName": "g-"}}
    names = {_create(api, _configmaps(namespace), body)["metadata"]["name"] for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("g-") and len(name) == 7 for name in names)


def test_updates_are_optimistic(api: ApiProcess, namespace: str) -> None:
    path = f"{_configmaps(namespace)}/a"
    created = _create(api, _configmaps(namespace), _configmap("a", x="1"))
    created["data"]["x"] = "2"
    updated = api.put(path, created)
    assert updated.status == 200
    stale = api.put(path, created)
    assert (stale.status, stale.reason) == (409, "Conflict")
    assert "the object has been modified" in stale.body["message"]
    unchanged = api.put(path, updated.body)
    assert (
        unchanged.body["metadata"]["resourceVersion"]
        == (updated.body["metadata"]["resourceVersion"])
    )
    gone = api.put(f"{_configmaps(namespace)}/none", _configmap("none"))
    assert (gone.status, gone.reason) == (404, "NotFound")


def test_patches_race_without_losing_one(api: ApiProcess, namespace: str) -> None:
    path = f"{_configmaps(namespace)}/a"
    _create(api, _configmaps(namespace), _configmap("a"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: api.patch(path, {"data": {f"k{n}": "v"}}), range(24)))
    assert {answer.status for answer in answers} == {200}
    assert len(api.get(path).body["data"]) == 24


def test_to_apply_while_another_deletes_is_to_create(api: ApiProcess, namespace: str) -> None:
    path = f"{_configmaps(namespace)}/a"
    hook = {
        "name": "nobody.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["UPDATE"],
                "resources": ["configmaps"],
            }
        ],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "failurePolicy": "Ignore",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    hooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    # Asking it takes a moment, in which the object may go.
    _create(api, hooks, {"metadata": {"name": namespace}, "webhooks": [hook]})

    def one(number: int) -> int:
        if number % 2:
            return api.delete(path).status
        return api.patch(
            path, _configmap("a", x=str(number)), "apply-patch+yaml", fieldManager="me"
        ).status

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(one, range(32)))
    api.delete(f"{hooks}/{namespace}")
    assert set(statuses[0::2]) <= {200, 201}


def test_dry_run_stores_nothing(api: ApiProcess, namespace: str) -> None:
    answer = api.post(_configmaps(namespace), _configmap("a", x="1"), dryRun="All")
    assert answer.status == 201
    assert "resourceVersion" not in answer.body["metadata"]
    assert api.get(f"{_configmaps(namespace)}/a").status == 404
    _create(api, _configmaps(namespace), _configmap("a"))
    api.patch(f"{_configmaps(namespace)}/a", {"data": {"y": "1"}}, dryRun="All")
    api.delete(f"{_configmaps(namespace)}/a", dryRun="All")
    assert not api.get(f"{_configmaps(namespace)}/a").body.get("data")
    refused = api.post(_configmaps(namespace), _configmap("b"), dryRun="Some")
    assert refused.status == 422


def test_generation_counts_changes_of_what_is_desired(api: ApiProcess, namespace: str) -> None:
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
    labels = {"app": "w"}
    template = {"metadata": {"labels": labels}, "spec": _pod("x")["spec"]}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    created = _create(api, path, {"metadata": {"name": "w"}, "spec": spec})
    assert created["metadata"]["generation"] == 1
    assert created["spec"]["replicas"] == 1
    labelled = api.patch(f"{path}/w", {"metadata": {"labels": {"x": "y"}}}).body
    assert labelled["metadata"]["generation"] == 1
    scaled = api.patch(f"{path}/w/scale", {"spec": {"replicas": 3}}).body
    assert (scaled["kind"], scaled["spec"]) == ("Scale", {"replicas": 3})
    assert scaled["status"]["selector"] == "app=w"
    found = api.get(f"{path}/w").body
    assert (found["metadata"]["generation"], found["spec"]["replicas"]) == (2, 3)
    status = api.patch(f"{path}/w/status", {"status": {"replicas": 3}, "spec": {"replicas": 9}})
    assert status.body["status"] == {"replicas": 3}
    assert status.body["spec"]["replicas"] == 3
    kept = api.patch(f"{path}/w", {"status": {"replicas": 8}}).body
    assert kept["status"] == {"replicas": 3}


def test_namespaces_guard_their_content(api: ApiProcess) -> None:
    missing = api.post(_configmaps("nowhere"), _configmap("a"))
    assert (missing.status, missing.body["message"]) == (404, 'namespaces "nowhere" not found')
    _create(api, "/api/v1/namespaces", {"metadata": {"name": "going"}})
    _create(api, _configmaps("going"), _configmap("a"))
    going = api.delete("/api/v1/namespaces/going").body
    assert going["status"]["phase"] == "Terminating"
    refused = api.post(_configmaps("going"), _configmap("b"))
    assert (refused.status, refused.reason) == (403, "Forbidden")
    assert refused.body["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    going["spec"]["finalizers"] = []
    assert api.put("/api/v1/namespaces/going/finalize", going).status == 200
    assert api.get("/api/v1/namespaces/going").status == 404
    permanent = api.delete("/api/v1/namespaces/default")
    assert permanent.status == 403


# -- lists ----------------------------------------------------------------------------------------


def test_paged_lists_are_consistent(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    for name in "abcde":
        _create(api, path, _configmap(name))
    first = api.get(path, limit=2).body
    assert first["metadata"]["remainingItemCount"] == 3
    api.delete(f"{path}/d")
    _create(api, path, _configmap("f"))
    names = [one["metadata"]["name"] for one in first["items"]]
    page = first
    while token := page["metadata"].get("continue"):
        page = api.get(path, **{"limit": 2, "continue": token}).body
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        names += [one["metadata"]["name"] for one in page["items"]]
    assert names == list("abcde")
    assert api.get(path, **{"continue": "rubbish"}).status == 400


def test_lists_honour_resource_versions(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    _create(api, path, _configmap("a"))
    then = api.get(path).body["metadata"]["resourceVersion"]
    _create(api, path, _configmap("b"))
    exact = api.get(path, resourceVersion=then, resourceVersionMatch="Exact").body
    assert [one["metadata"]["name"] for one in exact["items"]] == ["a"]
    newer = api.get(path, resourceVersion=then, resourceVersionMatch="NotOlderThan").body
    assert len(newer["items"]) == 2
    future = api.get(path, resourceVersion=10**9)
    assert (future.status, future.reason) == (504, "Timeout")
    assert api.get(path, resourceVersionMatch="Exact").status == 422


def test_selectors_filter_lists(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    _create(api, path, _configmap("a", metadata={"labels": {"t": "1"}}))
    _create(api, path, _configmap("b", metadata={"labels": {"t": "2"}}))
    found = api.get(path, labelSelector="t in (1)").body["items"]
    assert [one["metadata"]["name"] for one in found] == ["a"]
    found = api.get(path, fieldSelector="metadata.name=b").body["items"]
    assert [one["metadata"]["name"] for one in found] == ["b"]
    assert api.get(path, labelSelector="!!").status == 400
    assert api.get(path, fieldSelector="data.x=1").status == 400


def test_forms_of_an_answer(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    _create(api, path, _configmap("a", x="1"))
    table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    rows = api.get(path, headers=table).body
    assert [c["name"] for c in rows["columnDefinitions"]] == ["Name", "Data", "Age"]
    assert rows["rows"][0]["cells"][:2] == ["a", 1]
    assert rows["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    partial = {"Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"}
    found = api.get(path, headers=partial).body
    assert found["kind"] == "PartialObjectMetadataList"
    assert "data" not in found["items"][0]
    text = api.get(f"{path}/a", headers={"Accept": "application/yaml"}, raw=True).body
    assert "kind: ConfigMap" in text
    refused = api.get(path, headers={"Accept": "application/cbor"})
    assert refused.status == 406


# -- watches --------------------------------------------------------------------------------------


def test_a_watch_shows_changes_and_selector_transitions(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    start = api.get(path).body["metadata"]["resourceVersion"]
    with (
        api.watch(path, resourceVersion=start) as everything,
        api.watch(path, resourceVersion=start, labelSelector="t=1") as selected,
    ):
        _create(api, path, _configmap("a"))
        api.patch(f"{path}/a", {"metadata": {"labels": {"t": "1"}}})
        api.patch(f"{path}/a", {"data": {"x": "1"}})
        api.patch(f"{path}/a", {"metadata": {"labels": {"t": "2"}}})
        api.patch(f"{path}/a", {"metadata": {"labels": {"t": "1"}}})
        api.delete(f"{path}/a")
        kinds = [kind for kind, _ in everything.take(6)]
        assert kinds == ["ADDED", *["MODIFIED"] * 4, "DELETED"]
        events = selected.take(5)
        assert [k for k, _ in events] == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
        versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in events]
        assert versions == sorted(set(versions))
        assert events[2][1]["metadata"]["labels"] == {"t": "1"}


def test_a_watch_from_the_start_begins_with_what_is_there(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    _create(api, path, _configmap("a"))
    with api.watch(path, resourceVersion=0) as watch:
        assert watch.take(1)[0][0] == "ADDED"
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    with api.watch(path, **query) as watch:
        (added, obj), (bookmark, end) = watch.take(2)
        assert (added, obj["metadata"]["name"], bookmark) == ("ADDED", "a", "BOOKMARK")
        assert end["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert end["kind"] == "ConfigMap"
        _create(api, path, _configmap("b"))
        assert watch.take(1)[0][0] == "ADDED"
    refused = api.get(path, watch=1, sendInitialEvents="true")
    assert (refused.status, refused.reason) == (422, "Invalid")


def test_a_watch_ends_in_time_with_a_bookmark(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    with api.watch(path, timeoutSeconds=1, allowWatchBookmarks="true") as watch:
        assert [kind for kind, _ in watch] == ["BOOKMARK"]


def test_table_watches_describe_their_columns_once(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    headers = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    with api.watch(path, headers=headers, resourceVersion=0) as watch:
        _create(api, path, _configmap("a"))
        _create(api, path, _configmap("b"))
        (_, first), (_, second) = watch.take(2)
        assert first["columnDefinitions"]
        assert second["columnDefinitions"] == []


def test_who_is_too_late_is_told_to_list_again(tmp_path: Path) -> None:
    server = ApiProcess(tmp_path, window=16)
    server.start()
    try:
        path = _configmaps("default")
        start = server.get(path).body["metadata"]["resourceVersion"]
        page = {}
        for number in range(40):
            _create(server, path, _configmap(f"c{number}"))
            if number == 3:
                page = server.get(path, limit=2).body["metadata"]
        with server.watch(path, resourceVersion=start) as watch:
            ((kind, status),) = list(watch)
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        late = server.get(path, **{"limit": 2, "continue": page["continue"]})
        assert (late.status, late.reason) == (410, "Expired")
        token = late.body["metadata"]["continue"]
        rest = server.get(path, **{"continue": token})
        assert (rest.status, len(rest.body["items"])) == (200, 38)
    finally:
        server.close()


# -- deletion -------------------------------------------------------------------------------------


def test_finalizers_hold_an_object_until_they_are_gone(api: ApiProcess, namespace: str) -> None:
    path = f"{_configmaps(namespace)}/a"
    metadata = {"finalizers": ["x.io/hold"]}
    _create(api, _configmaps(namespace), _configmap("a", metadata=metadata))
    held = api.delete(path)
    assert held.status == 200
    assert held.body["metadata"]["deletionTimestamp"]
    added = api.patch(path, {"metadata": {"finalizers": ["x.io/hold", "x.io/more"]}})
    assert (added.status, added.reason) == (422, "Invalid")
    assert api.get(path).status == 200
    api.patch(path, {"metadata": {"finalizers": None}})
    assert api.get(path).status == 404


def test_propagation_policies_leave_work_for_the_collector(api: ApiProcess, namespace: str) -> None:
    for policy, finalizer in (("Foreground", "foregroundDeletion"), ("Orphan", "orphan")):
        name = policy.lower()
        _create(api, _configmaps(namespace), _configmap(name))
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}
        body = api.delete(f"{_configmaps(namespace)}/{name}", options).body
        assert body["metadata"]["finalizers"] == [finalizer]
    _create(api, _configmaps(namespace), _configmap("b"))
    gone = api.delete(f"{_configmaps(namespace)}/b", propagationPolicy="Background").body
    assert (gone["kind"], gone["status"]) == ("Status", "Success")
    assert gone["details"]["kind"] == "configmaps"
    assert api.delete(f"{_configmaps(namespace)}/b", propagationPolicy="Maybe").status == 422


def test_delete_preconditions(api: ApiProcess, namespace: str) -> None:
    path = f"{_configmaps(namespace)}/a"
    created = _create(api, _configmaps(namespace), _configmap("a"))
    wrong = api.delete(path, {"preconditions": {"uid": "other"}})
    assert (wrong.status, wrong.reason) == (409, "Conflict")
    right = {"preconditions": {"uid": created["metadata"]["uid"]}}
    assert api.delete(path, right).status == 200


def test_running_pods_get_time_to_end(api: ApiProcess, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    _create(api, path, _pod("loose"))
    assert api.delete(f"{path}/loose").body["kind"] == "Status"
    _create(api, path, _pod("placed", nodeName="n1"))
    ending = api.delete(f"{path}/placed", gracePeriodSeconds=20).body["metadata"]
    assert ending["deletionGracePeriodSeconds"] == 20
    assert api.delete(f"{path}/placed").body["metadata"] == ending
    sooner = api.delete(f"{path}/placed", gracePeriodSeconds=5).body["metadata"]
    assert sooner["deletionGracePeriodSeconds"] == 5
    assert api.delete(f"{path}/placed", gracePeriodSeconds=0).body["kind"] == "Status"
    assert api.get(f"{path}/placed").status == 404


def test_collections_are_deleted_by_selector(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    for name, value in (("a", "1"), ("b", "2"), ("c", "1")):
        _create(api, path, _configmap(name, metadata={"labels": {"t": value}}))
    api.delete(path, labelSelector="t=1")
    assert [one["metadata"]["name"] for one in api.get(path).body["items"]] == ["b"]


# -- subresources ---------------------------------------------------------------------------------


def test_binding_places_a_pod_once(api: ApiProcess, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    _create(api, path, _pod("p"))
    binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}
    assert api.post(f"{path}/p/binding", binding).status == 201
    pod = api.get(f"{path}/p").body
    assert pod["spec"]["nodeName"] == "n1"
    assert pod["status"]["conditions"][0]["type"] == "PodScheduled"
    binding["target"]["name"] = "n2"  # type: ignore[index]
    assert api.post(f"{path}/p/binding", binding).status == 409


def test_eviction_respects_budgets(api: ApiProcess, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    pod = _pod("p", nodeName="n1")
    pod["metadata"]["labels"] = {"app": "x"}
    _create(api, path, pod)
    running = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    for name in ("p", "q"):
        if name == "q":
            _create(api, path, {**pod, "metadata": {**pod["metadata"], "name": "q"}})
        api.patch(f"{path}/{name}/status", {"status": running})
    budgets = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    selector = {"matchLabels": {"app": "x"}}
    _create(api, budgets, {"metadata": {"name": "b"}, "spec": {"selector": selector}})
    status = {
        "disruptionsAllowed": 0,
        "currentHealthy": 2,
        "desiredHealthy": 1,
        "expectedPods": 2,
    }
    assert api.patch(f"{budgets}/b/status", {"status": status}).status == 200
    eviction = {"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}}
    held = api.post(f"{path}/p/eviction", eviction)
    # Without Retry-After: with it, client libraries repeat by themselves and kubectl drain is mute.
    assert (held.status, held.headers.get("Retry-After")) == (429, None)
    api.patch(f"{budgets}/b/status", {"status": {"disruptionsAllowed": 1}})
    assert api.post(f"{path}/p/eviction", eviction).status == 201
    assert api.get(f"{path}/p").body["metadata"]["deletionTimestamp"]
    # Nobody has counted anew, and still the second one is held back.
    second = api.post(f"{path}/q/eviction", {**eviction, "metadata": {"name": "q"}})
    assert second.status == 429
    assert "needs 1 healthy pods and has 1" in second.body["details"]["causes"][0]["message"]
    # A pod that serves nobody may go.
    unready = {**running, "conditions": [{"type": "Ready", "status": "False"}]}
    _create(api, path, {**pod, "metadata": {**pod["metadata"], "name": "r"}})
    api.patch(f"{path}/r/status", {"status": unready})
    gone = api.post(f"{path}/r/eviction", {**eviction, "metadata": {"name": "r"}})
    assert gone.status == 201


def test_who_creates_what_nothing_acts_on_is_told(api: ApiProcess, namespace: str) -> None:
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    policy = {"metadata": {"name": "deny"}, "spec": {"podSelector": {}}}
    made = api.post(path, policy)
    assert made.status == 201
    assert "keeps this NetworkPolicy, but no traffic is refused by it" in made.headers["Warning"]
    assert "Warning" not in api.post(_configmaps(namespace), _configmap("a")).headers


def test_an_unknown_subresource_answers_as_kubectl_debug_expects(
    api: ApiProcess, namespace: str
) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    _create(api, path, _pod("p"))
    refused = api.patch(f"{path}/p/ephemeralcontainers", {"spec": {}})
    assert (refused.status, refused.reason, refused.body["details"]) == (404, "NotFound", {})


def test_logs_of_a_pod_without_a_node_say_so(api: ApiProcess, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/pods"
    _create(api, path, _pod("p"))
    waiting = api.get(f"{path}/p/log")
    assert (waiting.status, waiting.body["message"]) == (
        400,
        "pod p does not have a host assigned",
    )
    wrong = api.get(f"{path}/p/log", container="b")
    assert wrong.body["message"] == "container b is not valid for pod p"


def test_both_event_groups_show_the_same_events(api: ApiProcess, namespace: str) -> None:
    path = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"
    event = {
        "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reason": "Tested",
        "note": "hello",
        "type": "Normal",
        "action": "Test",
        "reportingController": "t/x",
        "reportingInstance": "i",
        "regarding": {"kind": "Pod", "name": "p", "namespace": namespace},
    }
    assert _create(api, path, event)["note"] == "hello"
    core = api.get(f"/api/v1/namespaces/{namespace}/events/e").body
    assert (core["apiVersion"], core["message"]) == ("v1", "hello")
    selected = api.get(path, fieldSelector="regarding.name=p").body["items"]
    assert selected[0]["apiVersion"] == "events.k8s.io/v1"


# -- errors, discovery, durability ----------------------------------------------------------------


def test_errors_are_statuses(api: ApiProcess, namespace: str) -> None:
    path = _configmaps(namespace)
    for answer, code, reason in (
        (api.get(f"{path}/none"), 404, "NotFound"),
        (api.get("/api/v1/nothing"), 404, "NotFound"),
        (api.get("/nothing"), 404, "NotFound"),
        (api.put(path, _configmap("a")), 405, "MethodNotAllowed"),
        (api.post(path, b"{"), 400, "BadRequest"),
        (api.post(path, b"x", content_type="text/plain"), 415, "UnsupportedMediaType"),
        (api.patch(f"{path}/none", {}, kind="json"), 415, "UnsupportedMediaType"),
        (api.post(path, _configmap("a", x="y" * (4 << 20))), 413, "RequestEntityTooLarge"),
        (api.post(path, {**_configmap("a"), "kind": "Secret"}), 400, "BadRequest"),
        (api.post(path, _configmap("A_b")), 422, "Invalid"),
        (api.get("/api/v1/pods", context=api.anonymous), 403, "Forbidden"),
    ):
        assert (answer.status, answer.reason) == (code, reason), answer.body
        assert (answer.body["kind"], answer.body["code"]) == ("Status", code)
    bearer = {"Authorization": "Bearer nonsense"}
    wrong = api.get("/api/v1/pods", context=api.anonymous, headers=bearer)
    assert (wrong.status, wrong.reason) == (401, "Unauthorized")


def test_unknown_fields_warn_or_are_refused(api: ApiProcess, namespace: str) -> None:
    obj = {**_configmap("a"), "colour": "red"}
    refused = api.post(_configmaps(namespace), obj, fieldValidation="Strict")
    assert (refused.status, refused.reason) == (400, "BadRequest")
    assert 'unknown field "colour"' in refused.body["message"]
    warned = api.post(_configmaps(namespace), obj)
    assert warned.headers["Warning"] == '299 - "unknown field \\"colour\\""'
    assert "colour" not in warned.body


def test_discovery_in_both_forms(api: ApiProcess) -> None:
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    answer = api.get("/apis", headers={"Accept": accept})
    assert answer.headers["Content-Type"] == accept
    groups = {one["metadata"]["name"]: one for one in answer.body["items"]}
    deployments = next(
        one
        for one in groups["apps"]["versions"][0]["resources"]
        if one["resource"] == "deployments"
    )
    assert [s["subresource"] for s in deployments["subresources"]] == ["scale", "status"]
    assert [g["name"] for g in api.get("/apis").body["groups"]] == list(groups)
    core = api.get("/api/v1").body["resources"]
    assert {"pods", "pods/log", "pods/exec", "services"} <= {one["name"] for one in core}
    assert api.get("/apis/apps").body["preferredVersion"]["version"] == "v1"
    assert api.get("/version").body["gitVersion"].startswith("v1.37.")
    assert "apiserver_request_total" in api.get("/metrics", raw=True).body


def test_state_survives_a_killed_server(tmp_path: Path) -> None:
    server = ApiProcess(tmp_path)
    server.start()
    try:
        path = _configmaps("default")
        created = _create(server, path, _configmap("a", x="1"))
        service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
        first = _create(server, "/api/v1/namespaces/default/services", service)
        server.end(9)
        server.start()
        assert server.get(f"{path}/a").body == created
        service["metadata"] = {"name": "t"}
        second = _create(server, "/api/v1/namespaces/default/services", service)
        assert first["spec"]["clusterIP"] != second["spec"]["clusterIP"]
        assert int(second["metadata"]["resourceVersion"]) > int(
            first["metadata"]["resourceVersion"]
        )
        with server.watch(path, resourceVersion=second["metadata"]["resourceVersion"]) as watch:
            assert server.stop() in (0, -15)
            assert list(watch) == []
    finally:
        server.close()


def test_secrets_take_plain_text(api: ApiProcess, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/secrets"
    body = {"metadata": {"name": "s"}, "stringData": {"k": "v"}}
    created = _create(api, path, body)
    assert created["data"] == {"k": base64.b64encode(b"v").decode()}
    assert created["type"] == "Opaque"


# -- custom resources -----------------------------------------------------------------------------


def _crd(group: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    }
    version = {
        "served": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
    }
    names = {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"things.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": names,
            "versions": [
                {"name": "v1", "storage": True, **version},
                {"name": "v1beta1", "storage": False, **version},
            ],
        },
    }


def test_custom_resources_live_and_go_with_their_definition(
    api: ApiProcess, namespace: str
) -> None:
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    _create(api, crds, _crd("one.test"))
    path = f"/apis/one.test/v1/namespaces/{namespace}/things"
    created = _create(api, path, {"metadata": {"name": "t"}, "spec": {"n": 1}})
    assert (created["apiVersion"], created["metadata"]["generation"]) == ("one.test/v1", 1)
    older = api.get(path.replace("v1", "v1beta1") + "/t").body
    assert older["apiVersion"] == "one.test/v1beta1"
    unconditional = api.put(f"{path}/t", {"metadata": {"name": "t"}, "spec": {"n": 2}})
    assert unconditional.status == 422
    status = api.patch(f"{path}/t/status", {"spec": {"n": 9}, "metadata": {"labels": {"a": "b"}}})
    assert status.body["spec"] == {"n": 1}
    assert "labels" not in status.body["metadata"]
    wrong = api.post(path, {"metadata": {"name": "u"}, "spec": {"n": "x"}})
    assert (wrong.status, wrong.reason) == (422, "Invalid")
    with api.watch(path, resourceVersion=created["metadata"]["resourceVersion"]) as watch:
        api.delete(f"{crds}/things.one.test")
        assert "DELETED" in [kind for kind, _ in watch]
    assert api.get(path).status == 404
    assert api.get(f"{crds}/things.one.test").status == 404
