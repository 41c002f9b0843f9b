"""The vocabulary that the specs of all kinds are written in.

``Spec`` is the parent of every spec struct: frozen, hashable, camelCase on the wire, snake_case in Python.
The aliases below say what a plain number or string means; ``config.decode`` reads them to decode and check a
value, ``config.crds`` to write its schema. A spec struct may declare

* ``ONE_OF``: groups of fields (Python names) of which at most one may be set;
* ``REQUIRED``: fields (Python names) that must be present;
* a docstring whose ``name: text`` lines describe fields; they become the schema's descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec


class Spec(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Parent of every typed part of a configuration object."""

    ONE_OF: ClassVar[tuple[tuple[str, ...], ...]] = ()
    REQUIRED: ClassVar[tuple[str, ...]] = ()


def _is(fmt: str) -> msgspec.Meta:
    return msgspec.Meta(extra={"format": fmt})


# Seconds. Written as in Go: "10s", "1m30s", "250ms".
Duration = Annotated[float, _is("duration")]
# A JSON object that is passed on as it is (deeply frozen: FrozenMap and tuples).
FreeForm = Annotated[Mapping[str, Any], _is("free-form")]
# Any JSON value.
AnyValue = Annotated[Any, _is("any")]
# A Kubernetes int-or-string, kept as the string (``"80%"``, ``"3"``).
IntOrString = Annotated[str, _is("int-or-string")]
# A Kubernetes resource quantity, kept as the string; the wire may hold a number.
Quantity = Annotated[str, _is("int-or-string")]
Bytes = Annotated[str, _is("byte")]
UInt32 = Annotated[int, msgspec.Meta(ge=0, le=4294967295)]
Int32 = Annotated[int, msgspec.Meta(ge=-2147483648, le=2147483647)]
# 0 means "not set", as in the API.
PortNumber = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# The text of a regular expression in RE2's language.
Regex = Annotated[str, _is("regex")]
