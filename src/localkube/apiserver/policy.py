"""What the API core asks of the policy parts, in one place.

The core calls a `Policy` and knows nothing of RBAC, webhooks, tokens or schemas behind it.
`wiring.py` builds the real one from authn, authz, admission, validation, crd and openapi. Every
method may raise `ApiError`; any other exception is a defect and becomes a 500.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from localkube.apiserver.errors import FieldError
from localkube.apiserver.resources import Resource

if TYPE_CHECKING:
    from aiohttp import web

    from localkube.apiserver.admission_contract import Operation
    from localkube.apiserver.authn import User
    from localkube.apiserver.authz import Attributes, Decision

JsonObject = dict[str, Any]


class Schemas(Protocol):
    """Schemas for strategic merge, server-side apply and pruning."""

    def for_kind(self, group: str, version: str, kind: str) -> JsonObject | None:
        """Return the OpenAPI schema of a kind, None if it has none."""

    def resolve(self, ref: str) -> JsonObject:
        """Return the schema that a `$ref` names."""


class Policy(Protocol):
    """See the module's docstring."""

    schemas: Schemas

    async def authenticate(self, request: web.Request) -> User:
        """Return the caller; `system:anonymous` without credentials; raise 401 for wrong ones."""

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        """Decide with RBAC over the store's current state."""

    def default(self, resource: Resource, obj: JsonObject) -> JsonObject:
        """Return the object with its kind's default values; may change `obj`."""

    def prune(self, resource: Resource, obj: JsonObject, field_validation: str) -> list[str]:
        """Drop unknown fields in place; return warnings (Warn) or raise 400 (Strict)."""

    def validate_create(self, resource: Resource, obj: JsonObject) -> list[FieldError]:
        """Check a new object against its kind's rules."""

    def validate_update(
        self, resource: Resource, new: JsonObject, old: JsonObject
    ) -> list[FieldError]:
        """Check a changed object, immutable fields included."""

    async def mutate(self, operation: Operation) -> None:
        """Run mutating admission: built-in plugins, then webhooks; sets `operation.object`."""

    async def validate(self, operation: Operation) -> None:
        """Run validating admission; raise ApiError to reject."""

    async def review(
        self, resource: Resource, obj: JsonObject, user: User, namespace: str
    ) -> JsonObject:
        """Answer a TokenReview, SubjectAccessReview or one of their relatives."""

    async def issue_token(self, namespace: str, name: str, request: JsonObject) -> JsonObject:
        """Answer a TokenRequest for a ServiceAccount."""

    def openid_configuration(self, jwks_uri: str) -> JsonObject:
        """Return the OpenID discovery document of service account tokens."""

    def jwks(self) -> JsonObject:
        """Return the public keys that verify service account tokens."""

    def openapi_v2(self) -> bytes:
        """Return /openapi/v2 as JSON."""

    def openapi_v2_protobuf(self) -> bytes:
        """Return the definitions of /openapi/v2 as client-go asks for them."""

    def openapi_v3_index(self) -> bytes:
        """Return /openapi/v3, the list of group-version paths with their hashes, as JSON."""

    def openapi_v3(self, group_version_path: str) -> bytes | None:
        """Return one document ("api/v1", "apis/apps/v1") as JSON, None if there is none."""
