"""Make and renew the keys and certificates of one localkube cluster.

In: the directory that keeps them and the time. Out: files (0600, in a 0700 directory), SSL contexts
and kubeconfig documents. Promises: a key that is still good is never replaced, a leaf that is
about to expire is renewed under the same authority, a half-written file is never left behind.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import ssl
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from localkube.kit.program import PROGRAM

CA_VALIDITY = datetime.timedelta(days=3650)
"""kubeadm's lifetime of a cluster authority."""
LEAF_VALIDITY = datetime.timedelta(days=365)
"""kubeadm's lifetime of a leaf certificate."""
RENEW_BEFORE = datetime.timedelta(days=120)
"""A leaf with less than this left is renewed at start: a third of its life."""
BACKDATE = datetime.timedelta(minutes=5)
"""Clocks of one machine agree; five minutes cover a clock that was just stepped."""

SERVICE_IP = "10.96.0.1"
NODE_IP = "172.30.0.1"
SERVER_NAMES: tuple[str, ...] = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "127.0.0.1",
    "::1",
    SERVICE_IP,
    NODE_IP,
)
"""Every name under which a client of this machine reaches the API server."""


class PkiError(Exception):
    """The keys on disk cannot be used; the text says which file and what to do."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Paths of a PEM certificate and of its PEM private key."""

    cert: Path
    key: Path

    def cert_pem(self) -> bytes:
        return self.cert.read_bytes()

    def key_pem(self) -> bytes:
        return self.key.read_bytes()


@dataclass(frozen=True, slots=True)
class Pki:
    """Where each credential of the cluster lies. `node` serves and calls as system:node:<name>."""

    directory: Path
    ca: KeyPair
    server: KeyPair
    admin: KeyPair
    controller: KeyPair
    kubelet_client: KeyPair
    node: KeyPair
    sa_key: Path
    node_name: str

    def ca_pem(self) -> bytes:
        return self.ca.cert.read_bytes()


@dataclass(frozen=True, slots=True)
class _LeafSpec:
    stem: str
    common_name: str
    organizations: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    serves: bool = False
    calls: bool = False


def _leaf_specs(node_name: str, extra_names: Sequence[str]) -> dict[str, _LeafSpec]:
    server_names = tuple(dict.fromkeys((*SERVER_NAMES, *extra_names)))
    masters = ("system:masters",)
    return {
        "server": _LeafSpec("apiserver", "kube-apiserver", (), server_names, serves=True),
        "admin": _LeafSpec("admin", "kubernetes-admin", masters, calls=True),
        "controller": _LeafSpec(
            "controller-manager", "system:kube-controller-manager", masters, calls=True
        ),
        "kubelet_client": _LeafSpec(
            "apiserver-kubelet-client", "kube-apiserver-kubelet-client", masters, calls=True
        ),
        "node": _LeafSpec(
            f"node-{node_name}",
            f"system:node:{node_name}",
            ("system:nodes",),
            (node_name, "localhost", "127.0.0.1", NODE_IP),
            serves=True,
            calls=True,
        ),
    }


def ensure_pki(
    directory: Path,
    *,
    node_name: str = "node0",
    extra_names: Sequence[str] = (),
    now: float | None = None,
) -> Pki:
    """Create whatever is missing in `directory`, renew leaves near their end, and return the paths.

    `now` is in seconds since the epoch (default: the clock). Raises PkiError for a file that is
    unreadable, and OSError when the directory cannot be written.
    """
    at = datetime.datetime.fromtimestamp(time.time() if now is None else now, datetime.UTC)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)
    ca_pair = KeyPair(directory / "ca.crt", directory / "ca.key")
    ca_cert, ca_key, fresh_ca = _ensure_ca(ca_pair, at)
    pairs: dict[str, KeyPair] = {}
    for field, spec in _leaf_specs(node_name, extra_names).items():
        pair = KeyPair(directory / f"{spec.stem}.crt", directory / f"{spec.stem}.key")
        if fresh_ca or not _leaf_usable(pair, spec, ca_cert, at):
            _issue_leaf(pair, spec, ca_cert, ca_key, at)
        pairs[field] = pair
    sa_key = directory / "sa.key"
    if not sa_key.exists():
        _write_private(sa_key, _private_pem(ec.generate_private_key(ec.SECP256R1())))
    _load_key(sa_key)
    return Pki(directory=directory, ca=ca_pair, sa_key=sa_key, node_name=node_name, **pairs)


def _ensure_ca(
    pair: KeyPair, at: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, bool]:
    if pair.cert.exists() and pair.key.exists():
        cert = _load_cert(pair.cert)
        if cert.not_valid_after_utc > at:
            return cert, _load_key(pair.key), False
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localkube-ca")])
    builder = _builder(name, name, key.public_key(), at, CA_VALIDITY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certs=True), critical=True)
    cert = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    ).sign(key, hashes.SHA256())
    _write_private(pair.key, _private_pem(key))
    _write_private(pair.cert, cert.public_bytes(serialization.Encoding.PEM))
    return cert, key, True


def _leaf_usable(
    pair: KeyPair, spec: _LeafSpec, ca: x509.Certificate, at: datetime.datetime
) -> bool:
    if not (pair.cert.exists() and pair.key.exists()):
        return False
    try:
        cert = _load_cert(pair.cert)
        key = _load_key(pair.key)
        cert.verify_directly_issued_by(ca)
    except Exception:  # noqa: BLE001 - whatever is wrong with a leaf, a new one mends it
        return False
    if cert.not_valid_after_utc - at < RENEW_BEFORE or cert.not_valid_before_utc > at:
        return False
    if cert.public_key() != key.public_key():
        return False
    have: set[str] = set()
    for extension in cert.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            have = {str(general.value) for general in extension.value}
    return set(spec.names) <= have


def _issue_leaf(
    pair: KeyPair,
    spec: _LeafSpec,
    ca_cert: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    at: datetime.datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in spec.organizations]
        + [x509.NameAttribute(NameOID.COMMON_NAME, spec.common_name)]
    )
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] if spec.serves else []
    usages += [ExtendedKeyUsageOID.CLIENT_AUTH] if spec.calls else []
    builder = _builder(subject, ca_cert.subject, key.public_key(), at, LEAF_VALIDITY)
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_key_usage(signs_certs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
    )
    if spec.names:
        alternatives = x509.SubjectAlternativeName([_general_name(n) for n in spec.names])
        builder = builder.add_extension(alternatives, critical=False)
    cert = builder.sign(ca_key, hashes.SHA256())
    _write_private(pair.key, _private_pem(key))
    _write_private(pair.cert, cert.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    at: datetime.datetime,
    validity: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATE)
        .not_valid_after(at + validity)
    )


def _key_usage(*, signs_certs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certs,
        crl_sign=signs_certs,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # The traditional encoding ("EC PRIVATE KEY") is what OpenSSL, Go and Python all read.
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _load_cert(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PkiError(
            f"{path}: cannot read the certificate ({error}); repair it, or run `{PROGRAM} reset`"
        ) from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise PkiError(
            f"{path}: cannot read the private key ({error}); repair it, or run `{PROGRAM} reset`"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(
            f"{path}: expected an EC private key; run `{PROGRAM} reset` to make new keys"
        )
    return key


def _write_private(path: Path, content: bytes) -> None:
    """Write atomically with mode 0600: mkstemp creates 0600, the rename is atomic."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_signing_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The service account signing key in `path`; PkiError when it is missing or unreadable."""
    return _load_key(path)


def server_ssl_context(pki: Pki) -> ssl.SSLContext:
    """TLS for the API server: asks for a client certificate, verifies one that is presented.

    A client without a certificate may go on (it has a token, or is anonymous). aiohttp gives the
    verified certificate as `request.transport.get_extra_info("peercert")`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(pki.server.cert, pki.server.key)
    context.load_verify_locations(pki.ca.cert)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.set_alpn_protocols(["http/1.1"])
    return context


def kubelet_client_context(pki: Pki) -> ssl.SSLContext:
    """TLS for the API server's calls to the node agent; the node's name is not checked, its CA is."""
    context = ssl.create_default_context(cafile=str(pki.ca.cert))
    context.check_hostname = False
    context.load_cert_chain(pki.kubelet_client.cert, pki.kubelet_client.key)
    return context


def build_kubeconfig(
    *, server: str, ca_pem: bytes, cert_pem: bytes, key_pem: bytes, cluster: str, user: str
) -> str:
    """A kubeconfig (YAML) with all credentials inline and one context named like the cluster."""

    def encode(content: bytes) -> str:
        return base64.b64encode(content).decode()

    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": cluster,
                "cluster": {"server": server, "certificate-authority-data": encode(ca_pem)},
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": encode(cert_pem),
                    "client-key-data": encode(key_pem),
                },
            }
        ],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
        "preferences": {},
    }
    return yaml.safe_dump(document, sort_keys=False)


def write_kubeconfig(path: Path, pki: Pki, pair: KeyPair, *, server: str, cluster: str) -> None:
    """Write (0600, atomically) a kubeconfig that calls `server` with the certificate of `pair`."""
    text = build_kubeconfig(
        server=server,
        ca_pem=pki.ca_pem(),
        cert_pem=pair.cert_pem(),
        key_pem=pair.key_pem(),
        cluster=cluster,
        user=pair.cert.stem if pair is not pki.admin else cluster,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_private(path, text.encode())
