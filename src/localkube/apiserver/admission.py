"""Admission: everything between authorization and storage that may change or refuse an object.

In: an `Operation`. Out: its object as it is to be stored and its warnings, or ApiError. The order
is Kubernetes': built-in mutation, mutating webhooks, (the caller validates the object), built-in
checks, validating webhooks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from localkube.apiserver.admission_client import WebhookClient
from localkube.apiserver.admission_plugins import BuiltinAdmission
from localkube.apiserver.admission_webhooks import Webhooks
from localkube.apiserver.crd import CustomVersion

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader, Operation
    from localkube.apiserver.authz import Authorizer
    from localkube.apiserver.resources import Resource, ResourceTable
    from localkube.apiserver.validation import Validator


class Admission:
    """All admission over one store. Close it when done."""

    def __init__(
        self,
        reader: ObjectReader,
        authorizer: Authorizer,
        validator: Validator,
        table: ResourceTable,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._builtin = BuiltinAdmission(reader, authorizer, clock=clock)
        self._client = WebhookClient(reader)
        self._validator = validator
        self._table = table
        self._webhooks = Webhooks(reader, self._client, self._versions, self._redecode)

    async def close(self) -> None:
        """Close the connections to webhooks."""
        await self._client.close()

    async def mutate(self, operation: Operation) -> None:
        """Run built-in mutation and mutating webhooks; sets `operation.object`."""
        await self._builtin.mutate(operation)
        await self._webhooks.mutate(operation)
        await self._builtin.settle(operation)

    async def validate(self, operation: Operation) -> None:
        """Run built-in checks and validating webhooks; for DELETE the mutating ones as well."""
        if operation.verb in ("DELETE", "CONNECT"):
            # There is no object to change, but a mutating webhook may still deny.
            await self._webhooks.mutate(operation)
        self._builtin.validate(operation)
        await self._webhooks.validate(operation)

    def _versions(self, group: str, plural: str) -> list[str]:
        """Versions into which an object can be converted: those of its CRD."""
        return [
            resource.version
            for resource in self._table.versions(group, plural)
            if isinstance(resource.crd, CustomVersion)
        ]

    def _redecode(self, operation: Operation, obj: Object) -> Object:
        resource = cast("Resource", operation.resource)
        if operation.subresource not in ("", "status"):
            return obj
        self._validator.prune(resource, obj, "Ignore")
        return self._validator.default(resource, obj)
