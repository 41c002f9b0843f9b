"""A small certificate authority for tests, and a workload's certificate files as the agent lays them out."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from meltemi.agent import secrets

_DAY = datetime.timedelta(days=1)


def _name(text: str) -> x509.GeneralName:
    """A URI, a mail address, an IP address or a DNS name, by its form."""
    if "://" in text:
        return x509.UniformResourceIdentifier(text)
    if "@" in text:
        return x509.RFC822Name(text)
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@dataclass(eq=False)
class Authority:
    """A self-signed root that signs leaves."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def root(self) -> bytes:
        """The root in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str, with_rsa: bool = False, age_days: int = 0) -> tuple[bytes, bytes]:
        """(certificate, key) in PEM for SPIFFE ids, DNS names, IP or mail addresses; of two days one is over."""
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if with_rsa:
            key = rsa.generate_private_key(65537, 2048)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
        sans = [_name(name) for name in names]
        now = datetime.datetime.now(datetime.UTC)  # noqa: TID251  certificates need the real time
        now -= age_days * _DAY
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

    def revoke(self, *certificates: bytes) -> bytes:
        """A list in PEM that revokes these certificates (PEM); possibly none."""
        now = datetime.datetime.now(datetime.UTC)  # noqa: TID251  lists need the real time
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _DAY)
            .next_update(now + _DAY)
        )
        for certificate in certificates:
            entry = x509.RevokedCertificateBuilder().revocation_date(now - _DAY)
            serial = x509.load_pem_x509_certificate(certificate).serial_number
            made = made.add_revoked_certificate(entry.serial_number(serial).build())
        return made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


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


def trust(folder: Path, authority: Authority, crl: str = "") -> None:
    """Replace the roots, and the revocation lists, of a workload."""
    fresh = folder / ".rootca.new"
    fresh.write_text(secrets.render_rootca(authority.root.decode(), crl))
    fresh.replace(folder / secrets.ROOTCA_FILE)


def write_identity(folder: Path, authority: Authority, spiffe: str) -> None:
    """The SDS files of a workload."""
    folder.mkdir(parents=True, exist_ok=True)
    chain, key = authority.issue(spiffe)
    default = secrets.render_default(chain.decode(), secrets.SecretText(key.decode()))
    (folder / secrets.DEFAULT_FILE).write_text(default)
    trust(folder, authority)
