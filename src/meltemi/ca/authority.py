"""Issue workload certificates.

In: a signing request, an identity that somebody else has authenticated, the time and a serial number. Out:
a certificate chain in PEM. Promises that the certificate names that identity and nothing that the request
asks for; the request contributes its public key alone.
Rules: https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md; lifetimes and key kinds are
Istio's (24 h by default, 90 days at most, root for 10 years).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

WORKLOAD_TTL_S = 24 * 3600.0
WORKLOAD_TTL_MAX_S = 90 * 24 * 3600.0
ROOT_TTL_S = 3650 * 24 * 3600.0
CLOCK_SKEW_S = (
    120.0  # certificates are valid from a little before now, for machines whose clocks differ
)
CSR_LENGTH_MAX = 64 * 1024
RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class RequestRefused(Exception):
    """The signing request cannot be honoured; the text says why, for the caller. ``error`` is Istio's word for it in metrics."""

    def __init__(self, text: str, error: str = "CSR_ERROR") -> None:
        super().__init__(text)
        self.error = error


@dataclass(frozen=True, slots=True)
class Authority:
    """A signing key and the chain that vouches for it.

    ``chain`` are the certificates from the signing one up to, not including, the root (empty when the
    root signs itself). ``roots`` is the PEM bundle that verifiers trust; it may hold several roots while
    one replaces another. ``crl`` are revocation lists in PEM, for verifiers.
    """

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...]
    roots: str
    crl: str = ""

    @property
    def root_certificates(self) -> tuple[x509.Certificate, ...]:
        """The certificates of ``roots``."""
        return tuple(x509.load_pem_x509_certificates(self.roots.encode()))

    @property
    def root_expires(self) -> float:
        """When the first of the trusted roots ends, in seconds since the epoch."""
        return min(c.not_valid_after_utc.timestamp() for c in self.root_certificates)

    @property
    def chain_expires(self) -> float:
        """When the first certificate below the root ends, in seconds since the epoch."""
        every = (self.certificate, *self.chain)
        return min(c.not_valid_after_utc.timestamp() for c in every)

    @property
    def expires(self) -> float:
        """When the signing certificate ends, in seconds since the epoch."""
        return self.certificate.not_valid_after_utc.timestamp()


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate. ``chain`` is PEM: the leaf first, the root last."""

    chain: tuple[str, ...]
    serial: int
    expires: float


def issue(
    authority: Authority,
    csr_pem: str,
    identity: str,
    now: float,
    serial: int,
    ttl_s: float = 0.0,
    *,
    default_ttl_s: float = WORKLOAD_TTL_S,
    max_ttl_s: float = WORKLOAD_TTL_MAX_S,
) -> Issued:
    """A workload certificate for the SPIFFE id ``identity``, for client and server use.

    ``ttl_s`` <= 0 takes the default. Never outlives the authority. Raises RequestRefused.
    """
    public_key = _public_key_of(csr_pem)
    if ttl_s > max_ttl_s:
        raise RequestRefused(
            f"validity_duration of {ttl_s:.0f} s is more than this authority's maximum of {max_ttl_s:.0f} s",
            "TTL_ERROR",
        )
    if now >= authority.expires:
        raise RequestRefused(
            "the authority's own certificate has expired; replace it", "CERT_GENERATION_ERROR"
        )
    expires = min(now + (ttl_s if ttl_s > 0 else default_ttl_s), authority.expires)
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    # The subject is empty, so the alternative name must be critical (RFC 5280, 4.2.1.6).
    builder = _leaf(public_key, x509.Name([]), authority, now, expires, serial)
    return _sign(builder.add_extension(san, critical=True), authority, serial, expires)


def issue_server(
    authority: Authority,
    key: PrivateKey,
    names: tuple[str, ...],
    identity: str,
    now: float,
    serial: int,
    ttl_s: float,
) -> Issued:
    """A certificate for the control plane's own servers: DNS names, and its SPIFFE id."""
    expires = min(now + ttl_s, authority.expires)
    san = x509.SubjectAlternativeName(
        [*(x509.DNSName(name) for name in names), x509.UniformResourceIdentifier(identity)]
    )
    builder = _leaf(key.public_key(), x509.Name([]), authority, now, expires, serial)
    return _sign(builder.add_extension(san, critical=True), authority, serial, expires)


def self_signed(
    key: PrivateKey, now: float, serial: int, organization: str, ttl_s: float = ROOT_TTL_S
) -> Authority:
    """A new root that signs workload certificates itself, as Istio's does by default."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
    certificate = _root(key, name, now, serial, ttl_s)
    return Authority(certificate, key, (), _pem(certificate))


def needs_renewal(held: Authority, now: float, percentile: float) -> bool:
    """Whether a root that signs itself is in the last ``percentile`` percent of its life."""
    if held.chain or held.certificate not in held.root_certificates:
        return False
    lifetime_s = held.expires - held.certificate.not_valid_before_utc.timestamp()
    return held.expires - now < lifetime_s * percentile / 100


def renewed(held: Authority, now: float, serial: int, ttl_s: float = ROOT_TTL_S) -> Authority:
    """The same root for another life: with its name and key, so that certificates verify against the old and the new one."""
    certificate = _root(held.key, held.certificate.subject, now, serial, ttl_s)
    others = (root for root in held.root_certificates if root != held.certificate)
    return Authority(
        certificate, held.key, (), "".join(map(_pem, (certificate, *others))), held.crl
    )


def _root(
    key: PrivateKey, name: x509.Name, now: float, serial: int, ttl_s: float
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(_time(now - CLOCK_SKEW_S))
        .not_valid_after(_time(now + ttl_s))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def load(
    cert_pem: str, key_pem: str, chain_pem: str = "", root_pem: str = "", *, crl_pem: str = ""
) -> Authority:
    """An authority from files: self-signed (certificate and key) or plugged in (with chain and root).

    Raises ValueError with a text for people when the files do not belong together.
    """
    try:
        certificates = x509.load_pem_x509_certificates(cert_pem.encode())
        key = serialization.load_pem_private_key(key_pem.encode(), password=None)
        chain = x509.load_pem_x509_certificates(chain_pem.encode()) if chain_pem.strip() else []
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"the authority's certificate or key cannot be read: {error}") from error
    if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
        raise ValueError("the authority's key must be RSA or elliptic curve")
    certificate = certificates[0]
    if _spki(certificate.public_key()) != _spki(key.public_key()):
        raise ValueError("the authority's key does not belong to its certificate")
    try:
        authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        authority = False
    if not authority:
        raise ValueError(
            "the authority's certificate may not sign others (basicConstraints CA is false)"
        )
    roots = (
        root_pem.strip() + "\n" if root_pem.strip() else _pem(chain[-1] if chain else certificate)
    )
    try:
        trusted = {_der(root) for root in x509.load_pem_x509_certificates(roots.encode())}
    except ValueError as error:
        raise ValueError(f"the root certificate cannot be read: {error}") from error
    between = [c for c in (certificate, *certificates[1:], *chain) if _der(c) not in trusted]
    return Authority(certificate, key, tuple(dict.fromkeys(between)), roots, crl_pem)


def key_pem(key: PrivateKey) -> str:
    """The key in PKCS #8 PEM, unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def certificate_pem(authority: Authority) -> str:
    """The signing certificate."""
    return _pem(authority.certificate)


def chain_pem(authority: Authority) -> str:
    """The certificates between the signing one and the root; empty for a self-signed authority."""
    return "".join(_pem(c) for c in authority.chain if c != authority.certificate)


def fingerprint(certificate: x509.Certificate) -> str:
    """A short name of a certificate for people and records: 64 bits of SHA-256, in hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()[:16]


def fingerprints(bundle_pem: str) -> tuple[str, ...]:
    """The short names of a PEM bundle's certificates, in order. Raises ValueError."""
    return tuple(map(fingerprint, x509.load_pem_x509_certificates(bundle_pem.encode())))


def merge_bundles(*bundles: str) -> str:
    """All certificates of PEM bundles, each once, in order. Raises ValueError."""
    certificates = [c for b in bundles for c in x509.load_pem_x509_certificates(b.encode())]
    return "".join(_pem(certificate) for certificate in dict.fromkeys(certificates))


_CRL_END = "-----END X509 CRL-----"


def revocation_lists(text: str) -> tuple[x509.CertificateRevocationList, ...]:
    """The CRLs of a PEM text. Raises ValueError."""
    parts = [part for part in text.split(_CRL_END) if "BEGIN X509 CRL" in part]
    if not parts:
        raise ValueError("it holds no X509 CRL")
    return tuple(x509.load_pem_x509_crl(f"{part}{_CRL_END}\n".encode()) for part in parts)


def covers(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """True when the list is the issuer's own: named and signed by it."""
    key = issuer.public_key()
    if crl.issuer != issuer.subject or not isinstance(
        key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)
    ):
        return False
    return crl.is_signature_valid(key)


def _public_key_of(csr_pem: str) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    if len(csr_pem) > CSR_LENGTH_MAX:
        raise RequestRefused(f"the signing request is longer than {CSR_LENGTH_MAX} bytes")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        proven = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise RequestRefused(f"csr is not a PKCS #10 signing request in PEM: {error}") from error
    if isinstance(key, rsa.RSAPublicKey):
        if not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
            raise RequestRefused(
                f"an RSA key of {key.key_size} bits; use {RSA_BITS_MIN} to {RSA_BITS_MAX}"
            )
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
            raise RequestRefused(f"the curve {key.curve.name} is not accepted; use P-256 or P-384")
    else:
        raise RequestRefused("the request's key must be RSA or elliptic curve P-256/P-384")
    if not proven:
        raise RequestRefused("the request is not signed with its own key")
    return key


def _leaf(
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    subject: x509.Name,
    authority: Authority,
    now: float,
    expires: float,
    serial: int,
) -> x509.CertificateBuilder:
    both_ways = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(_time(now - CLOCK_SKEW_S))
        .not_valid_after(_time(expires))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both_ways), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )


def _sign(
    builder: x509.CertificateBuilder, authority: Authority, serial: int, expires: float
) -> Issued:
    leaf = builder.sign(authority.key, hashes.SHA256())
    above = tuple(_pem(certificate) for certificate in authority.chain)
    return Issued((_pem(leaf), *above, authority.roots), serial, expires)


def _key_usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=not sign_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _spki(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    data: bytes = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data
