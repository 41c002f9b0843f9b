"""Verify tokens of OpenID Connect issuers beside the API server's.

In: ``JWT_RULE``, Istio's setting: JSON with ``issuer``, ``audiences`` and ``jwksUri`` or ``jwks``, one object or a
list. Out: an ``Identity`` from the ``sub`` claim (``system:serviceaccount:<namespace>:<account>``). Keys are
fetched when needed, kept, and fetched again for a key id that is not known; an issuer that cannot be
reached keeps its keys in use. Tokens are never kept or logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jwt

from meltemi.adapters.authenticate import TOKEN_LENGTH_MAX, CannotReview, Reviewer
from meltemi.ca import identity
from meltemi.ca.identity import Identity, NotAuthenticated
from meltemi.kit.clock import Clock

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384"]
KEEP_S = 20 * 60.0  # PILOT_JWT_PUB_KEY_REFRESH_INTERVAL's default
AGAIN_S = 10.0  # a storm of unknown key ids reaches the issuer at most this often
LEEWAY_S = 60.0
JWKS_BYTES_MAX = 1024 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=5)


@dataclass(eq=False)
class Issuer:
    """One issuer, and its keys as last seen."""

    name: str
    audiences: tuple[str, ...]
    jwks_uri: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)
    fetched: float = float("-inf")


def parse_rules(text: str) -> tuple[Issuer, ...]:
    """The issuers of ``JWT_RULE``. Raises ValueError with a sentence for people."""
    if not text.strip():
        return ()
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ValueError(f"JWT_RULE is not JSON: {error}") from error
    return tuple(_issuer(rule) for rule in (body if isinstance(body, list) else [body]))


def _issuer(rule: Any) -> Issuer:
    fields = rule if isinstance(rule, Mapping) else {}
    name, uri, inline = (str(fields.get(k) or "") for k in ("issuer", "jwksUri", "jwks"))
    audiences = fields.get("audiences") or [identity.TOKEN_AUDIENCE]
    if not name or not (uri or inline) or not isinstance(audiences, list):
        raise ValueError(
            'JWT_RULE needs issuer, and jwksUri or jwks: {"issuer": "https://...", "jwksUri": "https://...", '
            '"audiences": ["istio-ca"]}'
        )
    keys = _keys(inline.encode()) if inline else {}
    return Issuer(name, tuple(map(str, audiences)), "" if inline else uri, keys)


def _keys(data: bytes) -> dict[str, Any]:
    """Keys by id. Raises ValueError."""
    try:
        found = jwt.PyJWKSet.from_json(data.decode()).keys
    except (jwt.PyJWTError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the key set of the issuer cannot be read: {error}") from error
    return {key.key_id or "": key.key for key in found}


class OidcReviewer:
    """Verifies tokens of configured issuers; all others go to ``others``."""

    def __init__(
        self, issuers: tuple[Issuer, ...], others: Reviewer | None, clock: Clock, trust_domain: str
    ) -> None:
        self._issuers = {issuer.name: issuer for issuer in issuers}
        self._others = others
        self._clock = clock
        self._trust_domain = trust_domain

    async def review(self, token: str) -> Identity:
        """Whose token it is. Raises NotAuthenticated or CannotReview."""
        if len(token) > TOKEN_LENGTH_MAX:
            raise NotAuthenticated("the token is too long to be one")
        issuer = self._issuers.get(_claimed_issuer(token))
        if issuer is None:
            if self._others is None:
                raise NotAuthenticated("the token is of no issuer that JWT_RULE names")
            return await self._others.review(token)
        claims = await self._verified(issuer, token)
        parts = str(claims.get("sub", "")).split(":")
        if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"] or not all(parts):
            raise NotAuthenticated("the token's subject is no service account")
        return Identity(self._trust_domain, parts[2], parts[3])

    async def _verified(self, issuer: Issuer, token: str) -> Mapping[str, Any]:
        try:
            key_id = str(jwt.get_unverified_header(token).get("kid") or "")
            claims: dict[str, Any] = jwt.decode(
                token,
                await self._key(issuer, key_id),
                algorithms=ALGORITHMS,
                audience=list(issuer.audiences),
                issuer=issuer.name,
                # The time is checked below, by our clock.
                options={"require": ["exp", "iss", "sub", "aud"], "verify_exp": False,
                         "verify_nbf": False, "verify_iat": False},
            )  # fmt: skip
            ends, begins = float(claims["exp"]), float(claims.get("nbf") or 0)
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise NotAuthenticated(f"the token is not valid: {error}") from error
        now = self._clock.now()
        if not begins - LEEWAY_S <= now < ends + LEEWAY_S:
            raise NotAuthenticated("the token is not valid: it has expired, or is not valid yet")
        return claims

    async def _key(self, issuer: Issuer, key_id: str) -> Any:
        now = self._clock.monotonic()
        age = now - issuer.fetched
        wanted = (age > KEEP_S) or (key_id not in issuer.keys and age > AGAIN_S)
        if issuer.jwks_uri and wanted:
            issuer.fetched = now
            try:
                issuer.keys = await _fetch(issuer.jwks_uri)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                issuer.fetched = now - KEEP_S + AGAIN_S
                if key_id not in issuer.keys:
                    raise CannotReview(
                        f"the keys of {issuer.name} cannot be fetched: {error}"
                    ) from error
        if key_id not in issuer.keys:
            raise NotAuthenticated(
                f"the token is signed with a key that {issuer.name} does not publish"
            )
        return issuer.keys[key_id]


async def _fetch(uri: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT) as session,
        session.get(uri, allow_redirects=False) as answer,
    ):
        if answer.status != 200:
            raise ValueError(f"{uri} answered {answer.status}")
        data = await answer.content.read(JWKS_BYTES_MAX)
    return _keys(data)


def _claimed_issuer(token: str) -> str:
    """What the token says; only to choose who verifies it."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False, "verify_exp": False})
    except (jwt.PyJWTError, ValueError, TypeError):
        return ""
    return str(claims.get("iss") or "")
