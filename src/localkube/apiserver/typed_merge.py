"""Typed values: which fields an object sets, how two objects differ, and how they merge.

In: JSON values with the schema's node for them. Out: path sets and new values; inputs are not
changed. These are the operations that server-side apply is made of; the rules are those of
https://kubernetes.io/docs/reference/using-api/server-side-apply/#merge-strategy.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from localkube.apiserver.errors import ApiError, bad_request
from localkube.apiserver.field_paths import Path, PathSet, key_element, value_element
from localkube.apiserver.patch_strategic import merge_orders
from localkube.apiserver.schema_nodes import SchemaNode

JsonObject = dict[str, Any]


def _element(item: Any, node: SchemaNode) -> str:
    """Return the path element of a list item. Raises ValueError if it lacks all its keys."""
    if node.list_kind == "set":
        return value_element(item)
    if not isinstance(item, dict):
        raise ValueError("is not an object")
    keys: JsonObject = {}
    fields = node.items()
    for key in node.list_keys:
        value = item.get(key)
        if value is None:
            value = fields.field(key).default
            if value is None and key == "protocol":
                value = "TCP"  # the built-in schemas do not carry this default of ports
        if value is not None:
            keys[key] = value
    if not keys:
        raise ValueError(f"has none of the keys {', '.join(node.list_keys)}")
    return key_element(keys)


def _elements(items: list[Any], node: SchemaNode) -> Iterator[tuple[str, Any]]:
    """Yield list items with their elements; items that have none are passed over."""
    for item in items:
        try:
            yield _element(item, node), item
        except ValueError:
            continue


def check_list_keys(value: Any, node: SchemaNode, path: str = "") -> None:
    """Check that an applied object can be merged. Raises a 400 ApiError that says where not."""
    if isinstance(value, dict):
        for key, child in value.items():
            check_list_keys(child, node.field(key), f"{path}.{key}")
    elif isinstance(value, list) and node.list_kind != "atomic":
        seen: set[str] = set()
        for index, item in enumerate(value):
            where = f"{path}[{index}]"
            try:
                element = _element(item, node)
            except ValueError as error:
                raise _not_mergeable(where, str(error)) from None
            if element in seen:
                raise _not_mergeable(path, f"duplicate entries for key [{element[2:]}]")
            seen.add(element)
            check_list_keys(item, node.items(), where)


def _not_mergeable(where: str, why: str) -> ApiError:
    return bad_request(f"failed to create typed patch object: {where}: {why}")


def field_set(value: Any, node: SchemaNode) -> PathSet:
    """Return the paths of all fields that the value sets."""
    found: set[Path] = set()
    _collect(value, node, (), found)
    return frozenset(found)


def _collect(value: Any, node: SchemaNode, path: Path, found: set[Path]) -> None:
    if isinstance(value, dict) and not node.atomic_map:
        for key, child in value.items():
            child_path = (*path, f"f:{key}")
            child_node = node.field(key)
            _collect(child, child_node, child_path, found)
            if child in (None, {}) or key not in node.properties:
                found.add(child_path)
    elif isinstance(value, list) and node.list_kind != "atomic":
        for element, item in _elements(value, node):
            child_path = (*path, element)
            _collect(item, node.items(), child_path, found)
            found.add(child_path)
    else:
        found.add(path)


@dataclass(slots=True)
class Difference:
    """The paths in which two values differ."""

    added: set[Path] = field(default_factory=set)
    modified: set[Path] = field(default_factory=set)
    removed: set[Path] = field(default_factory=set)


def compare(old: Any, new: Any, node: SchemaNode) -> Difference:
    """Return how `new` differs from `old`."""
    difference = Difference()
    _compare(old, new, node, (), difference)
    return difference


def _mergeable_map(old: Any, new: Any, node: SchemaNode) -> bool:
    return isinstance(old, dict) and isinstance(new, dict) and not node.atomic_map


def _mergeable_list(old: Any, new: Any, node: SchemaNode) -> bool:
    return isinstance(old, list) and isinstance(new, list) and node.list_kind != "atomic"


def _compare(old: Any, new: Any, node: SchemaNode, path: Path, difference: Difference) -> None:
    if old == new and type(old) is type(new):
        return
    if _mergeable_map(old, new, node):
        for key in old.keys() | new.keys():
            child_path, child = (*path, f"f:{key}"), node.field(key)
            if key not in new:
                _collect_all(old[key], child, child_path, difference.removed)
            elif key not in old:
                _collect_all(new[key], child, child_path, difference.added)
            else:
                _compare(old[key], new[key], child, child_path, difference)
    elif _mergeable_list(old, new, node):
        before, after = dict(_elements(old, node)), dict(_elements(new, node))
        child = node.items()
        for element in before.keys() | after.keys():
            child_path = (*path, element)
            if element not in after:
                _collect_all(before[element], child, child_path, difference.removed)
            elif element not in before:
                _collect_all(after[element], child, child_path, difference.added)
            else:
                _compare(before[element], after[element], child, child_path, difference)
    else:
        difference.modified.add(path)


def _collect_all(value: Any, node: SchemaNode, path: Path, found: set[Path]) -> None:
    """Collect a whole subtree, inner paths included: it came or went as one."""
    found.add(path)
    _collect(value, node, path, found)
    if isinstance(value, dict) and not node.atomic_map:
        for key, child in value.items():
            if isinstance(child, dict | list):
                _collect_all(child, node.field(key), (*path, f"f:{key}"), found)
    elif isinstance(value, list) and node.list_kind != "atomic":
        for element, item in _elements(value, node):
            if isinstance(item, dict | list):
                _collect_all(item, node.items(), (*path, element), found)


def merge(live: Any, applied: Any, node: SchemaNode) -> Any:
    """Return `live` with everything that `applied` sets."""
    if _mergeable_map(live, applied, node):
        result = dict(live)
        for key, value in applied.items():
            result[key] = merge(live[key], value, node.field(key)) if key in live else value
        return result
    if _mergeable_list(live, applied, node):
        return _merge_lists(live, applied, node)
    return applied


def _merge_lists(live: list[Any], applied: list[Any], node: SchemaNode) -> list[Any]:
    mine = dict(_elements(applied, node))
    child = node.items()
    result: list[Any] = []
    seen: set[str] = set()
    original: list[Hashable] = []
    for element, item in _elements(live, node):
        original.append(element)
        if element in mine and element not in seen:
            seen.add(element)
            result.append(merge(item, mine[element], child))
        else:
            result.append(item)
    result.extend(item for element, item in mine.items() if element not in seen)
    return merge_orders(result, list(mine), original, lambda item: _element(item, node))


def remove_paths(value: Any, node: SchemaNode, doomed: PathSet, path: Path = ()) -> Any:
    """Return the value without the fields and list elements at the doomed paths."""
    if not doomed:
        return value
    if isinstance(value, dict) and not node.atomic_map:
        result: JsonObject = {}
        for key, child in value.items():
            child_path = (*path, f"f:{key}")
            if child_path not in doomed:
                result[key] = _descend(child, node.field(key), doomed, child_path)
        return result
    if isinstance(value, list) and node.list_kind != "atomic":
        kept: list[Any] = []
        for item in value:
            try:
                child_path = (*path, _element(item, node))
            except ValueError:
                kept.append(item)
                continue
            if child_path not in doomed:
                kept.append(_descend(item, node.items(), doomed, child_path))
        return kept
    return value


def _descend(value: Any, node: SchemaNode, doomed: PathSet, path: Path) -> Any:
    depth = len(path)
    below = frozenset(one for one in doomed if len(one) > depth and one[:depth] == path)
    return remove_paths(value, node, below, path) if below else value
