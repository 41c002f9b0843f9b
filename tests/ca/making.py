"""Authorities with chains, for tests."""

from __future__ import annotations

import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = 1_760_000_000.0
YEAR = 365 * 86400.0


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def when(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


class Made:
    """A certificate with its key; ``by`` None: self-signed."""

    def __init__(
        self,
        name: str,
        by: Made | None = None,
        key: Any = None,
        *,
        start: float = NOW - 60,
        end: float = NOW + YEAR,
        length: int | None = None,
        ca: bool = True,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        signer, issuer = (by.key, by.certificate.subject) if by else (self.key, name_of(name))
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(name_of(name))
            .issuer_name(issuer)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(when(start))
            .not_valid_after(when(end))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=length), critical=True)
            .sign(signer, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def crl(self, *serials: int, now: float = NOW) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(when(now - 60))
            .next_update(when(now + 86400))
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(entry.revocation_date(when(now - 60)).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def files(signing: Made, *above: Made, root: Made, key: bytes = b"") -> dict[str, bytes]:
    """The bundle as people plug it in."""
    return {
        "ca-cert.pem": signing.pem,
        "ca-key.pem": key or signing.key_pem,
        "cert-chain.pem": b"".join(m.pem for m in (signing, *above)),
        "root-cert.pem": root.pem,
    }
