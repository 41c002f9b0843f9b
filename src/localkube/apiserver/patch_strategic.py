"""Strategic merge patch.

In: an object, a decoded patch, and the schema's node for the object. Out: a new object; neither
input is changed. Rules: kubernetes.io/docs/tasks/manage-kubernetes-objects/
update-api-object-kubectl-patch and the strategic-merge-patch page of the API conventions
(`$patch`, `$retainKeys`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any

from localkube.apiserver.errors import bad_request
from localkube.apiserver.schema_nodes import SchemaNode

JsonObject = dict[str, Any]

_PATCH = "$patch"
_RETAIN = "$retainKeys"
_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


def apply_strategic_patch(document: JsonObject, patch: Any, node: SchemaNode) -> JsonObject:
    """Return the document merged with the patch. Raises a 400 ApiError for a malformed patch."""
    if not isinstance(patch, dict):
        raise bad_request('a strategic merge patch is an object, such as {"spec": {...}}')
    return _merge_map(document, patch, node)


def _merge_map(original: JsonObject, patch: JsonObject, node: SchemaNode) -> JsonObject:
    directive = patch.get(_PATCH)
    if directive == "replace":
        return {key: copy.deepcopy(value) for key, value in patch.items() if key != _PATCH}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise bad_request(f'unknown $patch directive "{directive}": use replace, delete or merge')
    result = dict(original)
    retained = patch.get(_RETAIN)
    if retained is not None:
        if not isinstance(retained, list):
            raise bad_request("$retainKeys takes a list of field names")
        result = {key: value for key, value in result.items() if key in retained}
    for key, value in patch.items():
        if key in (_PATCH, _RETAIN) or key.startswith((_ORDER, _DELETE)):
            continue
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            before = result.get(key)
            child = node.field(key)
            if "replace" in child.patch_strategies:
                before = None
            merged = _merge_map(before if isinstance(before, dict) else {}, value, child)
            if value.get(_PATCH) == "delete":
                result.pop(key, None)
            else:
                result[key] = merged
        elif isinstance(value, list):
            before = result.get(key)
            child = node.field(key)
            result[key] = _merge_list(before if isinstance(before, list) else [], value, child)
        else:
            result[key] = value
    _apply_list_directives(original, result, patch, node)
    return result


def _apply_list_directives(
    original: JsonObject, result: JsonObject, patch: JsonObject, node: SchemaNode
) -> None:
    for directive, value in patch.items():
        if directive.startswith(_DELETE):
            name = directive.removeprefix(_DELETE)
            kept = result.get(name)
            if isinstance(kept, list) and isinstance(value, list):
                # What the same patch adds stays.
                added = patch.get(name) or []
                gone = [item for item in value if item not in added]
                result[name] = [item for item in kept if item not in gone]
    for directive, value in patch.items():
        if directive.startswith(_ORDER):
            name = directive.removeprefix(_ORDER)
            items = result.get(name)
            if not isinstance(items, list) or not isinstance(value, list):
                continue
            merge_key = node.field(name).patch_merge_key
            before = original.get(name)
            result[name] = _reorder(
                items, value, before if isinstance(before, list) else [], merge_key
            )


def _merge_list(original: list[Any], patch: list[Any], node: SchemaNode) -> list[Any]:
    if "merge" not in node.patch_strategies:
        return [_without_directives(item) for item in patch]
    if any(isinstance(item, dict) and item.get(_PATCH) == "replace" for item in patch):
        return [
            _without_directives(item)
            for item in patch
            if not (isinstance(item, dict) and set(item) == {_PATCH})
        ]
    merge_key = node.patch_merge_key
    if merge_key is None:
        return [*original, *(item for item in patch if item not in original)]
    result = list(original)
    for item in patch:
        if not isinstance(item, dict) or merge_key not in item:
            raise bad_request(f"map: {item!r} does not contain declared merge key: {merge_key}")
        _merge_element(result, item, merge_key, node.items())
    return result


def _merge_element(result: list[Any], item: JsonObject, merge_key: str, node: SchemaNode) -> None:
    identity = item[merge_key]
    index = next(
        (
            position
            for position, existing in enumerate(result)
            if isinstance(existing, dict) and existing.get(merge_key) == identity
        ),
        None,
    )
    if item.get(_PATCH) == "delete":
        result[:] = [
            existing
            for existing in result
            if not (isinstance(existing, dict) and existing.get(merge_key) == identity)
        ]
    elif index is None:
        result.append(_merge_map({}, item, node))
    else:
        result[index] = _merge_map(result[index], item, node)


def _without_directives(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_directives(child)
            for key, child in value.items()
            if key not in (_PATCH, _RETAIN) and not key.startswith((_ORDER, _DELETE))
        }
    if isinstance(value, list):
        return [_without_directives(child) for child in value]
    return value


def _reorder(
    items: list[Any], order: list[Any], original: list[Any], merge_key: str | None
) -> list[Any]:
    def identity(item: Any) -> Hashable:
        value = item.get(merge_key) if merge_key and isinstance(item, dict) else item
        return repr(value)

    return merge_orders(
        items, [identity(item) for item in order], [identity(item) for item in original], identity
    )


def merge_orders(
    items: list[Any],
    order: list[Hashable],
    original: list[Hashable],
    identity: Callable[[Any], Hashable],
) -> list[Any]:
    """Sort `items` as `order` lists them; items it does not list stay near their old neighbours.

    Both sequences keep their own order; where they meet, the item that came first in `original`
    comes first, and listed items that are new go before the unlisted ones.
    """
    rank = {key: position for position, key in enumerate(order)}
    before = {key: position for position, key in enumerate(original)}
    listed = sorted(
        (item for item in items if identity(item) in rank), key=lambda i: rank[identity(i)]
    )
    others = [item for item in items if identity(item) not in rank]
    result: list[Any] = []
    while listed and others:
        left, right = before.get(identity(listed[0])), before.get(identity(others[0]))
        take_listed = left is None or right is None or left < right
        result.append(listed.pop(0) if take_listed else others.pop(0))
    return [*result, *listed, *others]
