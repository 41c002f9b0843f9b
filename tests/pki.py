"""A small certificate authority for tests, and a workload's certificate files as the agent lays them out."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meltemi.agent import secrets

_DAY = datetime.timedelta(days=1)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@dataclass
class Authority:
    """A self-signed root that signs leaves."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def root(self) -> bytes:
        """The root in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str) -> tuple[bytes, bytes]:
        """(certificate, key) in PEM for SPIFFE ids or DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        sans = [
            x509.UniformResourceIdentifier(name) if "://" in name else x509.DNSName(name)
            for name in names
        ]
        now = datetime.datetime.now(datetime.UTC)  # noqa: TID251  certificates need the real time
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + _DAY)
            .add_extension(x509.SubjectAlternativeName(sans), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM), _pem(key)


def make_authority(name: str = "test root") -> Authority:
    """A fresh root."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)  # noqa: TID251  certificates need the real time
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, made)


def write_identity(folder: Path, authority: Authority, spiffe: str) -> None:
    """The SDS files of a workload."""
    folder.mkdir(parents=True, exist_ok=True)
    chain, key = authority.issue(spiffe)
    default = secrets.render_default(chain.decode(), secrets.SecretText(key.decode()))
    (folder / secrets.DEFAULT_FILE).write_text(default)
    (folder / secrets.ROOTCA_FILE).write_text(secrets.render_rootca(authority.root.decode()))
