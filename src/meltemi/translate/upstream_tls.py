"""TLS towards a destination: the rule's own, or automatic mTLS to endpoints that have a sidecar."""

from __future__ import annotations

from dataclasses import dataclass

from meltemi.ir.cluster import ClusterType
from meltemi.ir.tls import WORKLOAD_CERTIFICATE, WORKLOAD_ROOTS, SecretRef, UpstreamTls
from meltemi.model.destination_rule import ClientTLSSettings
from meltemi.model.mesh import MeshConfig, TLSConfig
from meltemi.model.names import dns_sni, parse_spiffe, spiffe_id
from meltemi.model.service import Port, Service
from meltemi.push.context import PushContext
from meltemi.translate.credentials import (
    file_pair,
    file_roots,
    known_ciphers,
    known_curves,
    san_match,
    secret_pair,
    secret_roots,
)

# What our proxies offer, so that the other side knows that it is a proxy and whether HTTP is inside.
ALPN_TCP = ("istio-peer-exchange", "istio")
ALPN_HTTP = ("istio-http/1.1", "istio")
ALPN_H2 = ("istio-h2", "istio", "h2")


@dataclass(frozen=True, slots=True)
class TlsChoice:
    """``always`` for every endpoint, or ``auto`` for those that say ``tlsMode: istio``; both None is plaintext."""

    always: UpstreamTls | None = None
    auto: UpstreamTls | None = None
    auto_sni: bool = False
    auto_san: bool = False


def mesh_alpn(port: Port, http2: bool) -> tuple[str, ...]:
    """The ALPN of mTLS inside the mesh. Sniffed ports offer ``istio``; routes say what is inside."""
    if http2 and not port.protocol.is_unknown:
        return ALPN_H2
    if port.protocol.is_http:
        return ALPN_HTTP
    return ALPN_TCP


def mesh_tls(
    context: PushContext,
    service: Service,
    port: Port,
    subset: str,
    http2: bool,
    settings: ClientTLSSettings | None = None,
) -> UpstreamTls:
    """mTLS with the workload certificate. The server must show one of the service's identities."""
    names = (settings.subject_alt_names if settings else ()) or service.subject_alt_names
    names = names or _identities(context, service)
    sni = settings.sni if settings is not None and settings.sni else ""
    return UpstreamTls(
        sni=sni or dns_sni(service.hostname, port.number, subset),
        alpn=mesh_alpn(port, http2),
        certificate=WORKLOAD_CERTIFICATE,
        roots=WORKLOAD_ROOTS,
        sans=tuple(san_match(name) for name in names),
    )


def _identities(context: PushContext, service: Service) -> tuple[str, ...]:
    """Those of the service's accounts, in each of the mesh's trust domains: a pod keeps its own until it renews."""
    found: dict[str, None] = {}
    for identity in context.facts_of(service).identities:
        parts = parse_spiffe(identity)
        if parts is None:
            found[identity] = None
            continue
        for domain in context.mesh.trust_domains:
            found[spiffe_id(domain, *parts[1:])] = None
    return tuple(found)


def _certificate(settings: ClientTLSSettings, *, secrets: bool) -> SecretRef | None:
    if settings.mode != "MUTUAL":
        return None
    if settings.credential_name and secrets:
        return secret_pair(settings.credential_name)
    if not settings.client_certificate:
        return None
    return file_pair(settings.client_certificate, settings.private_key)


def _roots(settings: ClientTLSSettings, *, secrets: bool) -> SecretRef | None:
    if settings.insecure_skip_verify:
        return None
    credential = settings.ca_cert_credential_name or settings.credential_name
    if credential and secrets:
        return secret_roots(credential)
    if settings.ca_certificates:
        return file_roots(settings.ca_certificates, settings.ca_crl)
    return None


def _origination(
    mesh: MeshConfig,
    settings: ClientTLSSettings,
    names: tuple[str, ...],
    *,
    http: bool,
    http2: bool,
    secrets: bool,
) -> TlsChoice:
    """TLS that the proxy starts on the application's behalf. Without roots the system's are used.

    Without names, the certificate must be for the host that the request asks for, or for the SNI that is given.
    """
    sans = settings.subject_alt_names or names
    roots = _roots(settings, secrets=secrets)
    verified = not settings.insecure_skip_verify
    defaults = mesh.tls_defaults or TLSConfig()
    oldest = defaults.min_protocol_version
    return TlsChoice(
        always=UpstreamTls(
            sni=settings.sni,
            alpn=("h2",) if http2 else (("http/1.1",) if http else ()),
            certificate=_certificate(settings, secrets=secrets),
            roots=roots,
            sans=tuple(san_match(name) for name in sans),
            system_roots=roots is None and verified,
            auto_sni=not settings.sni and not http,
            sni_is_name=bool(settings.sni) and not sans and verified,
            min_version="" if oldest == "TLS_AUTO" else oldest,
            cipher_suites=known_ciphers(defaults.cipher_suites),
            ecdh_curves=known_curves(defaults.ecdh_curves),
        ),
        auto_sni=not settings.sni and http,
        auto_san=not settings.sni and not sans and verified,
    )


def choose_tls(
    context: PushContext,
    service: Service,
    port: Port,
    subset: str,
    kind: ClusterType,
    settings: ClientTLSSettings | None,
    *,
    http2: bool,
    secrets: bool = False,
) -> TlsChoice:
    """What a cluster does about TLS. ``credentialName`` says nothing where no ``secrets`` are given."""
    if settings is not None:
        if settings.mode == "DISABLE":
            return TlsChoice()
        if settings.mode == "ISTIO_MUTUAL":
            return TlsChoice(always=mesh_tls(context, service, port, subset, http2, settings))
        return _origination(
            context.mesh,
            settings,
            service.subject_alt_names,
            http=port.protocol.is_http,
            http2=http2,
            secrets=secrets,
        )
    if not context.mesh.enable_auto_mtls or service.mesh_external:
        return TlsChoice()
    tls = mesh_tls(context, service, port, subset, http2)
    if kind is ClusterType.ORIGINAL_DST:
        # Endpoint metadata cannot be looked up here, so it is all or nothing.
        facts = context.facts_of(service)
        secure = bool(facts.identities) and not facts.any_plain
        return TlsChoice(always=tls) if secure else TlsChoice()
    return TlsChoice(auto=tls)


def unknown_hosts_tls(mesh: MeshConfig) -> TlsChoice:
    """TLS to hosts that the mesh does not know and that are resolved by the names that requests ask for."""
    settings = mesh.outbound_traffic_policy.tls
    if settings is None or settings.mode == "DISABLE":
        return TlsChoice()
    if settings.mode == "ISTIO_MUTUAL":
        return TlsChoice(
            always=UpstreamTls(
                sni=settings.sni,
                alpn=ALPN_HTTP,
                certificate=WORKLOAD_CERTIFICATE,
                roots=WORKLOAD_ROOTS,
                sans=tuple(san_match(name) for name in settings.subject_alt_names),
            ),
            auto_sni=not settings.sni,
        )
    return _origination(mesh, settings, (), http=True, http2=False, secrets=False)
