"""What TLS settings name: Secrets, files, and the names that a peer's certificate must have.

In: words of Gateways and DestinationRules. Out: references and matches of the IR.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from meltemi.config.validate_topology import CIPHERS, CURVES
from meltemi.ir.tls import SanMatch, SecretRef, SecretSource

SECRET_PREFIX = "kubernetes://"  # noqa: S105  the scheme of SDS names, not a secret
CA_SUFFIX = "-cacert"


def secret_name(credential: str) -> str:
    """The SDS name of a Secret."""
    return credential if "://" in credential else SECRET_PREFIX + credential


def secret_pair(credential: str) -> SecretRef:
    """The certificate and key of a Secret."""
    return SecretRef(SecretSource.ADS, secret_name(credential))


def secret_roots(credential: str) -> SecretRef:
    """The authorities of a Secret, or of its companion ``<name>-cacert``."""
    return SecretRef(SecretSource.ADS, secret_name(credential) + CA_SUFFIX)


def file_pair(certificate: str, key: str) -> SecretRef:
    """A certificate and its key from files of the proxy."""
    return SecretRef(SecretSource.FILE, certificate=certificate, key=key)


def file_roots(ca: str, crl: str) -> SecretRef:
    """Authorities, and what they have revoked, from files of the proxy."""
    return SecretRef(SecretSource.FILE, ca=ca, crl=crl)


def known_ciphers(names: Iterable[str]) -> tuple[str, ...]:
    """Those that exist, each once: one unknown name would make the proxy refuse the whole listener."""
    return tuple(dict.fromkeys(name for name in names if name in CIPHERS))


def known_curves(names: Iterable[str]) -> tuple[str, ...]:
    """Likewise."""
    return tuple(dict.fromkeys(name for name in names if name in CURVES))


def san_match(name: str) -> SanMatch:
    """One accepted name: a URI, an address, a mail address or a DNS name. A ``*`` at its start or end is a wildcard."""
    kind = "dns"
    if "://" in name:
        kind = "uri"
    elif "@" in name:
        kind = "email"
    elif _is_address(name):
        kind = "ip"
    if name.endswith("*") and len(name) > 1:
        return SanMatch(kind, "prefix", name[:-1])
    if name.startswith("*") and len(name) > 1:
        return SanMatch(kind, "suffix", name[1:])
    return SanMatch(kind, "exact", name)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
