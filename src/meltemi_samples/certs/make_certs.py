"""Make an authority to plug into a mesh: a root, and below it an intermediate for each cluster.

    python samples/certs/make_certs.py DIR                       # DIR/root-*.pem and DIR/cluster1/
    python samples/certs/make_certs.py DIR --clusters east west  # one root, two intermediates
    python samples/certs/make_certs.py DIR --revoke 1f9c03...    # and DIR/cluster1/ca-crl.pem

An existing root in DIR is used again, so that further clusters share it. A cluster's folder is what the mesh
wants, either before it is installed or for a mesh that runs:

    kubectl create secret generic cacerts -n istio-system --from-file=DIR/cluster1
    meltemi ca rotate --to DIR/cluster1 --watch

``root-key.pem`` belongs neither into the cluster nor into a repository: keep it offline.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT_LIFE, CLUSTER_LIFE, LIST_LIFE = (datetime.timedelta(days=days) for days in (3650, 730, 90))
NOW = datetime.datetime.now(datetime.UTC)  # noqa: TID251 - a small program for people to read
PEM = serialization.Encoding.PEM


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """A file with this mode from its first moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch(mode)
    path.write_bytes(data)


def key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key in PEM, not encrypted."""
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def certify(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    life: datetime.timedelta,
    below: int | None,
) -> x509.Certificate:
    """An authority's certificate; ``below`` limits how many authorities may follow it."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Meltemi"),
            x509.NameAttribute(NameOID.COMMON_NAME, subject),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )


def root(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The root of the folder, made if there is none."""
    if (folder / "root-key.pem").exists():
        key = serialization.load_pem_private_key((folder / "root-key.pem").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate((folder / "root-cert.pem").read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    made = certify("Root", key, None, key, ROOT_LIFE, None)
    write(folder / "root-key.pem", key_bytes(key), 0o600)
    write(folder / "root-cert.pem", made.public_bytes(PEM))
    return made, key


def cluster(
    folder: Path, name: str, above: x509.Certificate, above_key: ec.EllipticCurvePrivateKey
) -> None:
    """The four files of one cluster's authority. An existing one stays."""
    place = folder / name
    if (place / "ca-key.pem").exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    made = certify(f"Intermediate {name}", key, above, above_key, CLUSTER_LIFE, 0)
    certificate = made.public_bytes(PEM)
    write(place / "ca-key.pem", key_bytes(key), 0o600)
    write(place / "ca-cert.pem", certificate)
    write(place / "cert-chain.pem", certificate + above.public_bytes(PEM))
    write(place / "root-cert.pem", above.public_bytes(PEM))


def revoke(place: Path, serials: list[int]) -> None:
    """``ca-crl.pem``: the certificates of this authority that must not be trusted any more."""
    key = serialization.load_pem_private_key((place / "ca-key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate((place / "ca-cert.pem").read_bytes())
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(NOW)
        .next_update(NOW + LIST_LIFE)
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW).build()
        builder = builder.add_revoked_certificate(entry)
    write(place / "ca-crl.pem", builder.sign(key, hashes.SHA256()).public_bytes(PEM))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="make an authority to plug into a mesh")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clusters", nargs="+", default=["cluster1"], metavar="NAME")
    parser.add_argument("--revoke", nargs="+", metavar="SERIAL", help="serial numbers in hex")
    flags = parser.parse_args()
    above, above_key = root(flags.folder)
    for name in flags.clusters:
        cluster(flags.folder, name, above, above_key)
        if flags.revoke is not None:
            revoke(flags.folder / name, [int(serial, 16) for serial in flags.revoke])
        print(
            f"{flags.folder / name}: kubectl create secret generic cacerts --from-file={flags.folder / name}"
        )


if __name__ == "__main__":
    main()
