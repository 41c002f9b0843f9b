"""Who a caller is, from what somebody else has verified.

In: the user name of a TokenReview, or the URI names of a verified client certificate. Out: an ``Identity``.
Nothing that the caller itself claims is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meltemi.model import names

TOKEN_AUDIENCE = "istio-ca"  # noqa: S105 - the audience that a token must carry, not a token


POD_NAME = "authentication.kubernetes.io/pod-name"


class NotPermitted(Exception):
    """The caller is known, and may not have what it asks for; the text says why."""


class NotAuthenticated(Exception):
    """The caller could not be identified; the text says why, without secrets."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A workload's identity, verified."""

    trust_domain: str
    namespace: str
    service_account: str
    source: str = "token"  # token | certificate | forwarded certificate | node agent
    pod: str = ""  # the pod that the API server bound the token to

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


_ELEMENT = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,"])+')
_PAIR = re.compile(r'(\w+)=("(?:\\.|[^"\\])*"|[^;]*)')


def from_forwarded(header: str, trust_domains: Iterable[str]) -> Identity:
    """The identity in ``x-forwarded-client-cert``: of the last element, which the trusted proxy itself wrote. Raises NotAuthenticated."""
    elements = _ELEMENT.findall(header)
    pairs = _PAIR.findall(elements[-1]) if elements else []
    uris = [text.strip('"') for name, text in pairs if name.lower() == "uri"]
    return replace(from_certificate(uris, trust_domains), source="forwarded certificate")


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
    bound = (user.get("extra") or {}).get(POD_NAME) or ()
    pod = str(bound[0]) if isinstance(bound, (list, tuple)) and len(bound) == 1 else ""
    return Identity(trust_domain, parts[2], parts[3], pod=pod)


def impersonate(
    caller: Identity,
    wanted: str,
    trusted: Iterable[str],
    beside: Callable[[str, str], Collection[tuple[str, str]]],
) -> Identity:
    """The identity that a node agent asks for in the name of a pod on its own node. Raises NotPermitted.

    ``trusted`` are ``<namespace>/<service account>`` (CA_TRUSTED_NODE_ACCOUNTS); ``beside(namespace, pod)`` tells
    the accounts of all pods on that pod's node. The caller's node comes from its token, never from the request.
    """
    account = f"{caller.namespace}/{caller.service_account}"
    if account not in trusted:
        raise NotPermitted(
            f"{account} may not ask for other identities; list it in CA_TRUSTED_NODE_ACCOUNTS if it is a node agent"
        )
    parts = names.parse_spiffe(wanted)
    if parts is None or parts[0] != caller.trust_domain:
        raise NotPermitted(f"{wanted!r} is no identity of trust domain {caller.trust_domain}")
    if not caller.pod:
        raise NotPermitted(
            "the token does not say which pod it is bound to, so its node is not known"
        )
    _, namespace, name = parts
    if (namespace, name) not in beside(caller.namespace, caller.pod):
        raise NotPermitted(f"no pod of {namespace}/{name} runs on the node of {caller.pod}")
    return Identity(caller.trust_domain, namespace, name, "node agent")
