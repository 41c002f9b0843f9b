"""TLS contexts and the transport sockets that carry them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.core.v3 import base_pb2, config_source_pb2, proxy_protocol_pb2
from envoy.extensions.transport_sockets.proxy_protocol.v3 import upstream_proxy_protocol_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.type.matcher.v3 import string_pb2

from meltemi.envoy.anys import boolean, duration, pack
from meltemi.ir.tls import DownstreamTls, SanMatch, SecretRef, SecretSource, UpstreamTls
from meltemi.ir.value import per_value
from meltemi.model.names import SDS_DEFAULT, SDS_DEFAULT_FILE, SDS_ROOTCA_FILE

SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"
SECRET_WAIT_S = 2.0
_SAN_TYPES = {
    "uri": common_pb2.SubjectAltNameMatcher.URI,
    "dns": common_pb2.SubjectAltNameMatcher.DNS,
    "ip": common_pb2.SubjectAltNameMatcher.IP_ADDRESS,
    "email": common_pb2.SubjectAltNameMatcher.EMAIL,
}


def _sds(ref: SecretRef) -> Any:
    """The SDS configuration of a secret that the agent or the control plane delivers."""
    if ref.source is not SecretSource.WORKLOAD:
        source = config_source_pb2.ConfigSource(
            ads=config_source_pb2.AggregatedConfigSource(),
            resource_api_version=config_source_pb2.V3,
            # A Secret that does not exist must not hold up the other servers of its listener.
            initial_fetch_timeout=duration(SECRET_WAIT_S),
        )
    else:
        path = SDS_DEFAULT_FILE if ref.name == SDS_DEFAULT else SDS_ROOTCA_FILE
        source = config_source_pb2.ConfigSource(
            path_config_source=config_source_pb2.PathConfigSource(path=path),
            resource_api_version=config_source_pb2.V3,
        )
    return secret_pb2.SdsSecretConfig(name=ref.sds_name, sds_config=source)


def _sans(sans: tuple[SanMatch, ...]) -> list[Any]:
    return [
        common_pb2.SubjectAltNameMatcher(
            san_type=_SAN_TYPES[san.kind],
            matcher=string_pb2.StringMatcher(**{san.match: san.value}),
        )
        for san in sans
    ]


def _validation(common: Any, roots: SecretRef | None, **checks: Any) -> None:
    """Say what the peer's certificate must satisfy; ``roots`` None means no verification."""
    if roots is None:
        return
    combined = common.combined_validation_context
    combined.default_validation_context.CopyFrom(common_pb2.CertificateValidationContext(**checks))
    combined.validation_context_sds_secret_config.CopyFrom(_sds(roots))


@per_value
def upstream_socket(tls: UpstreamTls) -> Any:
    """The transport socket towards an endpoint. At most TLS 1.3 (Envoy's own client default is 1.2)."""
    common = tls_pb2.CommonTlsContext(
        alpn_protocols=tls.alpn,
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=_version(tls.min_version)
            or common_pb2.TlsParameters.TLSv1_2,
            tls_maximum_protocol_version=common_pb2.TlsParameters.TLSv1_3,
            cipher_suites=tls.cipher_suites,
            ecdh_curves=tls.ecdh_curves,
        ),
    )
    if tls.certificate is not None:
        common.tls_certificate_sds_secret_configs.append(_sds(tls.certificate))
    sans = _sans(tls.sans)
    if tls.roots is None and tls.system_roots:
        common.validation_context.match_typed_subject_alt_names.extend(sans)
        common.validation_context.trusted_ca.filename = SYSTEM_ROOTS
    else:
        _validation(common, tls.roots, match_typed_subject_alt_names=sans)
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=common, sni=tls.sni, auto_sni_san_validation=tls.sni_is_name
    )
    if tls.auto_sni and not tls.sni:
        context.auto_host_sni = True
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))


@lru_cache(maxsize=1)
def plaintext_socket() -> Any:
    """The transport socket without TLS."""
    return base_pb2.TransportSocket(
        name="envoy.transport_sockets.raw_buffer", typed_config=pack(raw_buffer_pb2.RawBuffer())
    )


def with_proxy_protocol(inner: Any, version: int) -> Any:
    """``inner`` behind a PROXY protocol header."""
    config = proxy_protocol_pb2.ProxyProtocolConfig(
        version=proxy_protocol_pb2.ProxyProtocolConfig.V1
        if version == 1
        else proxy_protocol_pb2.ProxyProtocolConfig.V2
    )
    wrapped = upstream_proxy_protocol_pb2.ProxyProtocolUpstreamTransport(
        config=config, transport_socket=inner
    )
    return base_pb2.TransportSocket(
        name="envoy.transport_sockets.upstream_proxy_protocol", typed_config=pack(wrapped)
    )


def _version(name: str) -> int:
    values = common_pb2.TlsParameters.TlsProtocol
    return int(values.Value(name.replace("TLSV", "TLSv"))) if name else 0


@per_value
def downstream_socket(tls: DownstreamTls) -> Any:
    """The transport socket that terminates a client's TLS."""
    common = tls_pb2.CommonTlsContext(
        alpn_protocols=tls.alpn,
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=_version(tls.min_version)
            or common_pb2.TlsParameters.TLSv1_2,
            tls_maximum_protocol_version=_version(tls.max_version),
            cipher_suites=tls.cipher_suites,
            ecdh_curves=tls.ecdh_curves,
        ),
    )
    common.tls_certificate_sds_secret_configs.extend(_sds(ref) for ref in tls.certificates)
    trust = common_pb2.CertificateValidationContext
    _validation(
        common,
        tls.roots,
        match_typed_subject_alt_names=_sans(tls.sans),
        verify_certificate_spki=tls.spki,
        verify_certificate_hash=tls.hashes,
        trust_chain_verification=trust.ACCEPT_UNTRUSTED
        if tls.trust_any
        else trust.VERIFY_TRUST_CHAIN,
    )
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=common,
        require_client_certificate=boolean(tls.client_certificate == "required"),
    )
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))
