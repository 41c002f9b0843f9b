"""Secrets as Envoy messages."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2

from meltemi.ir.secret import Secret


def build_secret(secret: Secret) -> Any:
    """A certificate pair, or trusted roots when there is no key."""
    if secret.key:
        return secret_pb2.Secret(
            name=secret.name,
            tls_certificate=common_pb2.TlsCertificate(
                certificate_chain=base_pb2.DataSource(inline_bytes=secret.chain),
                private_key=base_pb2.DataSource(inline_bytes=secret.key),
            ),
        )
    context = common_pb2.CertificateValidationContext(
        trusted_ca=base_pb2.DataSource(inline_bytes=secret.ca)
    )
    if secret.crl:
        context.crl.inline_bytes = secret.crl
    return secret_pb2.Secret(name=secret.name, validation_context=context)
