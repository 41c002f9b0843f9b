"""Values that never change: an immutable mapping, so that whole configuration objects can be hashed.

``freeze`` turns what a YAML or JSON parser returns into such values; nothing here fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FrozenMap(dict[K, V]):
    """A dict that cannot be changed and can be hashed (once its values can).

    It equals a plain dict with the same content, and every encoder that takes a dict takes it.
    """

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:  # type: ignore[override]  # dict has none on purpose; ours is sound
        """Hash of the content, independent of order; computed once."""
        try:
            return self._hash
        except AttributeError:
            self._hash = hash(frozenset(self.items()))
            return self._hash

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a FrozenMap cannot be changed; build a new one")

    __setitem__ = _refuse
    __delitem__ = _refuse
    __ior__ = _refuse
    clear = _refuse
    pop = _refuse
    popitem = _refuse
    setdefault = _refuse
    update = _refuse

    def __reduce__(self) -> tuple[type[FrozenMap[K, V]], tuple[dict[K, V]]]:
        """Pickle and copy as a plain dict: the default would call ``__setitem__``."""
        return (FrozenMap, (dict(self),))


EMPTY_MAP: Mapping[Any, Any] = FrozenMap()


def frozen_map(items: Mapping[K, V] | Iterable[tuple[K, V]]) -> Mapping[K, V]:
    """The same content, immutable and hashable."""
    return items if isinstance(items, FrozenMap) else FrozenMap(items)


def freeze(value: Any) -> Any:
    """Parsed YAML or JSON, deeply immutable: dicts become FrozenMaps, lists tuples."""
    if isinstance(value, Mapping):
        return FrozenMap((key, freeze(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def thaw(value: Any) -> Any:
    """The reverse of ``freeze``: plain dicts and lists, for encoders and patches."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [thaw(item) for item in value]
    return value
