"""The shape of a spec type: what its fields are called on the wire and what they hold.

In: a ``Spec`` class. Out: a tree of ``Shape`` values, computed once per class from type hints, ``REQUIRED``, ``ONE_OF`` and
docstrings. ``decode`` walks it to read an object, ``crds`` to write the schema, ``encode`` to write an object: so
the three cannot disagree.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from meltemi.model.fields import Spec


@dataclass(frozen=True, slots=True)
class Scalar:
    """``type`` is JSON schema's; ``format`` one of duration, byte, regex, int-or-string, free-form, any or ''."""

    type: str
    format: str = ""
    ge: float | None = None
    le: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some strings."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of one shape."""

    item: Shape


@dataclass(frozen=True, slots=True)
class MapOf:
    """A map of one shape; ``integer_keys`` when its keys are numbers (strings on the wire)."""

    value: Shape
    integer_keys: bool = False


@dataclass(frozen=True, slots=True)
class FieldShape:
    """A field: its Python name, its wire name, its shape, a description."""

    name: str
    wire: str
    shape: Shape
    description: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """A struct. ``one_of`` and ``required`` hold wire names."""

    cls: type[Spec]
    fields: Mapping[str, FieldShape] = field(hash=False)
    required: tuple[str, ...] = ()
    one_of: tuple[tuple[str, ...], ...] = ()
    description: str = ""


Shape = Scalar | Choice | ListOf | MapOf | Record

_SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}
_FIELD_DOC = re.compile(r"^\s{4}(\w+): (.+)$", re.MULTILINE)


@cache
def record(cls: type[Spec]) -> Record:
    """The shape of a spec class."""
    hints = get_type_hints(cls, include_extras=True)
    text = cls.__doc__ or ""
    docs = {found[1]: found[2].strip() for found in _FIELD_DOC.finditer(text)}
    fields: dict[str, FieldShape] = {}
    wire_of: dict[str, str] = {}
    for info in msgspec.structs.fields(cls):
        shape = _shape(hints[info.name])
        wire_of[info.name] = info.encode_name
        fields[info.encode_name] = FieldShape(
            info.name, info.encode_name, shape, docs.get(info.name, "")
        )
    return Record(
        cls,
        fields,
        required=tuple(wire_of[name] for name in cls.REQUIRED),
        one_of=tuple(tuple(wire_of[name] for name in group) for group in cls.ONE_OF),
        description=text.strip().split("\n", 1)[0],
    )


def _shape(hint: Any) -> Shape:
    """The shape of one type hint."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = [arg for arg in args if arg is not types.NoneType]
        return _shape(inner)
    if origin is Annotated:
        return _annotated(args[0], args[1:])
    if origin is Literal:
        return Choice(args)
    if origin is tuple:
        return ListOf(_shape(args[0]))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return MapOf(_shape(args[1]), integer_keys=args[0] is int)
    if hint in _SCALARS:
        return Scalar(_SCALARS[hint])
    if isinstance(hint, type) and issubclass(hint, Spec):
        return record(hint)
    raise TypeError(f"no shape for {hint!r}")


def _annotated(inner: Any, marks: tuple[Any, ...]) -> Shape:
    """An annotated scalar: its format and bounds."""
    fmt, low, high = "", None, None
    for mark in marks:
        if isinstance(mark, msgspec.Meta):
            fmt = (mark.extra or {}).get("format", fmt)
            low = mark.ge if mark.ge is not None else low
            high = mark.le if mark.le is not None else high
    if fmt == "duration":
        return Scalar("string", fmt)
    if fmt in ("free-form", "any"):
        return Scalar("object", fmt)
    base = _shape(inner)
    if not isinstance(base, Scalar):
        return base
    return Scalar(base.type, fmt or base.format, low, high)
