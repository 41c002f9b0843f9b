"""Delete and deletecollection: preconditions, grace, propagation and finalizers.

In: the object's place and the DeleteOptions. Out: the object that is now being deleted, or a
Status when it is gone. An object with finalizers (or a namespace, or a running pod) only gets its
deletionTimestamp; whoever removes the last reason to wait removes it (see `writing`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from localkube.apiserver import errors
from localkube.apiserver.admission_contract import Operation
from localkube.apiserver.context import Call, Server, WriteOptions
from localkube.apiserver.errors import ApiError
from localkube.apiserver.request_info import is_true
from localkube.apiserver.resources import Resource
from localkube.apiserver.store import MissingError, StaleError, Stored
from localkube.apiserver.versions import from_storage
from localkube.apiserver.writing import is_finished
from localkube.kit import clock

JsonObject = dict[str, Any]

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_POLICIES = ("Background", "Foreground", "Orphan")
_PERMANENT_NAMESPACES = frozenset({"default", "kube-system", "kube-public", "kube-node-lease"})
_CRD_STORAGE = "customresourcedefinitions.apiextensions.k8s.io"
CRD_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
_DEFAULT_GRACE_S = 30
_ATTEMPTS = 8


def delete_options(call: Call, body: JsonObject) -> JsonObject:
    """Return the DeleteOptions of a request: its body, completed by query parameters.

    Raises ApiError 400 or 422 for values that make no sense.
    """
    options = dict(body)
    query = call.request.query
    if "gracePeriodSeconds" in query:
        try:
            options["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
        except ValueError:
            raise errors.bad_request("gracePeriodSeconds is not a whole number") from None
    if "propagationPolicy" in query:
        options["propagationPolicy"] = query["propagationPolicy"]
    if "orphanDependents" in query:
        options["orphanDependents"] = is_true(query["orphanDependents"])
    if options.get("orphanDependents") is not None and "propagationPolicy" not in options:
        options["propagationPolicy"] = "Orphan" if options["orphanDependents"] else "Background"
    policy = options.get("propagationPolicy")
    if policy not in (None, *_POLICIES):
        raise ApiError(
            422,
            "Invalid",
            f'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: '
            f'"{policy}": supported values: "Background", "Foreground", "Orphan", "nil"',
        )
    grace = options.get("gracePeriodSeconds")
    if grace is not None and not isinstance(grace, int):
        raise errors.bad_request("gracePeriodSeconds is not a whole number")
    return options


async def delete_object(
    server: Server,
    resource: Resource,
    namespace: str,
    name: str,
    options: JsonObject,
    write: WriteOptions,
) -> tuple[JsonObject, bool]:
    """Delete one object; return its last state and whether it is gone already."""
    store = server.store
    dry_run = write.dry_run or "All" in (options.get("dryRun") or ())
    for _ in range(_ATTEMPTS):
        stored = store.get(resource.storage, namespace, name)
        if stored is None:
            raise errors.not_found(resource.plural, name, resource.group)
        _check_preconditions(resource, stored, options.get("preconditions") or {})
        if resource.storage == "namespaces" and name in _PERMANENT_NAMESPACES:
            raise errors.forbidden("namespaces", name, "this namespace may not be deleted")
        await server.policy.validate(
            Operation(
                verb="DELETE",
                resource=resource,
                subresource="",
                namespace=namespace or None,
                name=name,
                object=None,
                old_object=from_storage(resource, msgspec.json.decode(stored.data)),
                user=write.user,
                dry_run=dry_run,
                options=options,
                warnings=write.warnings,
            )
        )
        try:
            return _delete_now(server, resource, stored, options, dry_run=dry_run)
        except (StaleError, MissingError):
            continue
    raise errors.conflict(resource.plural, name, resource.group)


def _delete_now(
    server: Server, resource: Resource, stored: Stored, options: JsonObject, *, dry_run: bool
) -> tuple[JsonObject, bool]:
    store = server.store
    marked = mark_deleted(server, resource, stored.object, options)
    gone = is_finished(resource, marked)
    if dry_run:
        return from_storage(resource, marked), gone
    place = (resource.storage, stored.namespace, stored.name)
    if gone:
        last = store.delete(*place, stored.revision, marked)
    elif marked == stored.object:
        last = stored
    else:
        last = store.update(*place, marked, stored.revision)
    return from_storage(resource, last.object), gone


def mark_deleted(
    server: Server, resource: Resource, obj: JsonObject, options: JsonObject
) -> JsonObject:
    """Return the object with its deletion begun: timestamps, grace, propagation finalizers."""
    metadata = {**obj["metadata"]}
    marked = {**obj, "metadata": metadata}
    began = bool(metadata.get("deletionTimestamp"))
    finalizers = _finalizers(resource, metadata, options)
    if finalizers:
        metadata["finalizers"] = finalizers
    else:
        metadata.pop("finalizers", None)
    grace = _grace_s(resource, obj, options)
    if not began or grace < metadata.get("deletionGracePeriodSeconds", 0):
        # Shortening counts from now, too: the node stops waiting then.
        deadline = server.now() + timedelta(seconds=grace)
        metadata["deletionTimestamp"] = clock.rfc3339(deadline)
        metadata["deletionGracePeriodSeconds"] = grace
        if not began and "generation" in metadata:
            metadata["generation"] += 1
    if resource.storage == "namespaces":
        metadata.pop("deletionGracePeriodSeconds", None)
        marked["status"] = {**obj.get("status", {}), "phase": "Terminating"}
    return marked


def _finalizers(resource: Resource, metadata: JsonObject, options: JsonObject) -> list[str]:
    finalizers = list(metadata.get("finalizers") or ())
    policy = options.get("propagationPolicy")
    if policy is not None:
        wanted = {"Foreground": FOREGROUND, "Orphan": ORPHAN}.get(policy)
        finalizers = [one for one in finalizers if one not in (FOREGROUND, ORPHAN)]
        if wanted:
            finalizers.append(wanted)
    if (
        resource.storage == _CRD_STORAGE
        and not metadata.get("deletionTimestamp")
        and CRD_FINALIZER not in finalizers
    ):
        finalizers.append(CRD_FINALIZER)
    return finalizers


def _grace_s(resource: Resource, obj: JsonObject, options: JsonObject) -> int:
    if resource.storage != "pods":
        return 0
    spec, phase = obj.get("spec") or {}, (obj.get("status") or {}).get("phase")
    if not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0  # nothing runs that could use the time
    grace = options.get("gracePeriodSeconds")
    if grace is None:
        if obj["metadata"].get("deletionTimestamp"):
            return int(obj["metadata"].get("deletionGracePeriodSeconds", 0))
        grace = spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S)
    return max(int(grace), 0)


def _check_preconditions(resource: Resource, stored: Stored, preconditions: JsonObject) -> None:
    uid, revision = preconditions.get("uid"), preconditions.get("resourceVersion")
    actual = stored.object["metadata"].get("uid")
    why = ""
    if uid and uid != actual:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {actual}"
    elif revision and str(revision) != str(stored.revision):
        why = (
            f"Precondition failed: ResourceVersion in precondition: {revision}, "
            f"ResourceVersion in object meta: {stored.revision}"
        )
    if why:
        raise errors.conflict(resource.plural, stored.name, resource.group, why)


def success_status(resource: Resource, obj: JsonObject) -> JsonObject:
    """Return the Status that answers the deletion of an object that is gone."""
    details: JsonObject = {"name": obj["metadata"]["name"]}
    if resource.group:
        details["group"] = resource.group
    details["kind"] = resource.plural
    details["uid"] = obj["metadata"].get("uid", "")
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    }
