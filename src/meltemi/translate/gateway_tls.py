"""TLS of servers: those of gateways, and those of a Sidecar's ingress."""

from __future__ import annotations

from meltemi.ir.tls import WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS, DownstreamTls, SecretRef
from meltemi.model.mesh import MeshConfig, TLSConfig
from meltemi.model.topology import ServerTLSSettings
from meltemi.translate.credentials import (
    file_pair,
    file_roots,
    known_ciphers,
    known_curves,
    san_match,
    secret_pair,
    secret_roots,
)

ALPN_HTTP = ("h2", "http/1.1")
# Bytes of the mesh: what sidecars offer (see upstream_tls) before what others do.
ALPN_MESH_TCP = ("istio-peer-exchange", "istio", *ALPN_HTTP)
# Oldest first. Unless a server says otherwise, older versions than 1.2 are not spoken.
_VERSIONS = ("TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3")
_MUTUAL = ("MUTUAL", "OPTIONAL_MUTUAL")


def credential_names(tls: ServerTLSSettings) -> tuple[str, ...]:
    """Names of the Secrets that hold the server's certificates."""
    return tls.credential_names or ((tls.credential_name,) if tls.credential_name else ())


def roots_credential(tls: ServerTLSSettings) -> str:
    """Name of the Secret that holds the authorities of clients, '' when no Secret does."""
    if tls.mode not in _MUTUAL:
        return ""
    return tls.ca_cert_credential_name or next(iter(credential_names(tls)), "")


def _certificates(tls: ServerTLSSettings) -> tuple[SecretRef, ...]:
    if tls.mode == "ISTIO_MUTUAL":
        return (WORKLOAD_CERTIFICATE,)
    names = credential_names(tls)
    if names:
        return tuple(secret_pair(name) for name in names)
    if tls.tls_certificates:
        return tuple(file_pair(c.server_certificate, c.private_key) for c in tls.tls_certificates)
    return (file_pair(tls.server_certificate, tls.private_key),)


def _roots(tls: ServerTLSSettings) -> SecretRef | None:
    if tls.mode == "ISTIO_MUTUAL":
        return WORKLOAD_ROOTS
    if tls.mode not in _MUTUAL:
        return None
    name = roots_credential(tls)
    if name:
        return secret_roots(name)
    own = (c.ca_certificates for c in tls.tls_certificates if c.ca_certificates)
    path = tls.ca_certificates or next(own, "")
    return file_roots(path, tls.ca_crl) if path else None


def _versions(tls: ServerTLSSettings, mesh: MeshConfig) -> tuple[str, str]:
    """(oldest, newest); '' leaves it to the proxy. A newest one below the usual oldest one is the oldest, too."""
    oldest: str = "" if tls.min_protocol_version == "TLS_AUTO" else tls.min_protocol_version
    newest: str = "" if tls.max_protocol_version == "TLS_AUTO" else tls.max_protocol_version
    if not oldest and mesh.tls_defaults is not None:
        usual = mesh.tls_defaults.min_protocol_version
        oldest = usual if usual in _VERSIONS else ""
    if newest and _VERSIONS.index(newest) < _VERSIONS.index(oldest or "TLSV1_2"):
        oldest = newest
    return oldest, newest


def server_tls(tls: ServerTLSSettings, mesh: MeshConfig, *, http: bool) -> DownstreamTls:
    """What a terminating server shows and asks for. ``mesh`` lends what its ``tlsDefaults`` say."""
    client = "none"
    if tls.mode in ("MUTUAL", "ISTIO_MUTUAL"):
        client = "required"
    elif tls.mode == "OPTIONAL_MUTUAL":
        client = "optional"
    defaults = mesh.tls_defaults or TLSConfig()
    unverified = bool(tls.insecure_skip_verify) and tls.mode in _MUTUAL
    oldest, newest = _versions(tls, mesh)
    alpn: tuple[str, ...] = ALPN_HTTP if http else ()
    if tls.mode == "ISTIO_MUTUAL" and not http:
        alpn = ALPN_MESH_TCP
    return DownstreamTls(
        certificates=_certificates(tls),
        roots=_roots(tls),
        client_certificate=client,
        trust_any=unverified,
        alpn=tls.alpn_protocols or alpn,
        sans=() if unverified else tuple(san_match(name) for name in tls.subject_alt_names),
        min_version=oldest,
        max_version=newest,
        cipher_suites=known_ciphers(tls.cipher_suites or defaults.cipher_suites),
        ecdh_curves=known_curves(tls.ecdh_curves or defaults.ecdh_curves),
        spki=tls.verify_certificate_spki,
        hashes=tls.verify_certificate_hash,
    )
