"""Have certificates signed by another authority: any gRPC server of ``istio.v1.auth.IstioCertificateService``.

In: signing requests whose caller was identified here. Out: chains. The identity goes along as
``ImpersonatedIdentity``, so that authority must trust this istiod as a node agent; what comes back is checked:
a certificate for another key or another identity is refused. istiod proves itself with a bearer token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc import aio

from meltemi.model.destination_rule import ClientTLSSettings
from meltemi.model.mesh import CA
from meltemi.protos import CREATE_CERTIFICATE, ca_pb2

DEADLINE_S = 10.0
CERT_SIGNER = (
    "CertSigner"  # the request's metadata: which of several signers (Istio's agents send it)
)


class Signer(Protocol):
    """Signs in the place of istiod's own authority."""

    async def sign(self, csr: str, identity: str, ttl_s: int, cert_signer: str = "") -> list[str]:
        """The chain, leaf first and root last. Raises ExternalRefused."""
        ...

    async def close(self) -> None:
        """End what it holds."""
        ...


class ExternalRefused(Exception):
    """The other authority did not sign, or signed something else; the text says why."""


class ExternalAuthority:
    """A channel to the other authority."""

    def __init__(
        self,
        address: str,
        root_file: str = "",
        token_file: str = "",
        tls: ClientTLSSettings | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """``root_file`` verifies its server certificate; without one, and without ``tls``, the connection is plaintext."""
        self.address = address
        if tls is None and root_file:
            tls = ClientTLSSettings(mode="SIMPLE", ca_certificates=root_file)
        self._tls = tls
        self._token_file = token_file
        self._deadline_s = deadline_s
        self._channel: aio.Channel | None = None

    @classmethod
    def of_mesh(cls, settings: CA, token_file: str = "") -> ExternalAuthority:
        """The one that ``ca`` of the mesh configuration names: over TLS, unless that says otherwise."""
        tls = settings.tls_settings or ClientTLSSettings(mode="SIMPLE")
        deadline_s = settings.request_timeout or DEADLINE_S
        return cls(settings.address, token_file=token_file, tls=tls, deadline_s=deadline_s)

    async def sign(self, csr: str, identity: str, ttl_s: int, cert_signer: str = "") -> list[str]:
        """The chain, leaf first and root last. ``cert_signer`` is handed on. Raises ExternalRefused."""
        request = ca_pb2.IstioCertificateRequest(csr=csr, validity_duration=ttl_s)
        request.metadata.update({"ImpersonatedIdentity": identity})
        if cert_signer:
            request.metadata.update({CERT_SIGNER: cert_signer})
        try:
            call = self._connected().unary_unary(
                CREATE_CERTIFICATE,
                request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
                response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
            )
            answer = await call(request, timeout=self._deadline_s, metadata=self._credentials())
        except aio.AioRpcError as error:
            raise ExternalRefused(
                f"the external authority at {self.address} answered {error.code().name}: {error.details()}"
            ) from error
        except OSError as error:
            raise ExternalRefused(f"{error.filename} cannot be read: {error.strerror}") from error
        chain = list(answer.cert_chain)
        check_chain(chain, csr, identity)
        return chain

    async def close(self) -> None:
        """End the channel."""
        if self._channel is not None:
            await self._channel.close()

    def _connected(self) -> aio.Channel:
        if self._channel is None:
            tls = self._tls
            if tls is None or tls.mode == "DISABLE":
                self._channel = aio.insecure_channel(self.address)
            else:

                def read(path: str) -> bytes | None:
                    return Path(path).read_bytes() if path else None  # None: the system's roots

                known = grpc.ssl_channel_credentials(
                    read(tls.ca_certificates),
                    read(tls.private_key),
                    read(tls.client_certificate),
                )
                name = next(iter(tls.subject_alt_names), tls.sni)
                options = [("grpc.ssl_target_name_override", name)] if name else []
                self._channel = aio.secure_channel(self.address, known, options)
        return self._channel

    def _credentials(self) -> tuple[tuple[str, str], ...]:
        if not self._token_file:
            return ()
        token = Path(self._token_file).read_text(encoding="utf-8").strip()
        return (("authorization", f"Bearer {token}"),)


def check_chain(chain: list[str], csr: str, identity: str) -> None:
    """What was signed must be the key that was sent, for the identity that was proven. Raises ExternalRefused."""
    try:
        leaf = x509.load_pem_x509_certificate(chain[0].encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        asked = x509.load_pem_x509_csr(csr.encode()).public_key()
    except (IndexError, ValueError, x509.ExtensionNotFound) as error:
        raise ExternalRefused(
            f"the external authority's answer is no certificate: {error}"
        ) from error
    if names.get_values_for_type(x509.UniformResourceIdentifier) != [identity]:
        raise ExternalRefused(f"the external authority signed another identity than {identity}")
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*form) != asked.public_bytes(*form):
        raise ExternalRefused(
            "the external authority signed another key than the one that was sent"
        )
