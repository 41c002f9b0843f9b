"""``@value``: a frozen dataclass that remembers its hash; ``per_value``: a cache that forgets with the values.

IR values are deep and are looked up in caches often, so each computes its hash once. ``origins`` fields are
declared with ``compare=False``: two equal values from two places are one value to every cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, dataclass_transform
from weakref import WeakKeyDictionary

from meltemi.model.origin import Origin

T = TypeVar("T")
V = TypeVar("V")
R = TypeVar("R")


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


def per_value(build: Callable[[V], R]) -> Callable[[V], R]:
    """``build``, remembering each result for as long as its value, or an equal one asked for later, is alive.

    What proxies have keeps the IR alive that it was made from, so the next snapshot finds there whatever did not
    change, and what changed is forgotten with the snapshot: memory does not grow with the number of changes. A
    result must not refer to its value.
    """
    known: WeakKeyDictionary[V, R] = WeakKeyDictionary()

    @wraps(build)
    def look(value: V) -> R:
        found = known.pop(value, None)
        if found is None:
            found = build(value)
        known[value] = found  # the newest of equal values is the one that lives longest
        return found

    return look


def origins_field() -> Any:
    """The field that carries a value's origins, outside its equality."""
    return dataclasses.field(default=(), compare=False, repr=False)


Origins = tuple[Origin, ...]
Pairs = tuple[tuple[str, str], ...]
