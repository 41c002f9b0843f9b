"""The `paths` part of the OpenAPI documents: which operations each resource has.

In: a resource. Out: OpenAPI v3 path items. kubectl reads them to learn whether the server validates
fields itself (parameter `fieldValidation` of PATCH), whether it can dry-run, which patch types a
kind takes, and which kind a resource path serves (`x-kubernetes-group-version-kind`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localkube.apiserver.resources import Resource

PathItem = dict[str, Any]
REF_PREFIX = "#/components/schemas/"

_PATCH_TYPES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
)
_STRATEGIC = "application/strategic-merge-patch+json"
_PATCH_BODY = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
_STATUS_BODY = "io.k8s.apimachinery.pkg.apis.meta.v1.Status"


def _query(name: str, description: str, kind: str = "string") -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "description": description,
        "schema": {"type": kind, "uniqueItems": True},
    }


_PRETTY = _query("pretty", "If 'true', then the output is pretty printed.")
_DRY_RUN = _query("dryRun", "All: run every stage of the request, but persist nothing.")
_MANAGER = _query("fieldManager", "The name of the actor that makes these changes.")
_VALIDATION = _query(
    "fieldValidation", "What to do with unknown or duplicate fields: Ignore, Warn or Strict."
)
_FORCE = _query("force", "Take over fields that other managers own (apply only).", "boolean")
_LIST_PARAMETERS = [
    _query("allowWatchBookmarks", "Ask for BOOKMARK events in a watch.", "boolean"),
    _query("continue", "The continue token of the previous page."),
    _query("fieldSelector", "Select objects by their fields."),
    _query("labelSelector", "Select objects by their labels."),
    _query("limit", "The largest number of objects on a page.", "integer"),
    _query("resourceVersion", "The resource version that the answer must not be older than."),
    _query("resourceVersionMatch", "How resourceVersion is applied to a list."),
    _query("sendInitialEvents", "Begin a watch with the present objects.", "boolean"),
    _query("timeoutSeconds", "How long a list or watch may take.", "integer"),
    _query("watch", "Stream changes instead of one list.", "boolean"),
]
_DELETE_PARAMETERS = [
    _DRY_RUN,
    _query("gracePeriodSeconds", "Seconds before the object is deleted.", "integer"),
    _query("orphanDependents", "Superseded by propagationPolicy.", "boolean"),
    _query("propagationPolicy", "Orphan, Background or Foreground."),
]
_WRITE_PARAMETERS = [_DRY_RUN, _MANAGER, _VALIDATION]
_WORDS = {"get": "read", "post": "create", "put": "replace", "patch": "partially update"}


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _content(name: str | None, *types: str) -> dict[str, Any]:
    schema = {"$ref": REF_PREFIX + name} if name else {"type": "object"}
    return {kind: {"schema": schema} for kind in types or ("application/json",)}


class ResourcePaths:
    """Path items of one resource; `schema_name` and `list_name` are its definitions, if any."""

    def __init__(
        self, resource: Resource, schema_name: str | None, list_name: str | None, *, strategic: bool
    ) -> None:
        self._resource = resource
        self._schema = schema_name
        self._list = list_name
        self._patch_types = (*_PATCH_TYPES, _STRATEGIC) if strategic else _PATCH_TYPES
        self._kind = {
            "group": resource.group,
            "version": resource.version,
            "kind": resource.kind,
        }

    def items(self) -> Iterator[tuple[str, PathItem]]:
        """(path, item) for the collection, one object, and its subresources."""
        resource = self._resource
        root = f"/apis/{resource.group}" if resource.group else "/api"
        root += f"/{resource.version}"
        parameters = [_PRETTY]
        if resource.namespaced:
            if "list" in resource.verbs:
                yield (
                    f"{root}/{resource.plural}",
                    {
                        "get": self._operation("get", "list", self._list, _LIST_PARAMETERS),
                        "parameters": parameters,
                    },
                )
            root += "/namespaces/{namespace}"
            parameters = [*parameters, _path_parameter("namespace")]
        collection = self._collection()
        if collection:
            yield f"{root}/{resource.plural}", {**collection, "parameters": parameters}
        parameters = [*parameters, _path_parameter("name")]
        single = self._single("", set(resource.verbs))
        path = f"{root}/{resource.plural}/{{name}}"
        if single:
            yield path, {**single, "parameters": parameters}
        for name in sorted(resource.subresources & {"status", "scale"}):
            item = self._single(name, {"get", "update", "patch"})
            yield f"{path}/{name}", {**item, "parameters": parameters}

    def _collection(self) -> PathItem:
        verbs = self._resource.verbs
        item: PathItem = {}
        if "list" in verbs:
            item["get"] = self._operation("get", "list", self._list, _LIST_PARAMETERS)
        if "create" in verbs:
            item["post"] = self._operation("post", "post", self._schema, _WRITE_PARAMETERS)
        if "deletecollection" in verbs:
            item["delete"] = self._operation(
                "delete", "deletecollection", _STATUS_BODY, _LIST_PARAMETERS + _DELETE_PARAMETERS
            )
        return item

    def _single(self, subresource: str, verbs: set[str]) -> PathItem:
        schema = "io.k8s.api.autoscaling.v1.Scale" if subresource == "scale" else self._schema
        item: PathItem = {}
        if "get" in verbs:
            item["get"] = self._operation("get", "get", schema, [], subresource)
        if "update" in verbs:
            item["put"] = self._operation("put", "put", schema, _WRITE_PARAMETERS, subresource)
        if "delete" in verbs:
            item["delete"] = self._operation("delete", "delete", _STATUS_BODY, _DELETE_PARAMETERS)
        if "patch" in verbs:
            item["patch"] = self._operation(
                "patch", "patch", schema, [*_WRITE_PARAMETERS, _FORCE], subresource
            )
        return item

    def _operation(
        self,
        method: str,
        action: str,
        schema: str | None,
        parameters: list[dict[str, Any]],
        subresource: str = "",
    ) -> dict[str, Any]:
        resource = self._resource
        words = subresource.capitalize()
        operation: dict[str, Any] = {
            "description": f"{_WORDS.get(method, action)} {subresource or 'object'} of kind "
            f"{resource.kind}",
            "operationId": f"{action}{'Namespaced' if resource.namespaced else ''}"
            f"{resource.group.replace('.', '')}{resource.version}{resource.kind}{words}",
            "tags": [f"{resource.group or 'core'}_{resource.version}"],
            "parameters": parameters,
            "responses": {"200": {"description": "OK", "content": _content(schema)}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": self._kind,
        }
        if method in ("post", "put"):
            operation["requestBody"] = {"required": True, "content": _content(schema)}
        if method == "patch":
            operation["requestBody"] = {
                "required": True,
                "content": _content(_PATCH_BODY, *self._patch_types),
            }
        return operation
