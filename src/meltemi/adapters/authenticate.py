"""Find out who a gRPC caller is.

In: a call's TLS state and its headers. Out: an ``Identity`` or ``NotAuthenticated``. A verified client
certificate comes first, then a bearer token, which the API server reviews for audience ``istio-ca``. Verdicts
are remembered for seconds, under a digest of the token; tokens are never kept or logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any, Protocol
from urllib.parse import unquote

from cryptography import x509

from meltemi.adapters.kube_api import KubeApi, KubeError
from meltemi.ca import identity
from meltemi.ca.identity import Identity, NotAuthenticated
from meltemi.kit.clock import Clock
from meltemi.kit.limits import ExpiringMap

REVIEW_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
GOOD_S = 30.0  # a revoked token is honoured for this much longer at most
BAD_S = 2.0  # a storm of bad tokens reaches the API server at most this often
TOKENS_MAX = 20_000
TOKEN_LENGTH_MAX = 64 * 1024
BEARER = "bearer "
FORWARDED = "x-forwarded-client-cert"


class CannotReview(Exception):
    """The API server could not be asked; the caller should try again."""


class Reviewer(Protocol):
    """Verifies a token."""

    async def review(self, token: str) -> Identity:
        """Whose token it is. Raises NotAuthenticated or CannotReview."""
        ...


class KubeReviewer:
    """Asks the API server, once per token and while."""

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        trust_domain: str,
        audience: str = identity.TOKEN_AUDIENCE,
    ) -> None:
        self._api = api
        self._clock = clock
        self._trust_domain = trust_domain
        self._audience = audience
        self._known: ExpiringMap[bytes, tuple[bytes, Identity | NotAuthenticated]] = ExpiringMap(
            TOKENS_MAX
        )

    async def review(self, token: str) -> Identity:
        """Whose token it is. Raises NotAuthenticated or CannotReview."""
        if len(token) > TOKEN_LENGTH_MAX:
            raise NotAuthenticated("the token is too long to be one")
        digest = hashlib.sha256(token.encode()).digest()
        # Looked up by one half, compared in constant time by the other: timing tells nothing of a token.
        slot, proof = digest[:16], digest[16:]
        known = self._known.get(slot, self._clock.monotonic())
        if known is not None and hmac.compare_digest(known[0], proof):
            if isinstance(known[1], NotAuthenticated):
                raise known[1]
            return known[1]
        try:
            found = await self._ask(token)
        except NotAuthenticated as refused:
            self._known.put(slot, (proof, refused), self._clock.monotonic() + BAD_S)
            raise
        self._known.put(slot, (proof, found), self._clock.monotonic() + GOOD_S)
        return found

    async def _ask(self, token: str) -> Identity:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            answer: Mapping[str, Any] = await self._api.json("POST", REVIEW_PATH, body=body)
        except KubeError as error:
            raise CannotReview(f"the token could not be reviewed: {error}") from error
        return identity.from_token_review(
            answer.get("status") or {}, self._trust_domain, self._audience
        )


class Authenticator:
    """Identifies callers. ``trust_domains`` gives the mesh's own, then its aliases, as they are now.

    From addresses of ``gateways`` (TRUSTED_GATEWAY_CIDR) a proxy's word about its client's certificate is taken, too. Unlike Istio's,
    loopback is not among them by itself.
    """

    def __init__(
        self,
        reviewer: Reviewer | None,
        trust_domains: Callable[[], Sequence[str]],
        gateways: Sequence[IPv4Network | IPv6Network] = (),
    ) -> None:
        self._gateways = tuple(gateways)
        self._reviewer = reviewer
        self._trust_domains = trust_domains

    def has_certificate(self, context: Any) -> bool:
        """True when the caller showed a client certificate, which TLS has verified."""
        return bool(context.auth_context().get("x509_pem_cert"))

    def is_encrypted(self, context: Any) -> bool:
        """True on the TLS ports."""
        return list(context.auth_context().get("transport_security_type", ())) == [b"ssl"]

    async def identify(self, context: Any) -> Identity:
        """Who calls. Raises NotAuthenticated or CannotReview."""
        shown = context.auth_context().get("x509_pem_cert")
        if shown:
            return identity.from_certificate(_uris(shown[0]), self._trust_domains())
        headers = context.invocation_metadata() or ()
        token = bearer_of(headers)
        forwarded = [str(value) for name, value in headers if name == FORWARDED]
        if not token and forwarded and self._is_gateway(context.peer()):
            return identity.from_forwarded(",".join(forwarded), self._trust_domains())
        if not token:
            raise NotAuthenticated(
                "no credentials: send a bearer token for audience istio-ca in the authorization header, or "
                "use a client certificate of the mesh on port 15013"
            )
        if self._reviewer is None:
            raise NotAuthenticated(
                "this control plane runs without an API server and takes no tokens"
            )
        found = await self._reviewer.review(token)
        # A token proves an account; the trust domain is the mesh's to say, and can change while this runs.
        return replace(found, trust_domain=self._trust_domains()[0])

    def _is_gateway(self, peer: str) -> bool:
        """gRPC's name of a peer, ``ipv4:10.0.0.1:4711`` or ``ipv6:[::1]:4711``, percent-encoded."""
        kind, _, place = unquote(peer).partition(":")
        host = place.rpartition(":")[0].strip("[]")
        if kind not in ("ipv4", "ipv6") or not host:
            return False
        return any(ip_address(host) in network for network in self._gateways)


def bearer_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token of the authorization header, or "". More than one header counts as none."""
    found = [value for name, value in metadata if name == "authorization"]
    if len(found) != 1 or not isinstance(found[0], str):
        return ""
    text = found[0]
    return text[len(BEARER) :].strip() if text[: len(BEARER)].lower() == BEARER else ""


def _uris(pem: bytes) -> list[str]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise NotAuthenticated(f"the client certificate cannot be read: {error}") from error
    return [str(uri) for uri in names.get_values_for_type(x509.UniformResourceIdentifier)]
