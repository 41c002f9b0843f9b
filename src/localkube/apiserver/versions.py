"""Objects between the version in which they are stored and the version in which they are served.

Built-in kinds have one version here, except Event, whose two groups name the same fields
differently. Custom resources convert as CRDs with strategy None do: only apiVersion changes.
Inputs are not changed.
"""

from __future__ import annotations

from typing import Any

from localkube.apiserver.resources import Resource

JsonObject = dict[str, Any]

_EVENTS_GROUP = "events.k8s.io"
# core/v1 name -> events.k8s.io/v1 name.
_EVENT_FIELDS = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_EVENT_FIELDS_BACK = {new: old for old, new in _EVENT_FIELDS.items()}


def stored_api_version(resource: Resource) -> str:
    """Return the apiVersion in which objects of this resource are stored."""
    if resource.storage == "events":
        return "v1"
    version = resource.storage_version
    return f"{resource.group}/{version}" if resource.group else version


def to_storage(resource: Resource, obj: JsonObject) -> JsonObject:
    """Convert from the served version to the stored one."""
    wanted = stored_api_version(resource)
    if obj.get("apiVersion") == wanted:
        return obj
    if resource.storage == "events":
        obj = {_EVENT_FIELDS_BACK.get(key, key): value for key, value in obj.items()}
    return {**obj, "apiVersion": wanted}


def from_storage(resource: Resource, obj: JsonObject) -> JsonObject:
    """Convert from the stored version to the served one; the same value if they are equal."""
    if obj.get("apiVersion") == resource.api_version:
        return obj
    if resource.group == _EVENTS_GROUP:
        obj = {_EVENT_FIELDS.get(key, key): value for key, value in obj.items()}
    return {**obj, "apiVersion": resource.api_version}
