"""Put the policy parts together over one store: the `Policy` that the HTTP side calls.

In: the store, the resource table and the service account signing key. Out: a `ClusterPolicy`, which
keeps itself up to date by following the store, and the objects that a new cluster starts with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localkube.apiserver import pki, rbac_bootstrap, tokens
from localkube.apiserver.admission import Admission
from localkube.apiserver.admission_contract import StoreReader
from localkube.apiserver.authn import Authenticator
from localkube.apiserver.authz import Authorizer
from localkube.apiserver.crd import CustomResources
from localkube.apiserver.openapi import OpenApi
from localkube.apiserver.rbac_reviews import Reviewer
from localkube.apiserver.schema import SchemaIndex
from localkube.apiserver.validation import Validator

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web
    from cryptography.hazmat.primitives.asymmetric import ec

    from localkube.apiserver.admission_contract import Object, Operation
    from localkube.apiserver.authn import User
    from localkube.apiserver.authz import Attributes, Decision
    from localkube.apiserver.errors import FieldError
    from localkube.apiserver.policy import Schemas
    from localkube.apiserver.resources import Resource, ResourceTable
    from localkube.apiserver.store import Store


class ClusterPolicy:
    """See `policy.Policy` for what each method promises. Close it when done."""

    def __init__(
        self, store: Store, table: ResourceTable, signing_key: ec.EllipticCurvePrivateKey
    ) -> None:
        reader = StoreReader(store)
        index = SchemaIndex()
        self.schemas: Schemas = index
        self.authorizer = Authorizer(reader)
        self.tokens = tokens.TokenAuthority(signing_key, reader)
        self.authenticator = Authenticator(self.tokens, self.authorizer, reader)
        self.custom_resources = CustomResources(reader, table, index)
        self.admission = Admission(reader, self.authorizer, validator := Validator(index), table)
        self.openapi = OpenApi(index, table.all)
        self._validator = validator
        self._reviewer = Reviewer(self.authenticator, self.authorizer, self.tokens)

    async def close(self) -> None:
        """Close the connections to webhooks."""
        await self.admission.close()

    async def authenticate(self, request: web.Request) -> User:
        return await self.authenticator.authenticate(request)

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        return self.authorizer.authorize(user, attributes)

    def default(self, resource: Resource, obj: Object) -> Object:
        return self._validator.default(resource, obj)

    def prune(self, resource: Resource, obj: Object, field_validation: str) -> list[str]:
        return self._validator.prune(resource, obj, field_validation)

    def validate_create(self, resource: Resource, obj: Object) -> list[FieldError]:
        return self._validator.validate_create(resource, obj)

    def validate_update(self, resource: Resource, new: Object, old: Object) -> list[FieldError]:
        return self._validator.validate_update(resource, new, old)

    async def mutate(self, operation: Operation) -> None:
        await self.admission.mutate(operation)

    async def validate(self, operation: Operation) -> None:
        await self.admission.validate(operation)

    async def review(self, resource: Resource, obj: Object, user: User, namespace: str) -> Object:
        return self._reviewer.review(resource.kind, obj, user, namespace)

    async def issue_token(self, namespace: str, name: str, request: Object) -> Object:
        return self.tokens.issue(namespace, name, request)

    def openapi_v2(self) -> bytes:
        return self.openapi.v2()

    def openapi_v2_protobuf(self) -> bytes:
        """The definitions of /openapi/v2 as client-go asks for them."""
        return self.openapi.v2_protobuf()

    def openapi_v3_index(self) -> bytes:
        return self.openapi.v3_index()

    def openapi_v3(self, group_version_path: str) -> bytes | None:
        return self.openapi.v3(group_version_path)

    def openid_configuration(self, jwks_uri: str) -> Object:
        return self.tokens.openid_configuration(jwks_uri)

    def jwks(self) -> Object:
        return self.tokens.jwks()

    def bootstrap_objects(self) -> list[tuple[str, Object]]:
        """(plural, object) of the RBAC objects to create where they are missing."""
        return rbac_bootstrap.build_bootstrap_objects()


def build_policy(store: Store, table: ResourceTable, pki_dir: Path) -> ClusterPolicy:
    """The policy of a cluster whose keys `pki.ensure_pki` made in `pki_dir`. Raises PkiError."""
    return ClusterPolicy(store, table, pki.load_signing_key(pki_dir / "sa.key"))
