"""Issue and check service account tokens: JWTs signed with the cluster's ES256 key.

In: the signing key, the stored ServiceAccounts, Pods and Secrets, and the time. Out: TokenRequest
statuses, and the claims of a presented token, or the reason why it is not valid. Promises: a
token dies with its account, and with the Pod or Secret or Node it is bound to. No token is logged.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives import serialization

from localkube.apiserver import errors

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from localkube.apiserver.admission_contract import Object, ObjectReader

ISSUER = "https://kubernetes.default.svc.cluster.local"
"""Issuer and default audience, as kubeadm sets them."""
EXPIRATION_DEFAULT_S = 3600
EXPIRATION_MIN_S = 600
EXPIRATION_MAX_S = 1 << 32
EXTENDED_FROM_S = 3607
"""A projected token of exactly this age is for clients that may not know how to reload it ..."""
EXTENDED_TO_S = 365 * 24 * 3600
"""... so the server lets it live this long (--service-account-extend-token-expiration)."""
VERIFIED_CACHE_SIZE = 2048
CLAIMS_KEY = "kubernetes.io"

_BINDABLE = {
    "Pod": ("", "pods", "v1"),
    "Secret": ("", "secrets", "v1"),
    "Node": ("", "nodes", "v1"),
}


class InvalidTokenError(Exception):
    """The token is not accepted; the text is for the server's log, not for the client."""


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A checked service account token."""

    namespace: str
    name: str
    uid: str
    audiences: tuple[str, ...]
    extra: dict[str, list[str]]


class TokenAuthority:
    """Signs and verifies with one key; looks up bound objects in `reader` at each use."""

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        reader: ObjectReader,
        *,
        issuer: str = ISSUER,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._public = key.public_key()
        self._reader = reader
        self._clock = clock
        self.issuer = issuer
        der = self._public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._key_id = _base64url(hashlib.sha256(der).digest())
        self._verified: OrderedDict[bytes, dict[str, Any]] = OrderedDict()

    # -- issuing ------------------------------------------------------------------------------

    def issue(self, namespace: str, name: str, request: Object) -> Object:
        """Answer a TokenRequest for a ServiceAccount: the request with its status filled in.

        Raises ApiError: no such account, bound object missing or another, bad expiration.
        """
        account = self._reader.read("", "serviceaccounts", namespace, name)
        if account is None:
            raise errors.not_found("serviceaccounts", name)
        spec = dict(request.get("spec") or {})
        expiration_s = self._check_expiration(name, spec.get("expirationSeconds"))
        audiences = [str(a) for a in spec.get("audiences") or [self.issuer]]
        bound, node = self._bound_object(namespace, name, account, spec.get("boundObjectRef"))
        now = int(self._clock())
        private: dict[str, Any] = {
            "namespace": namespace,
            "serviceaccount": {"name": name, "uid": account["metadata"].get("uid", "")},
            **bound,
            **node,
        }
        life_s = expiration_s
        if expiration_s == EXTENDED_FROM_S and "pod" in bound and audiences == [self.issuer]:
            private["warnafter"] = now + expiration_s
            life_s = EXTENDED_TO_S
        claims = {
            "aud": audiences,
            "exp": now + life_s,
            "iat": now,
            "iss": self.issuer,
            "jti": str(uuid.uuid4()),
            CLAIMS_KEY: private,
            "nbf": now,
            "sub": f"system:serviceaccount:{namespace}:{name}",
        }
        token = jwt.encode(claims, self._key, algorithm="ES256", headers={"kid": self._key_id})
        spec.update(
            audiences=audiences,
            expirationSeconds=expiration_s,
            boundObjectRef=spec.get("boundObjectRef"),
        )
        stamp = datetime.datetime.fromtimestamp(now + expiration_s, datetime.UTC)
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "creationTimestamp": timestamp(now),
            },
            "spec": {key: value for key, value in spec.items() if value is not None},
            "status": {
                "token": token,
                "expirationTimestamp": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
        }

    def _check_expiration(self, name: str, asked: Any) -> int:
        if asked is None:
            return EXPIRATION_DEFAULT_S
        why = ""
        if not isinstance(asked, int) or isinstance(asked, bool):
            why = "must be of type integer"
        elif asked < EXPIRATION_MIN_S:
            why = "may not specify a duration less than 10 minutes"
        elif asked > EXPIRATION_MAX_S:
            why = "may not specify a duration larger than 2^32 seconds"
        if why:
            cause = errors.FieldError(
                "spec.expirationSeconds", "FieldValueInvalid", f"Invalid value: {asked}: {why}"
            )
            raise errors.invalid("TokenRequest", name, [cause], "authentication.k8s.io")
        return int(asked)

    def _bound_object(
        self, namespace: str, name: str, account: Object, ref: Object | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The claims for the object the token is bound to, and for the node of a bound pod."""
        if not ref:
            return {}, {}
        kind, bound_name = str(ref.get("kind", "")), str(ref.get("name", ""))
        if kind not in _BINDABLE:
            raise errors.bad_request(f"cannot bind token for object of type v1, Kind={kind}")
        group, plural, _ = _BINDABLE[kind]
        found = self._reader.read(group, plural, None if kind == "Node" else namespace, bound_name)
        if found is None:
            raise errors.not_found(plural, bound_name, group)
        uid = found["metadata"].get("uid", "")
        if ref.get("uid") and ref["uid"] != uid:
            raise errors.conflict(
                plural,
                bound_name,
                group,
                f"the UID in the bound object reference ({ref['uid']}) does not match the UID in "
                f"record. The object might have been deleted and then recreated",
            )
        node: dict[str, Any] = {}
        if kind == "Pod":
            spec = found.get("spec") or {}
            if (spec.get("serviceAccountName") or "default") != name:
                raise errors.bad_request(
                    f'cannot bind token for serviceaccount "{name}" to pod running with different '
                    f'serviceaccount name "{spec.get("serviceAccountName") or "default"}".'
                )
            node_name = spec.get("nodeName")
            if node_name:
                node_object = self._reader.read("", "nodes", None, node_name)
                node_uid = (node_object or {}).get("metadata", {}).get("uid", "")
                node = {"node": {"name": node_name, "uid": node_uid}}
        return {kind.lower(): {"name": bound_name, "uid": uid}}, node

    # -- checking -----------------------------------------------------------------------------

    def verify(self, token: str, audiences: Sequence[str] = ()) -> VerifiedToken:
        """The identity in `token`, meant for one of `audiences` (default: this API server).

        Raises InvalidTokenError. The signature is checked once per token and remembered; expiry,
        account and bound objects are checked every time.
        """
        claims = self._signed_claims(token)
        now = self._clock()
        if claims.get("exp", 0) < now:
            raise InvalidTokenError("token has expired")
        if claims.get("nbf", 0) > now + 60:
            raise InvalidTokenError("token is not valid yet")
        wanted = tuple(audiences) or (self.issuer,)
        given = claims.get("aud") or []
        given = [given] if isinstance(given, str) else given
        matching = tuple(audience for audience in wanted if audience in given)
        if not matching:
            raise InvalidTokenError(f"token audiences {given} are none of {list(wanted)}")
        private = claims.get(CLAIMS_KEY) or {}
        namespace = str(private.get("namespace", ""))
        owner = private.get("serviceaccount") or {}
        account = self._reader.read("", "serviceaccounts", namespace, str(owner.get("name", "")))
        if account is None or account["metadata"].get("uid") != owner.get("uid"):
            raise InvalidTokenError("service account is gone or was recreated")
        extra = {"authentication.kubernetes.io/credential-id": [f"JTI={claims.get('jti', '')}"]}
        extra.update(self._check_bound(namespace, private, now))
        return VerifiedToken(
            namespace, account["metadata"]["name"], str(owner["uid"]), matching, extra
        )

    def _signed_claims(self, token: str) -> dict[str, Any]:
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._verified.get(digest)
        if claims is not None:
            self._verified.move_to_end(digest)
            return claims
        try:
            claims = jwt.decode(
                token,
                self._public,
                algorithms=["ES256"],
                issuer=self.issuer,
                # Times and audience are checked at each use, against the injected clock.
                options={
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                    "require": ["exp", "iss", "sub"],
                },
            )
        except jwt.PyJWTError as error:
            raise InvalidTokenError(f"not a token of this cluster: {error}") from error
        self._verified[digest] = claims
        if len(self._verified) > VERIFIED_CACHE_SIZE:
            self._verified.popitem(last=False)
        return claims

    def _check_bound(
        self, namespace: str, private: dict[str, Any], now: float
    ) -> dict[str, list[str]]:
        extra: dict[str, list[str]] = {}
        for kind, (group, plural, _) in _BINDABLE.items():
            ref = private.get(kind.lower())
            if not ref:
                continue
            if kind == "Node" and "pod" in private:
                # The node of a bound pod is told, not checked: the pod's life decides.
                extra["authentication.kubernetes.io/node-name"] = [ref.get("name", "")]
                extra["authentication.kubernetes.io/node-uid"] = [ref.get("uid", "")]
                continue
            found = self._reader.read(
                group, plural, None if kind == "Node" else namespace, ref.get("name", "")
            )
            if found is None or found["metadata"].get("uid") != ref.get("uid"):
                raise InvalidTokenError(f"the bound {kind} is gone or was recreated")
            if _deleted_since(found, now):
                raise InvalidTokenError(f"the bound {kind} is being deleted")
            if kind == "Pod":
                extra["authentication.kubernetes.io/pod-name"] = [ref.get("name", "")]
                extra["authentication.kubernetes.io/pod-uid"] = [ref.get("uid", "")]
        return extra

    # -- discovery ----------------------------------------------------------------------------

    def openid_configuration(self, jwks_uri: str) -> Object:
        """The OIDC discovery document of /.well-known/openid-configuration."""
        return {
            "issuer": self.issuer,
            "jwks_uri": jwks_uri,
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }

    def jwks(self) -> Object:
        """The JSON Web Key Set of /openid/v1/jwks."""
        numbers = self._public.public_numbers()
        return {
            "keys": [
                {
                    "use": "sig",
                    "kty": "EC",
                    "kid": self._key_id,
                    "crv": "P-256",
                    "alg": "ES256",
                    "x": _base64url(numbers.x.to_bytes(32, "big")),
                    "y": _base64url(numbers.y.to_bytes(32, "big")),
                }
            ]
        }


def _deleted_since(obj: Object, now: float) -> bool:
    """Whether a bound object has been deleting for over a minute past its grace period."""
    stamp = obj["metadata"].get("deletionTimestamp")
    if not stamp:
        return False
    try:
        deleted_at = datetime.datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return False
    return now > deleted_at + 60


def timestamp(seconds: float) -> str:
    """metav1.Time for seconds since the epoch."""
    at = datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
