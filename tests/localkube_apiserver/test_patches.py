"""JSON, merge and strategic merge patches, against what the documentation says of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from localkube.apiserver.builtin_resources import builtin_table
from localkube.apiserver.errors import ApiError
from localkube.apiserver.patch_json import apply_json_patch, apply_merge_patch
from localkube.apiserver.patch_strategic import apply_strategic_patch
from localkube.apiserver.schema import SchemaIndex
from localkube.apiserver.schema_nodes import SchemaNode, root_node

_SCHEMAS = SchemaIndex()


def _node(group: str, kind: str) -> SchemaNode:
    resource = next(r for r in builtin_table().all() if (r.group, r.kind) == (group, kind))
    return root_node(_SCHEMAS, group, resource.version, kind)


DEPLOYMENT = _node("apps", "Deployment")
POD = _node("", "Pod")


def _pod(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": spec}


def _strategic(document: Any, patch: Any, node: SchemaNode = POD) -> Any:
    before = copy.deepcopy(document)
    result = apply_strategic_patch(document, patch, node)
    assert document == before, "the input was changed"
    return result


def test_json_patch_applies_all_operations() -> None:
    document = {"a": [1, 2], "b": {"c/d": 1}}
    patch = [
        {"op": "test", "path": "/a/0", "value": 1},
        {"op": "add", "path": "/a/-", "value": 3},
        {"op": "remove", "path": "/b/c~1d"},
        {"op": "replace", "path": "/a/0", "value": 9},
        {"op": "copy", "from": "/a", "path": "/e"},
        {"op": "move", "from": "/e", "path": "/f"},
    ]
    assert apply_json_patch(document, patch) == {"a": [9, 2, 3], "b": {}, "f": [9, 2, 3]}
    assert document == {"a": [1, 2], "b": {"c/d": 1}}


@pytest.mark.parametrize(
    ("patch", "code"),
    [
        ({"op": "add"}, 400),
        ([{"op": "jump", "path": "/a"}], 400),
        ([{"op": "test", "path": "/a", "value": 2}], 422),
        ([{"op": "remove", "path": "/nothing"}], 422),
        ([{"op": "add", "path": "/x/y/z", "value": 2}], 422),
        (["text"], 400),
    ],
)
def test_json_patch_that_does_not_fit_is_refused(patch: Any, code: int) -> None:
    with pytest.raises(ApiError) as caught:
        apply_json_patch({"a": 1}, patch)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("document", "patch", "expected"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_follows_rfc_7386(document: Any, patch: Any, expected: Any) -> None:
    assert apply_merge_patch(document, patch) == expected


def test_strategic_merges_lists_by_their_key() -> None:
    document = _pod(containers=[{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])
    patch = _pod(containers=[{"name": "b", "image": "2"}, {"name": "c", "image": "3"}])
    assert _strategic(document, patch)["spec"]["containers"] == [
        {"name": "a", "image": "1"},
        {"name": "b", "image": "2"},
        {"name": "c", "image": "3"},
    ]


def test_strategic_replaces_lists_without_a_strategy() -> None:
    document = _pod(containers=[{"name": "a", "args": ["x", "y"]}])
    patch = _pod(containers=[{"name": "a", "args": ["z"]}])
    assert _strategic(document, patch)["spec"]["containers"] == [{"name": "a", "args": ["z"]}]


def test_strategic_directives_delete_and_replace() -> None:
    document = _pod(containers=[{"name": "a"}, {"name": "b"}], nodeSelector={"x": "1", "y": "2"})
    removed = _strategic(document, _pod(containers=[{"name": "a", "$patch": "delete"}]))
    assert removed["spec"]["containers"] == [{"name": "b"}]
    replaced = _strategic(document, _pod(containers=[{"$patch": "replace"}, {"name": "c"}]))
    assert replaced["spec"]["containers"] == [{"name": "c"}]
    selector = _strategic(document, _pod(nodeSelector={"$patch": "replace", "z": "3"}))
    assert selector["spec"]["nodeSelector"] == {"z": "3"}
    gone = _strategic(document, _pod(nodeSelector={"$patch": "delete"}))
    assert "nodeSelector" not in gone["spec"]
    nulled = _strategic(document, _pod(nodeSelector={"x": None}))
    assert nulled["spec"]["nodeSelector"] == {"y": "2"}


def test_strategic_merges_and_removes_in_sets_of_scalars() -> None:
    document = {"metadata": {"finalizers": ["a/1", "b/2"]}}
    added = _strategic(document, {"metadata": {"finalizers": ["c/3", "a/1"]}})
    assert added["metadata"]["finalizers"] == ["a/1", "b/2", "c/3"]
    removed = _strategic(document, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/1"]}})
    assert removed["metadata"]["finalizers"] == ["b/2"]


def test_strategic_set_element_order_keeps_unlisted_items_near_their_neighbours() -> None:
    document = _pod(containers=[{"name": "a"}, {"name": "injected"}, {"name": "b"}])
    patch = _pod(
        containers=[{"name": "b", "image": "2"}, {"name": "new"}],
        **{"$setElementOrder/containers": [{"name": "new"}, {"name": "a"}, {"name": "b"}]},
    )
    result = _strategic(document, patch)["spec"]["containers"]
    assert [one["name"] for one in result] == ["new", "a", "injected", "b"]
    assert result[-1]["image"] == "2"


def test_strategic_retain_keys_clears_the_other_members_of_a_union() -> None:
    document = {"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}
    patch = {"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}
    assert _strategic(document, patch, DEPLOYMENT) == {"spec": {"strategy": {"type": "Recreate"}}}
    volumes = _pod(volumes=[{"name": "v", "emptyDir": {}}])
    change = _pod(
        volumes=[{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]
    )
    expected = [{"name": "v", "configMap": {"name": "c"}}]
    assert _strategic(volumes, change)["spec"]["volumes"] == expected


def test_strategic_into_nothing_leaves_no_directives() -> None:
    patch = _pod(
        containers=[{"name": "a", "env": [{"name": "x", "$patch": "delete"}]}],
        **{"$setElementOrder/containers": [{"name": "a"}]},
    )
    assert _strategic({"metadata": {}}, patch)["spec"] == {"containers": [{"name": "a", "env": []}]}


@pytest.mark.parametrize(
    "patch", [[1], {"$patch": "burn"}, _pod(containers=[{"image": "x"}]), {"$retainKeys": "x"}]
)
def test_strategic_refuses_what_it_cannot_merge(patch: Any) -> None:
    with pytest.raises(ApiError) as caught:
        _strategic(_pod(containers=[{"name": "a"}]), patch)
    assert caught.value.code == 400
