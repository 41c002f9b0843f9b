"""TLS contexts: which certificate is shown, which is expected, and how far each is checked."""

from __future__ import annotations

import enum

from meltemi.ir.value import value
from meltemi.model.names import SDS_FILE_CERT, SDS_FILE_ROOT


class SecretSource(enum.Enum):
    """Where Envoy reads a secret from."""

    WORKLOAD = "workload"  # the agent's files, by a path-config SDS source
    ADS = "ads"  # pushed over the ADS stream
    FILE = "file"  # files that the user mounted; their names are pushed, so that one bad file stops nothing else


@value
class SecretRef:
    """A certificate pair or a set of trusted roots.

    ``name`` is the SDS name. For FILE, ``certificate`` and ``key`` (or ``ca`` and ``crl``) are paths; the name follows.
    """

    source: SecretSource
    name: str = ""
    certificate: str = ""
    key: str = ""
    ca: str = ""
    crl: str = ""

    @property
    def sds_name(self) -> str:
        """How Envoy asks for it."""
        if self.source is not SecretSource.FILE:
            return self.name
        if self.ca:
            return f"{SDS_FILE_ROOT}{self.ca}" + (f"~{self.crl}" if self.crl else "")
        return f"{SDS_FILE_CERT}{self.certificate}~{self.key}"


WORKLOAD_CERTIFICATE = SecretRef(SecretSource.WORKLOAD, "default")
WORKLOAD_ROOTS = SecretRef(SecretSource.WORKLOAD, "ROOTCA")


@value
class SanMatch:
    """One accepted subject alternative name: ``kind`` is ``uri``, ``dns``, ``ip`` or ``email``."""

    kind: str
    match: str  # exact | prefix | suffix
    value: str


@value
class UpstreamTls:
    """TLS towards an endpoint. Without ``certificate`` it is one-sided; without ``roots`` nothing is verified."""

    sni: str = ""
    alpn: tuple[str, ...] = ()
    certificate: SecretRef | None = None
    roots: SecretRef | None = None
    sans: tuple[SanMatch, ...] = ()
    system_roots: bool = False
    auto_sni: bool = False  # SNI from the endpoint's host name
    sni_is_name: bool = False  # the certificate must be for the SNI
    min_version: str = ""  # TLSV1_2 or TLSV1_3
    cipher_suites: tuple[str, ...] = ()
    ecdh_curves: tuple[str, ...] = ()


@value
class DownstreamTls:
    """TLS from a client. ``client_certificate`` is ``none``, ``optional`` or ``required``; ``trust_any`` takes unverified ones."""

    certificates: tuple[SecretRef, ...]
    roots: SecretRef | None = None
    client_certificate: str = "none"
    trust_any: bool = False
    alpn: tuple[str, ...] = ()
    sans: tuple[SanMatch, ...] = ()
    min_version: str = ""  # TLSV1_0 ... TLSV1_3
    max_version: str = ""
    cipher_suites: tuple[str, ...] = ()
    ecdh_curves: tuple[str, ...] = ()
    spki: tuple[str, ...] = ()
    hashes: tuple[str, ...] = ()
