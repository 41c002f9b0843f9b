"""Server-side apply: who owns what, conflicts, and removal, as the documentation describes."""

from __future__ import annotations

from typing import Any

import pytest

from localkube.apiserver.errors import ApiError
from localkube.apiserver.field_paths import decode_fields, encode_fields, render_path
from localkube.apiserver.managed_fields import Writer, apply, record_update
from localkube.apiserver.schema import SchemaIndex
from localkube.apiserver.schema_nodes import root_node

_SCHEMAS = SchemaIndex()
NODE = root_node(_SCHEMAS, "apps", "v1", "Deployment")
FREE = root_node(_SCHEMAS, "example.com", "v1", "Nothing")
NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def _writer(manager: str) -> Writer:
    return Writer(manager, "apps/v1")


def _deployment(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "demo"},
        "spec": spec,
    }


def _template(*containers: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"containers": list(containers)}}


def _apply(live: Any, applied: Any, manager: str, *, force: bool = False, now: str = NOW) -> Any:
    return apply(live, applied, NODE, _writer(manager), now, force=force)


def _owned(obj: dict[str, Any], manager: str) -> set[str]:
    return {
        render_path(path)
        for entry in obj["metadata"]["managedFields"]
        if entry["manager"] == manager
        for path in decode_fields(entry["fieldsV1"])
    }


def _managers(obj: dict[str, Any]) -> list[tuple[str, str]]:
    return [(e["manager"], e["operation"]) for e in obj["metadata"]["managedFields"]]


def test_apply_that_creates_owns_exactly_what_it_sets() -> None:
    image = {"name": "a", "image": "x", "ports": [{"containerPort": 80}]}
    created = _apply(None, _deployment(replicas=2, template=_template(image)), "me")
    container = '.spec.template.spec.containers[name="a"]'
    assert _owned(created, "me") == {
        ".spec.replicas",
        container,
        f"{container}.name",
        f"{container}.image",
        f'{container}.ports[containerPort=80,protocol="TCP"]',
        f'{container}.ports[containerPort=80,protocol="TCP"].containerPort',
    }
    assert created["metadata"]["managedFields"][0]["fieldsType"] == "FieldsV1"


def test_a_field_of_another_manager_is_a_conflict_unless_the_value_agrees() -> None:
    live = _apply(None, _deployment(replicas=2, paused=True), "first")
    with pytest.raises(ApiError) as caught:
        _apply(live, _deployment(replicas=3), "second")
    error = caught.value
    assert (error.code, error.reason) == (409, "Conflict")
    assert error.message == ('Apply failed with 1 conflict: conflict with "first": .spec.replicas')
    assert error.status()["details"]["causes"] == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "first"',
            "field": ".spec.replicas",
        }
    ]
    shared = _apply(live, _deployment(replicas=2), "second")
    assert _owned(shared, "first") == {".spec.replicas", ".spec.paused"}
    assert _owned(shared, "second") == {".spec.replicas"}


def test_conflicts_with_several_fields_are_listed_by_manager() -> None:
    live = record_update(None, _deployment(replicas=1, paused=True), NODE, _writer("edit"), NOW)
    with pytest.raises(ApiError) as caught:
        _apply(live, _deployment(replicas=2, paused=False), "me")
    assert caught.value.message == (
        f'Apply failed with 2 conflicts: conflicts with "edit" using apps/v1 at {NOW}:\n'
        "- .spec.paused\n- .spec.replicas"
    )


def test_force_takes_the_field_over() -> None:
    live = _apply(None, _deployment(replicas=2, paused=True), "first")
    forced = _apply(live, _deployment(replicas=3), "second", force=True)
    assert forced["spec"] == {"replicas": 3, "paused": True}
    assert _owned(forced, "first") == {".spec.paused"}
    assert _owned(forced, "second") == {".spec.replicas"}


def test_what_a_manager_applies_no_more_is_removed_if_nobody_else_owns_it() -> None:
    live = _apply(None, _deployment(replicas=2, paused=True, minReadySeconds=5), "me")
    live = _apply(live, _deployment(paused=True), "other")
    result = _apply(live, _deployment(replicas=2), "me", now=LATER)
    assert result["spec"] == {"replicas": 2, "paused": True}
    assert _owned(result, "me") == {".spec.replicas"}


def test_list_elements_come_and_go_by_their_key() -> None:
    mine = _deployment(template=_template({"name": "a", "image": "1"}, {"name": "b", "image": "1"}))
    live = _apply(None, mine, "me")
    sidecar = _deployment(template=_template({"name": "proxy", "image": "p"}))
    live = _apply(live, sidecar, "injector")
    result = _apply(live, _deployment(template=_template({"name": "b", "image": "2"})), "me")
    containers = result["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["image"] for one in containers} == {"b": "2", "proxy": "p"}


def test_an_element_that_another_manager_adds_to_stays() -> None:
    live = _apply(None, _deployment(template=_template({"name": "a", "image": "1"})), "me")
    theirs = _deployment(template=_template({"name": "a", "workingDir": "/x"}))
    live = _apply(live, theirs, "other")
    result = _apply(live, _deployment(replicas=1), "me")
    assert result["spec"]["template"]["spec"]["containers"] == [{"name": "a", "workingDir": "/x"}]


def test_applying_the_same_again_changes_nothing() -> None:
    live = _apply(None, _deployment(replicas=2), "me")
    live = _apply(live, _deployment(paused=True), "other")
    assert _apply(live, _deployment(replicas=2), "me", now=LATER) == live


def test_defaults_of_the_server_belong_to_nobody_and_do_not_conflict() -> None:
    live = _apply(None, _deployment(replicas=2), "me")
    live["spec"]["revisionHistoryLimit"] = 10
    result = _apply(live, _deployment(revisionHistoryLimit=3), "other")
    assert result["spec"]["revisionHistoryLimit"] == 3


def test_an_update_takes_the_fields_that_it_changes() -> None:
    live = _apply(None, _deployment(replicas=2, paused=True), "me")
    new = {**live, "spec": {"replicas": 5}}
    updated = record_update(live, new, NODE, _writer("kubectl"), LATER)
    assert _owned(updated, "kubectl") == {".spec.replicas"}
    assert ("me", "Apply") not in _managers(updated)
    same = record_update(updated, updated, NODE, _writer("third"), LATER)
    assert same == updated


def test_update_managers_are_bounded() -> None:
    live = record_update(None, _deployment(replicas=0), NODE, _writer("m0"), NOW)
    for number in range(1, 30):
        new = {
            **live,
            "metadata": {
                **live["metadata"],
                "labels": dict(live["metadata"].get("labels", {}), **{f"l{number}": "x"}),
            },
        }
        stamp = f"2026-01-01T00:00:{number:02}Z"
        live = record_update(live, new, NODE, _writer(f"m{number}"), stamp)
    managers = [name for name, _ in _managers(live)]
    assert len(managers) <= 11
    assert "ancient-changes" in managers


def test_nulls_are_absent_and_atomic_values_are_owned_whole() -> None:
    selector = {"matchLabels": {"a": "b"}}
    applied = _deployment(replicas=None, selector=selector)
    created = _apply(None, applied, "me")
    assert created["spec"] == {"selector": selector}
    assert _owned(created, "me") == {".spec.selector"}


def test_lists_without_their_key_are_refused_with_their_place() -> None:
    with pytest.raises(ApiError) as caught:
        _apply(None, _deployment(template=_template({"image": "x"})), "me")
    assert caught.value.code == 400
    assert ".spec.template.spec.containers[0]" in caught.value.message
    twice = _template({"name": "a"}, {"name": "a"})
    with pytest.raises(ApiError, match="duplicate"):
        _apply(None, _deployment(template=twice), "me")


def test_without_a_schema_maps_merge_and_lists_are_atomic() -> None:
    obj = {"apiVersion": "example.com/v1", "kind": "Nothing", "metadata": {"name": "n"}}
    live = apply(None, {**obj, "a": {"b": 1}, "l": [1]}, FREE, _writer("x"), NOW, force=False)
    result = apply(live, {**obj, "a": {"c": 2}}, FREE, _writer("y"), NOW, force=False)
    assert (result["a"], result["l"]) == ({"b": 1, "c": 2}, [1])
    with pytest.raises(ApiError, match="l"):
        apply(live, {**obj, "l": [2]}, FREE, _writer("y"), NOW, force=False)


def test_field_sets_survive_their_encoding() -> None:
    tree = {
        "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
        "f:spec": {'k:{"name":"x"}': {".": {}, "f:image": {}}, 'v:"z"': {}},
    }
    assert encode_fields(decode_fields(tree)) == tree
