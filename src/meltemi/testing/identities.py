"""Certificates of one test session: the mesh's authority, and one for servers outside the mesh.

In: SPIFFE ids and DNS names. Out: xDS secrets, PEM texts and server contexts. Keys are elliptic (fast) and stay in
memory; everything ends with the session.
"""

from __future__ import annotations

import os
import secrets
import ssl
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from meltemi.ca.authority import Authority, issue_server, key_pem, self_signed
from meltemi.ca.extra_roots import with_extra_roots
from meltemi.ca.secrets import ROOT_KEY
from meltemi.model.mesh import MeshConfig
from meltemi.model.names import SDS_DEFAULT, SDS_ROOTCA
from meltemi.model.resource import Resource, resource_of

_DAY_S = 86_400.0
_SERIAL_BITS = 120


class Identities:
    """Two authorities and what they have signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.mesh = _authority("meltemi.testing mesh")
        self.outside = _authority("meltemi.testing outside")
        self._workloads: dict[tuple[str, str], dict[str, Resource]] = {}
        self._contexts: dict[tuple[str, tuple[str, ...]], ssl.SSLContext] = {}

    def workload(
        self, spiffe: str, mesh: MeshConfig, extra: tuple[str, ...] = ()
    ) -> dict[str, Resource]:
        """The secrets ``default`` and ``ROOTCA`` of a proxy with this SPIFFE id; ``extra``: roots that its own settings add."""
        trusted = with_extra_roots({ROOT_KEY: self.mesh.roots}, mesh, extra) or {}
        known = self._workloads.get((spiffe, trusted[ROOT_KEY]))
        if known is None:
            key = ec.generate_private_key(ec.SECP256R1())
            own = secret_pb2.Secret(name=SDS_DEFAULT)
            chain = "".join(_issue(self.mesh, key, (), spiffe))
            own.tls_certificate.certificate_chain.inline_string = chain
            own.tls_certificate.private_key.inline_string = key_pem(key)
            roots = secret_pb2.Secret(name=SDS_ROOTCA)
            roots.validation_context.trusted_ca.inline_string = trusted[ROOT_KEY]
            known = {
                secret.name: resource_of(secret.name, secret.SerializeToString())
                for secret in (own, roots)
            }
            self._workloads[spiffe, trusted[ROOT_KEY]] = known
        return known

    def pair(self, *names: str) -> tuple[str, str, str]:
        """(certificate chain, key, root) in PEM of the authority outside the mesh, for DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        chain = _issue(self.outside, key, names, "spiffe://outside/ns/outside/sa/outside")
        return "".join(chain), key_pem(key), self.outside.roots

    def server_context(self, name: str, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """How a stand-in outside the mesh serves TLS for a host name."""
        known = self._contexts.get((name, alpn))
        if known is None:
            chain, key, _ = self.pair(name)
            # The ssl module reads certificates from files only.
            place = self._folder / f"outside-{secrets.token_hex(8)}.pem"
            self._write(place, chain + key)
            known = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            known.load_cert_chain(place)
            known.set_alpn_protocols(list(alpn))
            known.load_verify_locations(cadata=self.outside.roots)
            known.verify_mode = ssl.CERT_OPTIONAL
            place.unlink()
            self._contexts[name, alpn] = known
        return known

    @staticmethod
    def _write(path: Path, text: str) -> Path:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        return path


def _authority(organization: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    return self_signed(key, time.time(), secrets.randbits(_SERIAL_BITS), organization, _DAY_S)


def _issue(
    authority: Authority, key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], identity: str
) -> tuple[str, ...]:
    issued = issue_server(
        authority, key, names, identity, time.time(), secrets.randbits(_SERIAL_BITS), _DAY_S
    )
    return tuple(issued.chain)


def names_of_der(der: bytes) -> list[str]:
    """DNS names and URIs of a certificate."""
    certificate = x509.load_der_x509_certificate(der)
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    dns = found.get_values_for_type(x509.DNSName)
    return [*dns, *found.get_values_for_type(x509.UniformResourceIdentifier)]
