"""Who owns which field: metadata.managedFields, and server-side apply on top of it.

In: the live object, what a manager applies or writes, and the schema's node. Out: the new object
with its managedFields, or a 409 that names the conflicting managers and fields. Follows
https://kubernetes.io/docs/reference/using-api/server-side-apply/; neither input is changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from localkube.apiserver.errors import ApiError, FieldError, apply_conflict
from localkube.apiserver.field_paths import (
    Path,
    PathSet,
    decode_fields,
    encode_fields,
    render_path,
    under,
    with_parents,
)
from localkube.apiserver.schema_nodes import SchemaNode
from localkube.apiserver.typed_merge import (
    Difference,
    check_list_keys,
    compare,
    field_set,
    merge,
    remove_paths,
)

JsonObject = dict[str, Any]

# Fields that nobody owns: identity, and what the server itself sets.
_UNOWNED: frozenset[Path] = frozenset(
    [
        ("f:apiVersion",),
        ("f:kind",),
        ("f:metadata",),
        *(
            ("f:metadata", f"f:{name}")
            for name in (
                "name",
                "namespace",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "selfLink",
                "uid",
                "generation",
                "managedFields",
                "resourceVersion",
            )
        ),
    ]
)
# Older Update entries are folded into one above this number, as kube-apiserver does.
_MAX_UPDATE_ENTRIES = 10
_FOLDED = "ancient-changes"


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: the field manager, the version it writes in, through which subresource."""

    manager: str
    api_version: str
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    writer: Writer
    operation: str  # Apply or Update
    time: str
    paths: PathSet

    @property
    def identity(self) -> tuple[str, str, str, str]:
        # An applier keeps one entry across versions; an updater has one for each.
        version = "" if self.operation == "Apply" else self.writer.api_version
        return (self.writer.manager, self.operation, version, self.writer.subresource)


def _decode(obj: JsonObject) -> list[_Entry]:
    entries: list[_Entry] = []
    for raw in obj.get("metadata", {}).get("managedFields") or ():
        if not isinstance(raw, dict):
            continue
        fields = raw.get("fieldsV1")
        entries.append(
            _Entry(
                Writer(
                    raw.get("manager", ""), raw.get("apiVersion", ""), raw.get("subresource", "")
                ),
                raw.get("operation", "Update"),
                raw.get("time", ""),
                decode_fields(fields) if isinstance(fields, dict) else frozenset(),
            )
        )
    return entries


def _encode(entries: Iterable[_Entry]) -> list[JsonObject]:
    encoded: list[JsonObject] = []
    for entry in sorted(entries, key=lambda one: (one.operation, one.time, one.identity)):
        if not entry.paths:
            continue
        raw: JsonObject = {
            "manager": entry.writer.manager,
            "operation": entry.operation,
            "apiVersion": entry.writer.api_version,
            "time": entry.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": encode_fields(entry.paths),
        }
        if entry.writer.subresource:
            raw["subresource"] = entry.writer.subresource
        encoded.append(raw)
    return encoded


def _with_entries(obj: JsonObject, entries: Iterable[_Entry]) -> JsonObject:
    metadata = dict(obj.get("metadata", {}))
    encoded = _encode(entries)
    if encoded:
        metadata["managedFields"] = encoded
    else:
        metadata.pop("managedFields", None)
    return {**obj, "metadata": metadata}


def _bare(obj: JsonObject) -> JsonObject:
    metadata = {k: v for k, v in obj.get("metadata", {}).items() if k != "managedFields"}
    return {**obj, "metadata": metadata}


def record_update(
    old: JsonObject | None, new: JsonObject, node: SchemaNode, writer: Writer, now: str
) -> JsonObject:
    """Return `new` with its managedFields, updated by what this writer changed against `old`.

    The managedFields that the client sends count (kubectl migrates them by a patch); without any,
    those of `old` do. A client that sends `[{}]` resets them, as documented.
    """
    sent = new.get("metadata", {}).get("managedFields")
    entries = _decode(new) if sent else _decode(old or {})
    if sent == [{}]:
        entries = []
    difference = compare(_bare(old) if old else {}, _bare(new), node)
    changed = frozenset(difference.added | difference.modified) - _UNOWNED
    lost = _paths_lost(difference)
    if not changed and not lost and old is not None:
        return _with_entries(new, entries)
    mine = _Entry(writer, "Update", now, frozenset())
    kept: list[_Entry] = []
    for entry in entries:
        paths = entry.paths - lost
        if entry.identity == mine.identity:
            mine = replace(mine, paths=paths, time=entry.time)
        else:
            kept.append(replace(entry, paths=paths - changed))
    if changed:
        mine = replace(mine, paths=mine.paths | changed, time=now)
    return _with_entries(new, _fold_old([*kept, mine]))


def _paths_lost(difference: Difference) -> PathSet:
    return frozenset(difference.removed)


def _fold_old(entries: list[_Entry]) -> list[_Entry]:
    updates = [entry for entry in entries if entry.operation == "Update" and entry.paths]
    surplus = len(updates) - _MAX_UPDATE_ENTRIES
    if surplus <= 0:
        return entries
    oldest = sorted(updates, key=lambda entry: entry.time)[: surplus + 1]
    folded = _Entry(
        Writer(_FOLDED, oldest[-1].writer.api_version),
        "Update",
        oldest[-1].time,
        frozenset().union(*(entry.paths for entry in oldest)),
    )
    return [folded, *(entry for entry in entries if entry not in oldest)]


def apply(
    live: JsonObject | None,
    applied: JsonObject,
    node: SchemaNode,
    writer: Writer,
    now: str,
    *,
    force: bool,
) -> JsonObject:
    """Return the object after a server-side apply.

    `live` is None when the apply creates the object. Raises ApiError 409 when other managers own
    fields that would change and `force` is off, 400 when the applied object cannot be merged.
    """
    applied = drop_nulls(applied)
    check_list_keys(applied, node)
    before = live if live is not None else {}
    entries = _decode(before)
    bare = _bare(before)
    merged = merge(bare, applied, node)
    mine_now = field_set(applied, node) - _UNOWNED
    mine = _Entry(writer, "Apply", now, mine_now)
    previous = next((entry for entry in entries if entry.identity == mine.identity), None)
    others = [entry for entry in entries if entry is not previous]
    if previous is not None:
        doomed = _abandoned(previous.paths, mine_now, others)
        merged = remove_paths(merged, node, doomed)
    difference = compare(bare, merged, node)
    contested = frozenset(difference.added | difference.modified)
    conflicts = {
        entry: clash for entry in others if (clash := _owned(entry.paths, contested, mine_now))
    }
    if conflicts and not force:
        raise _conflict_error(conflicts)
    lost = _paths_lost(difference)
    kept = [
        replace(entry, paths=entry.paths - lost - conflicts.get(entry, frozenset()))
        for entry in others
    ]
    if previous is not None and not (contested or lost) and previous.paths == mine_now:
        mine = replace(mine, time=previous.time)
    return _with_entries(merged, [mine, *kept])


def _owned(paths: PathSet, contested: PathSet, applied: PathSet) -> PathSet:
    return paths & contested & with_parents(applied)


def _abandoned(before: PathSet, after: PathSet, others: Iterable[_Entry]) -> PathSet:
    """Return what the manager applied before, applies no more, and nobody else owns."""
    gone = with_parents(before) - with_parents(after)
    kept_by_others: set[Path] = set()
    for entry in others:
        for path in under(entry.paths, gone):
            kept_by_others.update(path[:end] for end in range(1, len(path) + 1))
    return gone - kept_by_others - _UNOWNED


def _printed(entry: _Entry) -> str:
    writer = entry.writer
    if entry.operation == "Apply":
        text = json.dumps(writer.manager)
        return f'{text} with subresource "{writer.subresource}"' if writer.subresource else text
    text = f"{json.dumps(writer.manager)}"
    if writer.subresource:
        text += f' with subresource "{writer.subresource}"'
    text += f" using {writer.api_version}"
    return f"{text} at {entry.time}" if entry.time else text


def _conflict_error(conflicts: Mapping[_Entry, PathSet]) -> ApiError:
    listed = [
        (_printed(entry), render_path(path))
        for entry, paths in sorted(conflicts.items(), key=lambda pair: pair[0].identity)
        for path in sorted(paths)
    ]
    causes = [
        FieldError(path, "FieldManagerConflict", f"conflict with {manager}")
        for manager, path in listed
    ]
    if len(listed) == 1:
        manager, path = listed[0]
        message = f"Apply failed with 1 conflict: conflict with {manager}: {path}"
    else:
        lines: list[str] = []
        for manager in dict.fromkeys(manager for manager, _ in listed):
            lines.append(f"conflicts with {manager}:")
            lines.extend(f"- {path}" for owner, path in listed if owner == manager)
        message = f"Apply failed with {len(listed)} conflicts: " + "\n".join(lines)
    return apply_conflict(message, causes)


def drop_nulls(value: Any) -> Any:
    """Return the value without members that are null: an applied null is an absent field."""
    if isinstance(value, dict):
        return {key: drop_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [drop_nulls(child) for child in value]
    return value
