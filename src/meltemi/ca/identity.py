"""Who a caller is, from what somebody else has verified.

In: the user name of a TokenReview, or the URI names of a verified client certificate. Out: an ``Identity``.
Nothing that the caller itself claims is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.model import names

TOKEN_AUDIENCE = "istio-ca"  # noqa: S105 - the audience that a token must carry, not a token


class NotAuthenticated(Exception):
    """The caller could not be identified; the text says why, without secrets."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload's identity, verified."""

    trust_domain: str
    namespace: str
    service_account: str
    source: str = "token"  # token | certificate

    @property
    def spiffe(self) -> str:
        """Its SPIFFE id."""
        return names.spiffe_id(self.trust_domain, self.namespace, self.service_account)


def from_certificate(uris: Iterable[str], trust_domains: Iterable[str]) -> Identity:
    """The identity in a client certificate that the mesh's root has signed. Raises NotAuthenticated."""
    accepted = tuple(trust_domains)
    found = [parts for uri in uris if (parts := names.parse_spiffe(uri))]
    if len(found) != 1:
        raise NotAuthenticated(
            f"the client certificate holds {len(found)} SPIFFE ids of the form spiffe://<trust domain>/ns/"
            "<namespace>/sa/<service account>; exactly one is needed"
        )
    domain, namespace, account = found[0]
    if domain not in accepted:
        raise NotAuthenticated(
            f"the client certificate is of trust domain {domain!r}; accepted: {', '.join(accepted)}"
        )
    return Identity(domain, namespace, account, "certificate")


def from_token_review(status: Mapping[str, Any], trust_domain: str, audience: str) -> Identity:
    """The identity in the status of a TokenReview that asked for ``audience``. Raises NotAuthenticated."""
    if not status.get("authenticated"):
        why = str(status.get("error") or "the API server does not accept it")
        raise NotAuthenticated(f"the token is not valid: {why}")
    audiences = status.get("audiences") or ()
    # A server that ignores audiences returns none: then the token's own audience is unknown, so it is refused.
    if audience and audience not in audiences:
        raise NotAuthenticated(
            f"the token is for audience {', '.join(map(str, audiences)) or 'unknown'}; {audience!r} is needed"
        )
    user = status.get("user") or {}
    parts = str(user.get("username", "")).split(":")
    if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"] or not all(parts):
        raise NotAuthenticated("the token is not a service account's")
    return Identity(trust_domain, parts[2], parts[3])
