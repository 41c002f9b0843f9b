"""Sets of field paths, and their FieldsV1 form in metadata.managedFields.

A path is a tuple of elements as FieldsV1 writes them: `f:name` a field, `k:{...}` an element of a
list by its keys, `v:...` an element of a set by its value. A set of paths is a frozenset of tuples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Path = tuple[str, ...]
PathSet = frozenset[Path]
JsonObject = dict[str, Any]


def encode_fields(paths: Iterable[Path]) -> JsonObject:
    """Return the FieldsV1 tree of a set of paths; "." marks an inner path that is a member."""
    root: JsonObject = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return _drop_leaf_marks(root)


def _drop_leaf_marks(node: JsonObject) -> JsonObject:
    if set(node) == {"."}:
        return {}
    return {key: child if key == "." else _drop_leaf_marks(child) for key, child in node.items()}


def decode_fields(fields: JsonObject) -> PathSet:
    """Return the set of paths that a FieldsV1 tree describes; malformed parts are ignored."""
    found: set[Path] = set()
    _decode_into(fields, (), found)
    return frozenset(found)


def _decode_into(node: JsonObject, prefix: Path, found: set[Path]) -> None:
    for key, child in node.items():
        if key == ".":
            found.add(prefix)
        elif isinstance(child, dict):
            path = (*prefix, key)
            if child:
                _decode_into(child, path, found)
            else:
                found.add(path)


def key_element(keys: JsonObject) -> str:
    """Return the element of a list's item with these key values."""
    return "k:" + json.dumps(keys, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def value_element(value: Any) -> str:
    """Return the element of a set's item."""
    return "v:" + json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def with_parents(paths: PathSet) -> PathSet:
    """Add every named field above a member: `f:a, f:b` adds `f:a`."""
    found = set(paths)
    for path in paths:
        for end in range(1, len(path)):
            if path[end - 1].startswith("f:"):
                found.add(path[:end])
    return frozenset(found)


def under(paths: Iterable[Path], prefixes: PathSet) -> PathSet:
    """Return the paths that equal or lie below one of the prefixes."""
    return frozenset(
        path for path in paths if any(path[:end] in prefixes for end in range(1, len(path) + 1))
    )


def render_path(path: Path) -> str:
    """Return a path as people read it: `.spec.containers[name="web"].image`."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            keys = json.loads(rest)
            text += (
                "["
                + ",".join(
                    f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()
                )
                + "]"
            )
        else:
            text += f"[={rest}]"
    return text
