"""Secrets that gateways may ask for. The content shows in no representation, log or dump."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)


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


@lru_cache(maxsize=4096)
def pair_problem(data: SecretData) -> str:
    """Why a proxy would refuse the certificate pair; '' when it is good. Says nothing about dates: they are the clients' matter."""
    if not data.chain or not data.key:
        return "it lacks tls.crt or tls.key (or cert and key)"
    try:
        leaf = x509.load_pem_x509_certificates(data.chain)[0]
    except (ValueError, IndexError):
        return "its certificate is not PEM"
    try:
        key = load_pem_private_key(data.key, None)
    except (ValueError, TypeError):
        return "its key is not an unencrypted PEM key"
    shape = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*shape) != leaf.public_key().public_bytes(*shape):
        return "its key does not belong to its certificate"
    return ""


@lru_cache(maxsize=4096)
def roots_problem(data: SecretData) -> str:
    """Why a proxy would refuse the authorities or their revocation list; '' when they are good."""
    if not data.ca:
        return "it lacks ca.crt (or cacert)"
    try:
        x509.load_pem_x509_certificates(data.ca)
    except ValueError:
        return "its authorities are not PEM certificates"
    if data.crl:
        try:
            x509.load_pem_x509_crl(data.crl)
        except ValueError:
            return "its revocation list is not PEM"
    return ""
