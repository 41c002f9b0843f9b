"""Every field of every kind, by its path: the vocabulary of ``docs/compatibility.md`` and of the tests' ``covers`` marks.

In: the shapes that decoding and the CRDs are made from. Out: ``ApiField`` values in the order of the API. A path starts with the
kind, then says the wire names below ``spec``, without indices and map keys: ``VirtualService.http.match.headers.exact``. The mesh
configuration has no ``spec``: ``MeshConfig.defaultConfig.concurrency``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from meltemi.config.kinds import INSTALL, KINDS
from meltemi.config.shapes import Choice, ListOf, MapOf, Record, Shape, record
from meltemi.model.fields import Spec
from meltemi.model.mesh import MeshConfig, MeshNetworks

# Whatever a person writes for the mesh; the operator's own resource is the installer's (it has charts instead of a schema).
API: Mapping[str, type[Spec]] = MappingProxyType(
    {kind: info.spec for kind, info in KINDS.items() if info.group != INSTALL}
    | {"MeshConfig": MeshConfig, "MeshNetworks": MeshNetworks}
)
# A struct with more fields than this is described where a kind first uses it; its other places refer to that.
_SMALL = 8


@dataclass(frozen=True, slots=True)
class ApiField:
    """One field that holds a value; ``same_as`` is set on a whole struct that is described at that path.

    ``values`` are those of an enumeration.
    """

    path: str
    values: tuple[str, ...] = ()
    same_as: str = ""


@cache
def fields_of(kind: str) -> tuple[ApiField, ...]:
    """The fields of one kind."""
    return tuple(_below(record(API[kind]), kind, {}))


def _below(shape: Record, path: str, seen: dict[Record, str]) -> Iterator[ApiField]:
    for name, field in shape.fields.items():
        where = f"{path}.{name}"
        inner = _inner(field.shape)
        if not isinstance(inner, Record) or not inner.fields:
            yield ApiField(where, inner.values if isinstance(inner, Choice) else ())
        elif inner in seen and size(inner) > _SMALL:
            yield ApiField(where, same_as=seen[inner])
        else:
            seen.setdefault(inner, where)
            yield from _below(inner, where, seen)


def _inner(shape: Shape) -> Shape:
    """What a list or a map holds."""
    while isinstance(shape, ListOf | MapOf):
        shape = shape.item if isinstance(shape, ListOf) else shape.value
    return shape


@cache
def size(shape: Record) -> int:
    """How many values a struct can hold, with those of its parts."""
    inner = [_inner(field.shape) for field in shape.fields.values()]
    return sum(size(part) if isinstance(part, Record) and part.fields else 1 for part in inner)


def places(path: str) -> tuple[str, ...]:
    """A path, and where else its kind has the same field because it uses a struct again."""
    found = [path]
    for place in found:  # grows: a struct that is used again may hold another one
        for other in fields_of(path.partition(".")[0]):
            if other.same_as and place.startswith(other.same_as + "."):
                again = other.path + place.removeprefix(other.same_as)
                if again not in found:
                    found.append(again)
    return tuple(found)


def names_part(path: str) -> bool:
    """Whether a path names a field or a struct of the API; ``path=VALUE`` names a value of an enumeration."""
    path, _, value = path.partition("=")
    shape = _shape_at(path)
    return shape is not None and (
        not value or (isinstance(shape, Choice) and value in shape.values)
    )


def names_field(path: str) -> bool:
    """Whether a path names a field that holds a value, as ``fields_of`` lists them, at whatever place."""
    shape = _shape_at(path.partition("=")[0])
    if not names_part(path) or not isinstance(shape, Record):
        return names_part(path)
    return not shape.fields or any(field.path == path for field in fields_of(path.split(".")[0]))


def _shape_at(path: str) -> Shape | None:
    kind, *names = path.split(".")
    if kind not in API:
        return None
    shape: Shape = record(API[kind])
    for name in names:
        if not isinstance(shape, Record) or name not in shape.fields:
            return None
        shape = _inner(shape.fields[name].shape)
    return shape
