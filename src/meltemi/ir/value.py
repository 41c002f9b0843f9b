"""``@value``: a frozen dataclass that remembers its hash.

IR values are deep and are looked up in caches often, so each computes its hash once. ``origins`` fields are
declared with ``compare=False``: two equal values from two places are one value to every cache.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

from meltemi.model.origin import Origin

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=True, field_specifiers=(dataclasses.field,))
def value(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass with a cached hash. All compared fields must be hashable."""
    made = dataclasses.dataclass(frozen=True, eq=True)(cls)
    compute = made.__hash__

    def cached(self: Any) -> int:
        known = self.__dict__.get("_hash")
        if known is None:
            known = compute(self)
            object.__setattr__(self, "_hash", known)
        return int(known)

    made.__hash__ = cached  # type: ignore[method-assign]
    return made


def origins_field() -> Any:
    """The field that carries a value's origins, outside its equality."""
    return dataclasses.field(default=(), compare=False, repr=False)


Origins = tuple[Origin, ...]
Pairs = tuple[tuple[str, str], ...]
