"""Secrets as Envoy messages."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2

from meltemi.ir.secret import Secret
from meltemi.ir.tls import SecretRef


def _from_files(name: str, files: SecretRef) -> Any:
    """File names; the proxy reads them, and reads them again when their folder's links change (a mounted Secret)."""

    def source(path: str) -> Any:
        return base_pb2.DataSource(filename=path)

    def folder(path: str) -> Any:
        return base_pb2.WatchedDirectory(path=str(PurePosixPath(path).parent))

    if files.ca:
        roots = common_pb2.CertificateValidationContext(
            trusted_ca=source(files.ca), watched_directory=folder(files.ca)
        )
        if files.crl:
            roots.crl.filename = files.crl
        return secret_pb2.Secret(name=name, validation_context=roots)
    pair = common_pb2.TlsCertificate(
        certificate_chain=source(files.certificate),
        private_key=source(files.key),
        watched_directory=folder(files.certificate),
    )
    return secret_pb2.Secret(name=name, tls_certificate=pair)


def build_secret(secret: Secret) -> Any:
    """A certificate pair, or trusted roots when there is no key."""
    if secret.files is not None:
        return _from_files(secret.name, secret.files)
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
