"""PATCH: choosing how the patch is applied, and server-side apply.

In: a `Call` with a patch body. Out: the patched object, and whether it was created (apply only).
"""

from __future__ import annotations

from typing import Any

from localkube.apiserver import errors, managed_fields
from localkube.apiserver.bodies import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    PATCH_TYPES,
    read_patch,
)
from localkube.apiserver.context import Call, WriteOptions, write_options
from localkube.apiserver.errors import ApiError, FieldError
from localkube.apiserver.patch_json import apply_json_patch, apply_merge_patch
from localkube.apiserver.patch_strategic import apply_strategic_patch
from localkube.apiserver.schema_nodes import EMPTY, SchemaNode
from localkube.apiserver.strategies import check_identity
from localkube.apiserver.writing import ObjectWriter, Transform

JsonObject = dict[str, Any]


def patch_transform(media_type: str, patch: Any, node: SchemaNode) -> Transform:
    """Return the function that applies this patch to an object."""

    def transform(old: JsonObject) -> JsonObject:
        if media_type == JSON_PATCH:
            new = apply_json_patch(old, patch)
        elif media_type == MERGE_PATCH:
            if not isinstance(patch, dict):
                raise errors.bad_request("a merge patch is an object")
            new = apply_merge_patch(old, patch)
        else:
            new = apply_strategic_patch(old, patch, node)
        if not isinstance(new, dict):
            raise errors.bad_request("the patch does not leave an object")
        return new

    return transform


async def patch_object(
    call: Call, writer: ObjectWriter, subresource: str
) -> tuple[JsonObject, bool]:
    """Apply the request's patch to the named object or its subresource."""
    media_type, patch = await read_patch(call.request)
    options = write_options(call)
    resource = call.resource
    if media_type == APPLY_PATCH:
        return await _apply(call, writer, subresource, patch, options)
    node = EMPTY
    if media_type not in (JSON_PATCH, MERGE_PATCH):
        if resource.crd is not None:
            # Strategic merge needs keys that only built-in types declare.
            accepted = [one for one in PATCH_TYPES if "strategic" not in one]
            raise errors.unsupported_media_type(media_type, accepted)
        node = call.server.schema_node(resource)
    patched = await writer.update(
        resource,
        call.namespace,
        call.name,
        patch_transform(media_type, patch, node),
        options,
        subresource=subresource,
    )
    return patched, False


async def _apply(
    call: Call, writer: ObjectWriter, subresource: str, applied: Any, options: WriteOptions
) -> tuple[JsonObject, bool]:
    _check_apply(call, applied)
    resource, server = call.resource, call.server
    check_identity(resource, applied, call.namespace, call.name)
    if applied["metadata"].get("managedFields"):
        raise errors.bad_request("metadata.managedFields must be nil")
    options.warnings.extend(server.policy.prune(resource, applied, options.field_validation))
    _limit(call, subresource, applied)
    owner = managed_fields.Writer(options.field_manager, resource.api_version, subresource)
    node = server.schema_node(resource)

    def transform(old: JsonObject) -> JsonObject:
        return managed_fields.apply(
            old, applied, node, owner, server.timestamp(), force=options.force
        )

    def exists() -> bool:
        return server.store.get(resource.storage, call.namespace, call.name) is not None

    while True:
        if exists():
            try:
                updated = await writer.update(
                    resource,
                    call.namespace,
                    call.name,
                    transform,
                    options,
                    subresource=subresource,
                    own=False,
                )
            except ApiError as error:
                if error.reason != "NotFound" or exists():
                    raise
                continue  # somebody deleted it meanwhile: to apply is to create it, if it may be
            return updated, False
        if subresource or applied["metadata"].get("uid"):
            raise errors.not_found(resource.plural, call.name, resource.group)
        new = managed_fields.apply(
            None, applied, node, owner, server.timestamp(), force=options.force
        )
        try:
            created = await writer.create(
                resource, call.namespace, new, options, name=call.name, own=False
            )
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            continue  # somebody else created it meanwhile: apply to that
        return created, True


def _check_apply(call: Call, applied: Any) -> None:
    if not isinstance(applied, dict):
        raise errors.bad_request("an apply patch is an object")
    if not call.option("fieldManager"):
        cause = FieldError(
            "fieldManager", "FieldValueRequired", "Required value: is required for apply patch"
        )
        raise errors.invalid("PatchOptions", "", [cause], "meta.k8s.io")
    if not applied.get("kind") or not applied.get("apiVersion"):
        raise errors.bad_request(
            "an apply patch names its apiVersion and kind: "
            f"write apiVersion: {call.resource.api_version} and kind: {call.resource.kind}"
        )


def _limit(call: Call, subresource: str, applied: JsonObject) -> None:
    """Drop what this endpoint does not write, so that nobody comes to own it here."""
    if subresource == "status":
        for key in [k for k in applied if k not in ("apiVersion", "kind", "metadata", "status")]:
            del applied[key]
    elif "status" in call.resource.subresources:
        applied.pop("status", None)
