"""Answer the review APIs: who am I, may I, what may I, is this token good.

In: a review object, the caller, the authorizer and the authenticator. Out: the same object with its
status filled in. Nothing is stored. Raises ApiError for a review that asks for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from localkube.apiserver import authn, authz, errors, rbac, tokens

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object

_AUTHORIZATION_GROUP = "authorization.k8s.io"


class Reviewer:
    """Answers reviews of the authentication.k8s.io and authorization.k8s.io groups."""

    def __init__(
        self,
        authenticator: authn.Authenticator,
        authorizer: authz.Authorizer,
        token_authority: tokens.TokenAuthority,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer
        self._tokens = token_authority
        self._clock = clock

    def review(self, kind: str, obj: Object, user: authn.User, namespace: str = "") -> Object:
        """The review of this kind, answered. `namespace` is that of the path, if any."""
        answered = {**obj, "metadata": {**(obj.get("metadata") or {})}}
        answered["metadata"].setdefault("creationTimestamp", None)
        spec = obj.get("spec") or {}
        match kind:
            case "TokenReview":
                answered["status"] = self._review_token(spec)
            case "SelfSubjectReview":
                answered["metadata"]["creationTimestamp"] = tokens.timestamp(self._clock())
                answered["status"] = {"userInfo": user.user_info()}
            case "SelfSubjectAccessReview":
                answered["status"] = self._review_access(kind, spec, user, "")
            case "SubjectAccessReview":
                answered["status"] = self._review_access(kind, spec, _user_of_spec(kind, spec), "")
            case "LocalSubjectAccessReview":
                subject = _user_of_spec(kind, spec)
                answered["status"] = self._review_access(kind, spec, subject, namespace)
            case "SelfSubjectRulesReview":
                answered["status"] = self._review_rules(spec, user)
            case _:
                raise errors.bad_request(f"{kind} is not a review")
        return answered

    def _review_token(self, spec: Object) -> Object:
        token = spec.get("token")
        if not isinstance(token, str) or not token:
            raise errors.bad_request("token is required for TokenReview in authentication")
        audiences = [str(a) for a in spec.get("audiences") or ()]
        try:
            verified = self._tokens.verify(token, audiences)
        except tokens.InvalidTokenError as error:
            user = self._bootstrap_user(token)
            if user is None:
                return {"user": {}, "error": f"invalid bearer token, {error}"}
            return {"authenticated": True, "user": user.user_info()}
        return {
            "authenticated": True,
            "user": authn.user_of_verified(verified).user_info(),
            "audiences": list(verified.audiences),
        }

    def _bootstrap_user(self, token: str) -> authn.User | None:
        try:
            return self._authenticator.user_of_token(token) if token.count(".") == 1 else None
        except errors.ApiError:
            return None

    def _review_access(self, kind: str, spec: Object, user: authn.User, namespace: str) -> Object:
        attributes = attributes_of_spec(kind, spec)
        if kind == "LocalSubjectAccessReview" and attributes.namespace != namespace:
            cause = errors.FieldError(
                "spec.resourceAttributes.namespace",
                "FieldValueInvalid",
                f'Invalid value: "{attributes.namespace}": must match metadata.namespace',
            )
            raise errors.invalid(kind, "", [cause], _AUTHORIZATION_GROUP)
        decision = self._authorizer.authorize(user, attributes)
        status: Object = {"allowed": decision.allowed}
        if decision.reason:
            status["reason"] = decision.reason
        return status

    def _review_rules(self, spec: Object, user: authn.User) -> Object:
        namespace = str(spec.get("namespace") or "")
        if not namespace:
            raise errors.bad_request("no namespace on request")
        rules = self._authorizer.index.rules_of(user, namespace)
        if authz.MASTERS_GROUP in user.groups:
            rules = [rbac.Rule(("*",), ("*",), ("*",)), rbac.Rule(("*",), urls=("*",))]
        resource_rules = []
        url_rules = []
        for rule in rules:
            encoded = rule.encode()
            if rule.urls:
                url_rules.append({k: encoded[k] for k in ("verbs", "nonResourceURLs")})
            else:
                resource_rules.append(encoded)
        return {
            "resourceRules": resource_rules,
            "nonResourceRules": url_rules,
            "incomplete": False,
        }


def attributes_of_spec(kind: str, spec: Object) -> authz.Attributes:
    """What an access review asks about. Raises ApiError 422 unless it is exactly one thing."""
    resource = spec.get("resourceAttributes")
    url = spec.get("nonResourceAttributes")
    if bool(resource is not None) == bool(url is not None):
        cause = errors.FieldError(
            "spec.resourceAttributes",
            "FieldValueInvalid",
            "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes "
            "must be specified",
        )
        raise errors.invalid(kind, "", [cause], _AUTHORIZATION_GROUP)
    if url is not None:
        return authz.Attributes(str(url.get("verb", "")), path=str(url.get("path") or "/"))
    asked = {
        name: str((resource or {}).get(name) or "")
        for name in ("verb", "group", "version", "resource", "subresource", "namespace", "name")
    }
    return authz.Attributes(**asked)


def _user_of_spec(kind: str, spec: Object) -> authn.User:
    name, groups = str(spec.get("user") or ""), spec.get("groups") or ()
    if not name and not groups:
        cause = errors.FieldError(
            "spec.user",
            "FieldValueInvalid",
            'Invalid value: "": at least one of user or group must be specified',
        )
        raise errors.invalid(kind, "", [cause], _AUTHORIZATION_GROUP)
    return authn.User(
        name, str(spec.get("uid") or ""), tuple(str(g) for g in groups), spec.get("extra") or {}
    )
