"""Certificates of one test session: the mesh's authority, and one for servers outside the mesh.

In: SPIFFE ids and DNS names. Out: files as the agent lays them out, and server contexts. Keys are elliptic (fast),
files are 0600 in the session's own folder, and everything ends with the session.
"""

from __future__ import annotations

import os
import secrets
import ssl
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from meltemi.agent.secrets import CURRENT, DEFAULT_FILE, ROOTCA_FILE, render_default, render_rootca
from meltemi.ca.authority import Authority, issue_server, key_pem, self_signed

_DAY_S = 86_400.0
_SERIAL_BITS = 120


class Identities:
    """Two authorities and what they have signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.mesh = _authority("meltemi.testing mesh")
        self.outside = _authority("meltemi.testing outside")
        self.outside_root = self._write(folder / "outside-root.pem", self.outside.roots)
        self._contexts: dict[tuple[str, tuple[str, ...]], ssl.SSLContext] = {}

    def workload(self, name: str, spiffe: str) -> Path:
        """The certificate folder of a proxy, as ``agent.secrets`` describes it."""
        folder = self._folder / name
        current = folder / CURRENT
        current.mkdir(parents=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        issued = _issue(self.mesh, key, (), spiffe)
        self._write(current / "cert.pem", "".join(issued))
        self._write(current / "key.pem", key_pem(key))
        self._write(current / "root.pem", self.mesh.roots)
        self._write(folder / DEFAULT_FILE, render_default(str(folder)))
        self._write(folder / ROOTCA_FILE, render_rootca(str(folder)))
        return folder

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
