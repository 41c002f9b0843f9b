"""The names that a proxy's own DNS answers for, where DNS capture is on."""

from __future__ import annotations

from meltemi.ir.value import Origins, origins_field, value


@value
class Name:
    """One host name and its addresses.

    ``host`` is in lower case; a wildcard starts with ``*.``. ``shortname`` and ``namespace`` are those of a
    Kubernetes service (or of a pod below one, ``db-0.db``), from which its short forms follow; else empty.
    """

    host: str
    addresses: tuple[str, ...]
    registry: str = "External"
    shortname: str = ""
    namespace: str = ""
    origins: Origins = origins_field()


@value
class NameTable:
    """All names, in the order of their hosts."""

    names: tuple[Name, ...] = ()
