"""Look at a plugged-in authority before it is used.

In: the files of ``cacerts`` by name, and the time. Out: the ``Authority`` and, if something is wrong, findings
that say what and what to do. With a finding of level Error there is no authority: whoever holds one already
goes on with it. File names are Istio's (``ca-cert.pem``, ``ca-key.pem``, ``cert-chain.pem``,
``root-cert.pem``, ``ca-crl.pem``) and cert-manager's (``tls.crt``, ``tls.key``, ``ca.crt``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa

from meltemi.ca import authority
from meltemi.ca.authority import Authority
from meltemi.model.origin import Finding, Level, Origin

CERT, KEY, CHAIN, ROOT, CRL = (
    "ca-cert.pem",
    "ca-key.pem",
    "cert-chain.pem",
    "root-cert.pem",
    "ca-crl.pem",
)
FILES = (CERT, KEY, CHAIN, ROOT, CRL, "ca.crl", "tls.crt", "tls.key", "ca.crt")
_SOON_S = 30 * 24 * 3600.0
_DEPTH_MAX = 16
# Time for every proxy to hear that a revocation list is no longer in force.
_TAKEN_BACK_S = 900.0


def examine(
    data: Mapping[str, bytes], now: float, source: str = "cacerts"
) -> tuple[Authority | None, tuple[Finding, ...]]:
    """The authority of these files, and what is wrong with them. Total: never raises on any content."""
    origin = Origin(kind="Secret", name=source)

    def text(*names: str) -> str:
        return next((data[n].decode(errors="replace") for n in names if data.get(n)), "")

    cert, key = text(CERT, "tls.crt"), text(KEY, "tls.key")
    missing = [name for name, held in ((CERT, cert), (KEY, key)) if not held.strip()]
    if missing:
        return None, (
            Finding(
                "MLT0301",
                Level.ERROR,
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing or empty",
                origin,
                "the bundle needs ca-cert.pem, ca-key.pem and root-cert.pem, and cert-chain.pem if the "
                "root did not sign ca-cert.pem itself",
            ),
        )
    try:
        held = authority.load(
            cert, key, text(CHAIN), text(ROOT, "ca.crt"), crl_pem=text(CRL, "ca.crl")
        )
    except ValueError as error:
        remedy = (
            "put the certificate, its own key, the chain and the root of one authority together"
        )
        return None, (Finding("MLT0302", Level.ERROR, str(error), origin, remedy),)
    found = (*_certificate(held, now, origin), *_path(held, now, origin), *_crl(held, now, origin))
    usable = not any(finding.level is Level.ERROR for finding in found)
    return (held if usable else None), found


def _certificate(held: Authority, now: float, origin: Origin) -> Iterable[Finding]:
    certificate = held.certificate
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        signs = usage.key_cert_sign
    except (x509.ExtensionNotFound, ValueError):
        signs = True  # without the extension every use is allowed (RFC 5280, 4.2.1.3)
    if not signs:
        yield Finding(
            "MLT0303",
            Level.ERROR,
            "the key usage of ca-cert.pem does not allow signing certificates",
            origin,
            "issue it with keyUsage keyCertSign",
        )
    if isinstance(held.key, rsa.RSAPrivateKey) and held.key.key_size < authority.RSA_BITS_MIN:
        yield Finding(
            "MLT0304",
            Level.ERROR,
            f"the authority's RSA key has {held.key.key_size} bits",
            origin,
            f"use {authority.RSA_BITS_MIN} bits at least, or P-256",
        )


def _path(held: Authority, now: float, origin: Origin) -> Iterable[Finding]:
    """Whether the signing certificate leads to a root in the bundle, with all of it valid now."""
    roots = held.root_certificates
    path, verified = trace(held.certificate, held.chain, roots)
    names = " <- ".join(c.subject.rfc4514_string() or "(no name)" for c in path)
    if not verified:
        yield Finding(
            "MLT0305",
            Level.ERROR,
            f"the chain does not lead to a root in root-cert.pem: {names} was issued by "
            f"{path[-1].issuer.rfc4514_string() or '(no name)'}, which is not there",
            origin,
            "put every certificate between ca-cert.pem and the root into cert-chain.pem, and the root itself "
            "into root-cert.pem",
        )
    for above, certificate in enumerate(path):
        name = certificate.subject.rfc4514_string() or "(no name)"
        if certificate.not_valid_after_utc.timestamp() <= now:
            yield Finding(
                "MLT0306",
                Level.ERROR,
                f"{name} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
                origin,
                "issue it anew",
            )
        elif certificate.not_valid_before_utc.timestamp() > now + authority.CLOCK_SKEW_S:
            yield Finding(
                "MLT0306",
                Level.ERROR,
                f"{name} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
                origin,
                "wait, or set this machine's clock",
            )
        elif certificate.not_valid_after_utc.timestamp() <= now + _SOON_S:
            yield Finding(
                "MLT0307",
                Level.WARNING,
                f"{name} expires on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
                origin,
                "plug in a new one with: meltemi ca rotate --to DIR",
            )
        limit = _path_length(certificate)
        if limit is not None and above > limit:
            yield Finding(
                "MLT0308",
                Level.ERROR,
                f"{name} allows {limit} authorities below it, the bundle has {above}",
                origin,
                "issue it with a larger pathLenConstraint, or sign with a certificate nearer to the root",
            )


def trace(
    certificate: x509.Certificate,
    between: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
) -> tuple[list[x509.Certificate], bool]:
    """The path from a certificate upwards, and whether it ends at one of ``roots``."""
    path = [certificate]
    while len(path) < _DEPTH_MAX:
        if path[-1] in roots:
            return path, True
        for candidate in (*roots, *between):
            if candidate not in path and _issued(path[-1], candidate):
                path.append(candidate)
                break
        else:
            return path, False
    return path, False


def _issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _path_length(certificate: x509.Certificate) -> int | None:
    try:
        return certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        ).value.path_length
    except (x509.ExtensionNotFound, ValueError):
        return None


def is_usable_crl(held: Authority, now: float) -> bool:
    """Whether verifiers may be given the authority's revocation lists: one is the signing authority's own, none is out of date.

    Verifiers refuse everybody once a list is out of date, so it is taken back a little before.
    """
    try:
        lists = authority.revocation_lists(held.crl)
    except ValueError:
        return False
    ends = [entry.next_update_utc.timestamp() for entry in lists if entry.next_update_utc]
    if min(ends, default=now + _TAKEN_BACK_S) < now + _TAKEN_BACK_S:
        return False
    return any(authority.covers(entry, held.certificate) for entry in lists)


def _crl(held: Authority, now: float, origin: Origin) -> Iterable[Finding]:
    if not held.crl:
        return
    try:
        lists = authority.revocation_lists(held.crl)
    except ValueError as error:
        yield Finding(
            "MLT0309",
            Level.WARNING,
            f"ca-crl.pem is not used: {error}",
            origin,
            "write X.509 CRLs in PEM",
        )
        return
    if not any(authority.covers(entry, held.certificate) for entry in lists):
        yield Finding(
            "MLT0309",
            Level.WARNING,
            "ca-crl.pem is not used: none of its lists is signed by ca-cert.pem, so proxies would refuse everybody",
            origin,
            "add a list that ca-cert.pem's key has signed",
        )
    for entry in lists:
        if entry.next_update_utc and entry.next_update_utc.timestamp() <= now + _TAKEN_BACK_S:
            yield Finding(
                "MLT0310",
                Level.WARNING,
                f"a revocation list in ca-crl.pem is in force until {entry.next_update_utc:%Y-%m-%d %H:%M} UTC only, and "
                "is no longer given to proxies: revoked certificates are accepted",
                origin,
                "put the present list there",
            )
