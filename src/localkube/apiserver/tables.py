"""Table output: the columns that people know from `kubectl get`.

In: a resource and objects in its served version. Out: a `meta.k8s.io/v1` Table. Built-in kinds
have the columns of kube-apiserver's printers; custom resources those of their CRD. An object that
lacks what a column shows gets an empty or `<unknown>` cell, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from localkube.apiserver import json_path
from localkube.apiserver.resources import Resource
from localkube.kit import clock

JsonObject = dict[str, Any]
Cells = list[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; priority 1 shows only with `-o wide`."""

    name: str
    type: str = "string"
    priority: int = 0
    description: str = ""
    format: str = ""


Printer = tuple[tuple[Column, ...], Callable[[JsonObject, datetime], Cells]]


def columns(names: str, wide: str = "") -> tuple[Column, ...]:
    """Return columns from "Name|Ready|#Count": `#` marks an integer; `wide` ones get priority 1."""
    found: list[Column] = []
    for text, priority in ((names, 0), (wide, 1)):
        for part in filter(None, text.split("|")):
            kind = "integer" if part.startswith("#") else "string"
            label = part.lstrip("#")
            form = "name" if label == "Name" else ""
            found.append(Column(label, kind, priority, format=form))
    return tuple(found)


def build_table(
    resource: Resource,
    objects: Sequence[JsonObject],
    *,
    now: datetime,
    include_object: str = "",
    headers: bool = True,
) -> JsonObject:
    """Return the Table of these objects; `include_object` is None, Metadata (default) or Object."""
    shown, cells = _printer(resource)
    rows: list[JsonObject] = []
    for obj in objects:
        row: JsonObject = {"cells": cells(obj, now)}
        if include_object == "Object":
            row["object"] = obj
        elif include_object != "None":
            row["object"] = {
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": obj["metadata"],
            }
        rows.append(row)
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": [
            {
                "name": column.name,
                "type": column.type,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            }
            for column in (shown if headers else ())
        ],
        "rows": rows,
    }


def _printer(resource: Resource) -> Printer:
    if resource.crd is not None:
        return _custom_printer(resource)
    from localkube.apiserver import table_cluster, table_workloads

    for printers in (table_workloads.PRINTERS, table_cluster.PRINTERS):
        if found := printers.get(resource.storage):
            return found
    return _DEFAULT


def _default_cells(obj: JsonObject, now: datetime) -> Cells:
    return [obj["metadata"].get("name", ""), age(obj, now)]


_DEFAULT: Printer = (columns("Name|Age"), _default_cells)


def _custom_printer(resource: Resource) -> Printer:
    declared = resource.printer_columns
    if not declared:
        return _DEFAULT
    shown = (
        *columns("Name"),
        *(Column(c.name, c.type, c.priority, c.description, c.format) for c in declared),
    )

    def cells(obj: JsonObject, now: datetime) -> Cells:
        row: Cells = [obj["metadata"].get("name", "")]
        for column in declared:
            row.append(_custom_cell(json_path.select(obj, column.json_path), column.type, now))
        return row

    return shown, cells


def _custom_cell(found: list[Any], kind: str, now: datetime) -> Any:
    if not found or found[0] is None:
        return None if kind in ("integer", "number", "boolean") else ""
    if kind == "date":
        return ", ".join(since(str(value), now) for value in found)
    if len(found) == 1 and kind in ("integer", "number", "boolean"):
        return found[0]
    return ",".join(_text(value) for value in found)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    import msgspec

    return msgspec.json.encode(value).decode()


# -- what printers share ------------------------------------------------------------------------


def age(obj: JsonObject, now: datetime) -> str:
    """Return how old an object is."""
    return since(obj["metadata"].get("creationTimestamp"), now)


def since(timestamp: Any, now: datetime) -> str:
    """Return the time since a timestamp as kubectl writes it, `<unknown>` for none."""
    if not isinstance(timestamp, str) or not timestamp:
        return "<unknown>"
    try:
        return human_duration((now - clock.parse_time(timestamp)).total_seconds())
    except (ValueError, TypeError):
        return "<invalid>"


def human_duration(seconds: float) -> str:
    """Return a duration with two digits of precision at most: 45s, 3m10s, 2h5m, 3d4h, 2y30d.

    The steps are those of k8s.io/apimachinery's duration.HumanDuration.
    """
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    whole = max(whole, 0)
    if whole < 120:
        return f"{whole}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 10:
        return f"{minutes}m" + (f"{whole % 60}s" if whole % 60 else "")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h" + (f"{minutes % 60}m" if minutes % 60 else "")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d" + (f"{hours % 24}h" if hours % 24 else "")
    if days < 730:
        return f"{days}d"
    years = days // 365
    if years < 8:
        return f"{years}y" + (f"{days % 365}d" if days % 365 else "")
    return f"{years}y"


def label_text(labels: Any) -> str:
    """Return a map of labels as `a=b,c=d`, `<none>` if it is empty."""
    if not labels:
        return "<none>"
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def selector_text(selector: Any) -> str:
    """Return a LabelSelector as kubectl writes it, `<none>` if it selects all."""
    if not selector:
        return "<none>"
    terms = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for expression in selector.get("matchExpressions") or ():
        key, values = expression.get("key", ""), ",".join(sorted(expression.get("values") or ()))
        operator = expression.get("operator")
        if operator == "Exists":
            terms.append(key)
        elif operator == "DoesNotExist":
            terms.append(f"!{key}")
        else:
            terms.append(f"{key} {str(operator).lower()} ({values})")
    return ",".join(terms) or "<none>"


def dig(value: Any, path: str, default: Any = None) -> Any:
    """Return the value at a dotted path of fields, `default` where it is missing or null."""
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return default
    return value
