"""Create, update and patch: from a decoded body to a stored object.

In: the server, the resource, the object or a function that makes it from the stored one. Out: the
object as stored (in the served version). The order is fixed: identity, unknown fields, defaults,
what only the server sets, mutating admission, validation, validating admission, field ownership,
allocation, storage. Nothing is awaited from field ownership on, so what was checked is what is
stored; a write that raced with another starts again from the new state.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from localkube.apiserver import crd, errors, managed_fields
from localkube.apiserver.admission_contract import Operation
from localkube.apiserver.context import Server, WriteOptions
from localkube.apiserver.errors import ApiError, FieldError
from localkube.apiserver.ipalloc import ServiceAllocator
from localkube.apiserver.kept_only import kept_only_warning
from localkube.apiserver.resources import Resource
from localkube.apiserver.store import (
    AlreadyExistsError,
    MissingError,
    StaleError,
    Stored,
)
from localkube.apiserver.strategies import check_identity, prepare_create, prepare_update
from localkube.apiserver.versions import from_storage, to_storage

JsonObject = dict[str, Any]
Transform = Callable[[JsonObject], JsonObject]

# Kubernetes' alphabet for generated names: no vowels, no look-alikes.
_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_MAX_GENERATED_BASE = 58
_ATTEMPTS = 8
_CRDS = "customresourcedefinitions.apiextensions.k8s.io"


class ObjectWriter:
    """Writes objects of any kind into one server's store."""

    def __init__(self, server: Server, allocator: ServiceAllocator) -> None:
        self._server = server
        self._allocator = allocator

    # -- create -----------------------------------------------------------------------------

    async def create(
        self,
        resource: Resource,
        namespace: str,
        obj: JsonObject,
        options: WriteOptions,
        *,
        name: str = "",
        own: bool = True,
    ) -> JsonObject:
        """Store a new object and return it. `own` is off when managedFields are already set."""
        check_identity(resource, obj, namespace, name)
        if not obj["metadata"].get("name") and not obj["metadata"].get("generateName"):
            cause = FieldError(
                "metadata.name",
                "FieldValueRequired",
                "Required value: name or generateName is required",
            )
            raise errors.invalid(resource.kind, "", [cause], resource.group)
        if warning := kept_only_warning(resource.storage, resource.kind):
            options.warnings.append(warning)
        generated = not obj["metadata"].get("name")
        for attempt in range(_ATTEMPTS):
            copy = obj if attempt == 0 and not generated else _copy(obj)
            if generated:
                copy["metadata"]["name"] = _generate_name(copy["metadata"]["generateName"])
            try:
                return await self._create_once(resource, namespace, copy, options, own=own)
            except AlreadyExistsError:
                name = copy["metadata"]["name"]
                if not generated:
                    raise errors.already_exists(resource.plural, name, resource.group) from None
        raise errors.already_exists(resource.plural, name, resource.group)

    async def _create_once(
        self,
        resource: Resource,
        namespace: str,
        obj: JsonObject,
        options: WriteOptions,
        *,
        own: bool,
    ) -> JsonObject:
        server = self._server
        name = obj["metadata"]["name"]
        obj = self._decode(resource, obj, options)
        self._check_namespace(resource, namespace)
        self._check_terminating_kind(resource)
        obj = prepare_create(resource, obj, server.timestamp())
        operation = Operation(
            verb="CREATE",
            resource=resource,
            subresource="",
            namespace=namespace or None,
            name=name,
            object=obj,
            old_object=None,
            user=options.user,
            dry_run=options.dry_run,
            options={"fieldManager": options.field_manager},
            warnings=options.warnings,
        )
        obj = await self._mutate(operation)
        if server.store.get(resource.storage, namespace, name) is not None:
            raise AlreadyExistsError(name)
        _raise_invalid(resource, name, server.policy.validate_create(resource, obj))
        await server.policy.validate(operation)
        if own:
            obj = self._own(resource, "", None, obj, options)
        if resource.storage == "services":
            self._allocate(obj, None)
        self._complete_status(resource, obj)
        # Awaiting admission took time: the namespace may have begun to go.
        self._check_namespace(resource, namespace)
        obj = to_storage(resource, obj)
        if options.dry_run:
            if server.store.get(resource.storage, namespace, name) is not None:
                raise AlreadyExistsError(name)
            return from_storage(resource, obj)
        stored = server.store.create(resource.storage, namespace, name, obj)
        return from_storage(resource, stored.object)

    def _check_namespace(self, resource: Resource, namespace: str) -> None:
        if not resource.namespaced:
            return
        stored = self._server.store.get("namespaces", "", namespace)
        if stored is None:
            raise errors.not_found("namespaces", namespace)
        if stored.object["metadata"].get("deletionTimestamp"):
            raise _terminating(resource, namespace)

    def _check_terminating_kind(self, resource: Resource) -> None:
        if resource.crd is None:
            return
        stored = self._server.store.get(_CRDS, "", resource.qualified)
        if stored is not None and stored.object["metadata"].get("deletionTimestamp"):
            raise ApiError(
                405,
                "MethodNotAllowed",
                "create not allowed while custom resource definition is terminating",
            )

    # -- update -----------------------------------------------------------------------------

    async def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        transform: Transform,
        options: WriteOptions,
        *,
        subresource: str = "",
        own: bool = True,
        whole: bool = False,
    ) -> JsonObject:
        """Replace the object by `transform(object)` and return what is stored then.

        `transform` gets a fresh copy in the served version and may be called again after a race.
        `whole` says that it ignores the copy (PUT), so that a race is the caller's conflict.
        """
        store = self._server.store
        for _ in range(_ATTEMPTS):
            stored = store.get(resource.storage, namespace, name)
            if stored is None:
                raise errors.not_found(resource.plural, name, resource.group)
            old = from_storage(resource, msgspec.json.decode(stored.data))
            new = transform(_copy(old))
            asked = self._check_preconditions(resource, stored, new, whole=whole)
            try:
                return await self._update_once(
                    resource, subresource, stored, old, new, options, own=own
                )
            except StaleError:
                if whole and asked:
                    raise errors.conflict(resource.plural, name, resource.group) from None
            except MissingError:
                raise errors.not_found(resource.plural, name, resource.group) from None
        raise errors.conflict(resource.plural, name, resource.group)

    @staticmethod
    def _check_preconditions(
        resource: Resource, stored: Stored, new: JsonObject, *, whole: bool
    ) -> str:
        metadata = new.get("metadata")
        if not isinstance(metadata, dict):
            raise errors.bad_request("metadata is not an object")
        uid, asked = metadata.get("uid"), metadata.get("resourceVersion")
        actual = stored.object["metadata"].get("uid")
        if uid and uid != actual:
            raise errors.conflict(
                resource.plural,
                stored.name,
                resource.group,
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}",
            )
        if asked and str(asked) != str(stored.revision):
            raise errors.conflict(resource.plural, stored.name, resource.group)
        if whole and not asked and resource.crd is not None:
            cause = FieldError(
                "metadata.resourceVersion",
                "FieldValueInvalid",
                "Invalid value: 0: must be specified for an update",
            )
            raise errors.invalid(resource.kind, stored.name, [cause], resource.group)
        return str(asked or "")

    async def _update_once(
        self,
        resource: Resource,
        subresource: str,
        stored: Stored,
        old: JsonObject,
        new: JsonObject,
        options: WriteOptions,
        *,
        own: bool,
    ) -> JsonObject:
        server = self._server
        name = stored.name
        check_identity(resource, new, stored.namespace, name)
        new = self._decode(resource, new, options)
        new = prepare_update(resource, subresource, new, old)
        _check_finalizers(resource, new, old)
        operation = Operation(
            verb="UPDATE",
            resource=resource,
            subresource=subresource,
            namespace=stored.namespace or None,
            name=name,
            object=new,
            old_object=old,
            user=options.user,
            dry_run=options.dry_run,
            options={"fieldManager": options.field_manager},
            warnings=options.warnings,
        )
        new = await self._mutate(operation)
        _raise_invalid(resource, name, server.policy.validate_update(resource, new, old))
        await server.policy.validate(operation)
        current = server.store.get(resource.storage, stored.namespace, name)
        if current is None or current.revision != stored.revision:
            raise StaleError(name)
        if own:
            new = self._own(resource, subresource, old, new, options)
        if resource.storage == "services":
            self._allocate(new, old)
        self._complete_status(resource, new)
        return self._store_update(resource, stored, to_storage(resource, new), options)

    def _store_update(
        self, resource: Resource, stored: Stored, new: JsonObject, options: WriteOptions
    ) -> JsonObject:
        store = self._server.store
        metadata = {**new["metadata"], "resourceVersion": str(stored.revision)}
        new = {**new, "metadata": metadata}
        if is_finished(resource, new):
            if not options.dry_run:
                last = store.delete(
                    resource.storage, stored.namespace, stored.name, stored.revision, new
                )
                return from_storage(resource, last.object)
            return from_storage(resource, new)
        if new == stored.object or options.dry_run:
            return from_storage(resource, new)
        updated = store.update(
            resource.storage, stored.namespace, stored.name, new, stored.revision
        )
        return from_storage(resource, updated.object)

    # -- the stages that create and update share ---------------------------------------------

    def _decode(self, resource: Resource, obj: JsonObject, options: WriteOptions) -> JsonObject:
        """Drop nulls and unknown fields, set defaults."""
        if resource.crd is None:
            obj = managed_fields.drop_nulls(obj)
        else:
            obj["metadata"] = managed_fields.drop_nulls(obj["metadata"])
        policy = self._server.policy
        options.warnings.extend(policy.prune(resource, obj, options.field_validation))
        return policy.default(resource, obj)

    async def _mutate(self, operation: Operation) -> JsonObject:
        policy = self._server.policy
        assert operation.object is not None
        before = msgspec.json.encode(operation.object)
        await policy.mutate(operation)
        obj = operation.object
        if msgspec.json.encode(obj) != before:
            resource = operation.resource
            assert isinstance(resource, Resource)
            policy.prune(resource, obj, "Ignore")
            operation.object = obj = policy.default(resource, obj)
        return obj

    def _own(
        self,
        resource: Resource,
        subresource: str,
        old: JsonObject | None,
        new: JsonObject,
        options: WriteOptions,
    ) -> JsonObject:
        writer = managed_fields.Writer(options.field_manager, resource.api_version, subresource)
        server = self._server
        node = server.schema_node(resource)
        return managed_fields.record_update(old, new, node, writer, server.timestamp())

    def _complete_status(self, resource: Resource, obj: JsonObject) -> None:
        """A CRD is established in the same write, so that its objects can follow at once."""
        if resource.storage == _CRDS:
            others = (one.object for one in self._server.store.list(_CRDS))
            obj["status"] = crd.build_status(obj, others, self._server.timestamp())

    def _allocate(self, service: JsonObject, old: JsonObject | None) -> None:
        stored = (one.object for one in self._server.store.list("services"))
        self._allocator.allocate(service, old, stored)


def _copy(obj: JsonObject) -> JsonObject:
    copy: JsonObject = msgspec.json.decode(msgspec.json.encode(obj))
    return copy


def _generate_name(base: str) -> str:
    """Return the base with five random characters, within 63 in all."""
    suffix = "".join(secrets.choice(_NAME_ALPHABET) for _ in range(5))
    return base[:_MAX_GENERATED_BASE] + suffix


def _raise_invalid(resource: Resource, name: str, causes: list[FieldError]) -> None:
    if causes:
        raise errors.invalid(resource.kind, name, causes, resource.group)


def _terminating(resource: Resource, namespace: str) -> ApiError:
    error = errors.forbidden(
        resource.plural,
        "",
        f"unable to create new content in namespace {namespace} because it is being terminated",
        resource.group,
    )
    cause = {
        "reason": "NamespaceTerminating",
        "message": f"namespace {namespace} is being terminated",
        "field": "metadata.namespace",
    }
    error.details = {**(error.details or {}), "causes": [cause]}
    return error


def _check_finalizers(resource: Resource, new: JsonObject, old: JsonObject) -> None:
    if not old["metadata"].get("deletionTimestamp"):
        return
    before = set(old["metadata"].get("finalizers") or ())
    added = [one for one in new["metadata"].get("finalizers") or () if one not in before]
    if added:
        cause = FieldError(
            "metadata.finalizers",
            "FieldValueForbidden",
            "Forbidden: no new finalizers can be added if the object is being deleted, found new "
            f"finalizers {added}",
        )
        raise errors.invalid(resource.kind, old["metadata"]["name"], [cause], resource.group)


def is_finished(resource: Resource, obj: JsonObject) -> bool:
    """Tell whether an object that is being deleted has nothing left to wait for."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return False
    if resource.storage == "namespaces":
        return not obj.get("spec", {}).get("finalizers")
    if resource.storage == "pods":
        return not metadata.get("deletionGracePeriodSeconds")
    return True
