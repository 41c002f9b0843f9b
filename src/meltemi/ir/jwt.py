"""Verification of JSON Web Tokens: which issuers are accepted, where their tokens and keys are found."""

from __future__ import annotations

from meltemi.ir.value import Origins, Pairs, origins_field, value

# Where the payload of a verified token is found by later filters and by routes.
JWT_FILTER = "envoy.filters.http.jwt_authn"
PAYLOAD = "payload"


@value
class RemoteKeys:
    """Keys that the proxy fetches from ``uri`` through ``cluster``, anew every ``refresh_s``."""

    uri: str
    cluster: str
    timeout_s: float
    refresh_s: float


@value
class JwtProvider:
    """Tokens of one issuer. ``keys`` is a key set in JSON, or where to fetch it.

    ``headers`` are (name, prefix); ``claim_headers`` (header, claim). ``list_claims`` are split at spaces.
    """

    issuer: str
    keys: str | RemoteKeys
    audiences: tuple[str, ...] = ()
    headers: Pairs = ()
    params: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    payload_header: str = ""
    claim_headers: Pairs = ()
    forward: bool = False
    list_claims: tuple[str, ...] = ()
    required: bool = False
    origins: Origins = origins_field()


@value
class JwtAuthn:
    """A request passes with a valid token of every required provider, and with none of the others' or a valid one of them."""

    providers: tuple[JwtProvider, ...]
    clear_route_cache: bool = False
    origins: Origins = origins_field()
