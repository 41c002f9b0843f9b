"""Find out who sent a request.

In: the verified client certificate, the Authorization header and the Impersonate-* headers. Out: a
User, or ApiError 401/403. Promises: a bad credential is an error and never falls back to anonymous;
secrets are compared in constant time; impersonation is allowed only to whom RBAC allows it.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hmac
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from localkube.apiserver import authz, errors, tokens

if TYPE_CHECKING:
    from aiohttp import web

    from localkube.apiserver.admission_contract import Object, ObjectReader

AUTHENTICATED = "system:authenticated"
UNAUTHENTICATED = "system:unauthenticated"
SERVICE_ACCOUNTS = "system:serviceaccounts"
BOOTSTRAPPERS = "system:bootstrappers"
_AUTHENTICATION_GROUP = "authentication.k8s.io"
_WEBSOCKET_BEARER = "base64url.bearer.authorization.k8s.io."


@dataclass(frozen=True, slots=True)
class User:
    """Who sends a request, as authorization and admission see them."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def user_info(self) -> dict[str, Any]:
        """authentication.k8s.io/v1 UserInfo, without empty fields."""
        info: dict[str, Any] = {"username": self.name}
        if self.uid:
            info["uid"] = self.uid
        if self.groups:
            info["groups"] = list(self.groups)
        if self.extra:
            info["extra"] = {key: list(values) for key, values in self.extra.items()}
        return info


ANONYMOUS = User("system:anonymous", groups=(UNAUTHENTICATED,))


class Authenticator:
    """Authenticates requests against one cluster's keys and store."""

    def __init__(
        self,
        token_authority: tokens.TokenAuthority,
        authorizer: authz.Authorizer,
        reader: ObjectReader,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tokens = token_authority
        self._authorizer = authorizer
        self._reader = reader
        self._clock = clock

    async def authenticate(self, request: web.Request) -> User:
        """The user on whose behalf to act, impersonation included. Raises ApiError 401 or 403."""
        certificate = None
        if request.transport is not None:
            certificate = request.transport.get_extra_info("peercert")
        user = user_of_certificate(certificate) if certificate else None
        if user is None:
            token = bearer_token(request.headers)
            user = self.user_of_token(token) if token is not None else ANONYMOUS
        return self.impersonate(user, request.headers)

    def user_of_token(self, token: str) -> User:
        """The user of a bearer token. Raises ApiError 401."""
        user = self._bootstrap_user(token) if token.count(".") == 1 else None
        if user is not None:
            return user
        try:
            return user_of_verified(self._tokens.verify(token))
        except tokens.InvalidTokenError as error:
            raise errors.unauthorized() from error

    def _bootstrap_user(self, token: str) -> User | None:
        """The user of a bootstrap token `<id>.<secret>`, kept in a kube-system Secret."""
        token_id, _, secret = token.partition(".")
        stored = self._reader.read("", "secrets", "kube-system", f"bootstrap-token-{token_id}")
        if stored is None or stored.get("type") != "bootstrap.kubernetes.io/token":
            return None
        values = stored.get("data") or {}
        if _decoded(values, "token-id") != token_id:
            return None
        if not hmac.compare_digest(_decoded(values, "token-secret").encode(), secret.encode()):
            return None
        expiration = _decoded(values, "expiration")
        if expiration:
            try:
                expires = datetime.datetime.fromisoformat(expiration).timestamp()
            except ValueError:
                return None
            if expires <= self._clock():
                return None
        if _decoded(values, "usage-bootstrap-authentication") != "true":
            return None
        more = [g for g in _decoded(values, "auth-extra-groups").split(",") if g]
        return User(f"system:bootstrap:{token_id}", groups=(BOOTSTRAPPERS, *more, AUTHENTICATED))

    def impersonate(self, user: User, headers: Mapping[str, str]) -> User:
        """The impersonated user when Impersonate-* headers ask for one and RBAC allows it."""
        wanted = impersonation_of(headers)
        if wanted is None:
            return user
        for attributes in _impersonation_checks(wanted):
            decision = self._authorizer.authorize(user, attributes)
            if not decision.allowed:
                raise errors.ApiError(
                    403, "Forbidden", authz.denial_message(user, attributes, decision.reason)
                )
        return wanted.as_user()


@dataclass(frozen=True, slots=True)
class Impersonation:
    """What the Impersonate-* headers say."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: dict[str, list[str]]

    def as_user(self) -> User:
        groups = list(self.groups)
        account = service_account_of(self.name)
        if account is not None and not groups:
            groups += [SERVICE_ACCOUNTS, f"{SERVICE_ACCOUNTS}:{account[0]}"]
        if self.name == ANONYMOUS.name:
            if UNAUTHENTICATED not in groups:
                groups.append(UNAUTHENTICATED)
        elif AUTHENTICATED not in groups:
            groups.append(AUTHENTICATED)
        return User(self.name, self.uid, tuple(groups), self.extra)


def impersonation_of(headers: Mapping[str, str]) -> Impersonation | None:
    """The wanted identity, or None when no such header is there. Raises ApiError 400.

    https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/
    """
    name = headers.get("Impersonate-User", "")
    uid = headers.get("Impersonate-Uid", "")
    get_all = getattr(headers, "getall", None)
    groups: tuple[str, ...] = ()
    extra: dict[str, list[str]] = {}
    for key, value in headers.items():
        lowered = key.lower()
        if lowered == "impersonate-group" and get_all is None:
            groups += (value,)
        elif lowered.startswith("impersonate-extra-"):
            extra.setdefault(unquote(lowered.removeprefix("impersonate-extra-")), []).append(value)
    if get_all is not None:
        groups = tuple(get_all("Impersonate-Group", ()))
    if not name:
        if groups or uid or extra:
            raise errors.bad_request(
                "requested impersonation of groups, a UID or extra without impersonating a user: "
                "send Impersonate-User too"
            )
        return None
    return Impersonation(name, uid, groups, extra)


def _impersonation_checks(wanted: Impersonation) -> Iterator[authz.Attributes]:
    account = service_account_of(wanted.name)
    if account is not None:
        yield authz.Attributes(
            "impersonate",
            version="v1",
            resource="serviceaccounts",
            namespace=account[0],
            name=account[1],
        )
    else:
        yield authz.Attributes("impersonate", version="v1", resource="users", name=wanted.name)
    for group in wanted.groups:
        yield authz.Attributes("impersonate", version="v1", resource="groups", name=group)
    if wanted.uid:
        yield authz.Attributes("impersonate", _AUTHENTICATION_GROUP, "v1", "uids", name=wanted.uid)
    for key, values in wanted.extra.items():
        for value in values:
            yield authz.Attributes(
                "impersonate", _AUTHENTICATION_GROUP, "v1", "userextras", key, name=value
            )


def service_account_of(username: str) -> tuple[str, str] | None:
    """(namespace, name) when the user name is a service account's."""
    if not username.startswith("system:serviceaccount:"):
        return None
    parts = username.split(":")
    return (parts[2], parts[3]) if len(parts) == 4 and parts[2] and parts[3] else None


def user_of_verified(verified: tokens.VerifiedToken) -> User:
    """The user that a service account authenticates as."""
    groups = (SERVICE_ACCOUNTS, f"{SERVICE_ACCOUNTS}:{verified.namespace}", AUTHENTICATED)
    name = f"system:serviceaccount:{verified.namespace}:{verified.name}"
    return User(name, verified.uid, groups, verified.extra)


def user_of_certificate(certificate: Mapping[str, Any]) -> User | None:
    """The user in a client certificate that TLS verified (ssl.getpeercert() form): CN and Os."""
    name = ""
    groups: list[str] = []
    for relative_name in certificate.get("subject") or ():
        for key, value in relative_name:
            if key == "commonName":
                name = value
            elif key == "organizationName":
                groups.append(value)
    if not name:
        return None
    return User(name, groups=(*groups, AUTHENTICATED))


def bearer_token(headers: Mapping[str, str]) -> str | None:
    """The bearer token of a request, also from a browser's WebSocket subprotocol list."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    for protocol in headers.get("Sec-WebSocket-Protocol", "").split(","):
        encoded = protocol.strip()
        if encoded.startswith(_WEBSOCKET_BEARER):
            encoded = encoded.removeprefix(_WEBSOCKET_BEARER)
            try:
                return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except (binascii.Error, UnicodeDecodeError) as error:
                raise errors.unauthorized() from error
    return None


def _decoded(values: Object, key: str) -> str:
    try:
        return base64.b64decode(values.get(key) or "").decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
