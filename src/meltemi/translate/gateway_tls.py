"""TLS of gateway servers, and the secrets it needs."""

from __future__ import annotations

from meltemi.ir.tls import (
    WORKLOAD_CERTIFICATE,
    WORKLOAD_ROOTS,
    DownstreamTls,
    SanMatch,
    SecretRef,
    SecretSource,
)
from meltemi.model.topology import ServerTLSSettings
from meltemi.translate.upstream_tls import SECRET_PREFIX

ALPN = ("h2", "http/1.1")
CA_SUFFIX = "-cacert"


def credential_names(tls: ServerTLSSettings) -> tuple[str, ...]:
    """Names of the Secrets that hold the server's certificates."""
    return tls.credential_names or ((tls.credential_name,) if tls.credential_name else ())


def secret_name(credential: str) -> str:
    """The SDS name of a Secret."""
    return credential if "://" in credential else SECRET_PREFIX + credential


def _certificates(tls: ServerTLSSettings) -> tuple[SecretRef, ...]:
    if tls.mode == "ISTIO_MUTUAL":
        return (WORKLOAD_CERTIFICATE,)
    names = credential_names(tls)
    if names:
        return tuple(SecretRef(SecretSource.ADS, secret_name(name)) for name in names)
    if tls.tls_certificates:
        return tuple(
            SecretRef(SecretSource.FILE, certificate=c.server_certificate, key=c.private_key)
            for c in tls.tls_certificates
        )
    return (SecretRef(SecretSource.FILE, certificate=tls.server_certificate, key=tls.private_key),)


def _roots(tls: ServerTLSSettings) -> SecretRef | None:
    if tls.mode == "ISTIO_MUTUAL":
        return WORKLOAD_ROOTS
    if tls.mode not in ("MUTUAL", "OPTIONAL_MUTUAL"):
        return None
    if tls.ca_cert_credential_name:
        return SecretRef(SecretSource.ADS, secret_name(tls.ca_cert_credential_name) + CA_SUFFIX)
    names = credential_names(tls)
    if names:
        return SecretRef(SecretSource.ADS, secret_name(names[0]) + CA_SUFFIX)
    if tls.ca_certificates:
        return SecretRef(SecretSource.FILE, ca=tls.ca_certificates, crl=tls.ca_crl)
    return None


def _version(name: str) -> str:
    return "" if name == "TLS_AUTO" else name


def server_tls(tls: ServerTLSSettings, *, http: bool) -> DownstreamTls:
    """What a terminating server shows and asks for."""
    client = "none"
    if tls.mode in ("MUTUAL", "ISTIO_MUTUAL"):
        client = "required"
    elif tls.mode == "OPTIONAL_MUTUAL":
        client = "optional"
    return DownstreamTls(
        certificates=_certificates(tls),
        roots=_roots(tls),
        client_certificate=client,
        alpn=ALPN if http else (),
        sans=tuple(
            SanMatch("uri" if "://" in name else "dns", "exact", name)
            for name in tls.subject_alt_names
        ),
        min_version=_version(tls.min_protocol_version),
        max_version=_version(tls.max_protocol_version),
        cipher_suites=tls.cipher_suites,
        spki=tls.verify_certificate_spki,
        hashes=tls.verify_certificate_hash,
    )
