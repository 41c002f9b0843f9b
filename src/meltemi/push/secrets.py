"""Secrets that gateways may ask for. The content shows in no representation, log or dump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SecretData:
    """PEM bytes of one Secret: a pair (``chain``, ``key``), roots (``ca``), a revocation list (``crl``)."""

    chain: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    ca: bytes = field(default=b"", repr=False)
    crl: bytes = field(default=b"", repr=False)

    def __repr__(self) -> str:
        """Say which parts there are, never what they hold."""
        parts = [name for name in ("chain", "key", "ca", "crl") if getattr(self, name)]
        return f"SecretData({', '.join(parts)}: [redacted])"


def secret_from_data(data: Mapping[str, bytes]) -> SecretData:
    """A Kubernetes Secret's (decoded) data. Istio's generic keys are understood beside ``kubernetes.io/tls``."""
    return SecretData(
        chain=data.get("tls.crt") or data.get("cert") or b"",
        key=data.get("tls.key") or data.get("key") or b"",
        ca=data.get("ca.crt") or data.get("cacert") or b"",
        crl=data.get("ca.crl") or data.get("crl") or b"",
    )
