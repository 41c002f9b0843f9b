"""A typed value as the JSON that it is decoded from. In: a spec. Out: plain data without what equals the defaults; durations as text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from meltemi.config.durations import format_duration
from meltemi.config.shapes import ListOf, MapOf, Record, Scalar, Shape, record
from meltemi.model.fields import Spec
from meltemi.model.frozen import thaw


@cache
def _unset(cls: type[Spec]) -> Spec:
    return cls()


def as_json(spec: Spec) -> dict[str, Any]:
    """The fields that were set, under their wire names."""
    unset = _unset(type(spec))
    return {
        wire: _json(field.shape, value)
        for wire, field in record(type(spec)).fields.items()
        if (value := getattr(spec, field.name)) != getattr(unset, field.name)
    }


def _json(shape: Shape, value: Any) -> Any:
    if isinstance(shape, Record):
        return as_json(value)
    if isinstance(shape, ListOf):
        return [_json(shape.item, item) for item in value]
    if isinstance(shape, MapOf) and isinstance(value, Mapping):
        return {str(key): _json(shape.value, item) for key, item in value.items()}
    if isinstance(shape, Scalar) and shape.format == "duration":
        return format_duration(value)
    return thaw(value)
