"""Secrets that are pushed to gateways. Their content never shows in a representation or a log."""

from __future__ import annotations

from dataclasses import field

from meltemi.ir.tls import SecretRef
from meltemi.ir.value import Origins, origins_field, value


@value
class Secret:
    """A certificate pair (``chain`` and ``key``), or trusted roots (``ca``), in PEM; or the ``files`` that hold them."""

    name: str
    chain: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    ca: bytes = field(default=b"", repr=False)
    crl: bytes = field(default=b"", repr=False)
    files: SecretRef | None = None
    origins: Origins = origins_field()
