"""The OpenAPI documents that kubectl and client generators read.

In: the schema index and the resources served now. Out: /openapi/v2 in JSON and protobuf, JSON of the /openapi/v3
index, and of one v3 document per group version. Promises: a document is built when first asked for,
its hash changes whenever, and only when, what it is made of changes, and it is complete: every
`$ref` in it resolves in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from localkube.apiserver import openapi_protobuf
from localkube.apiserver.openapi_paths import ResourcePaths
from localkube.apiserver.schema import KUBERNETES_VERSION, REF_PREFIX, SchemaIndex

if TYPE_CHECKING:
    from localkube.apiserver.resources import Resource

_INFO = {"title": "Kubernetes", "version": KUBERNETES_VERSION}
_V2_PREFIX = "#/definitions/"
_PATCH_BODY = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch"
_V2_ANSWERS = (
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.api.autoscaling.v1.Scale",
)
_PATCH_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Patch gives a name to the body of a PATCH request.",
}
_DOCUMENT_FORMAT = "1"
"""Part of every hash: raise it when the way documents are built changes."""


class OpenApi:
    """Documents over the current resources. Cheap to create; builds nothing before it is asked."""

    def __init__(self, schemas: SchemaIndex, resources: Callable[[], Iterable[Resource]]) -> None:
        self._schemas = schemas
        self._resources = resources
        self._documents: dict[str, tuple[str, bytes]] = {}
        self._v2: tuple[str, bytes] | None = None
        self._v2_protobuf: tuple[str, bytes] | None = None

    # -- version 3 ----------------------------------------------------------------------------

    def v3_index(self) -> bytes:
        """The list of documents, with the hash of each in its URL."""
        paths = {
            path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={self._hash(resources)}"}
            for path, resources in sorted(self._by_path().items())
        }
        return msgspec.json.encode({"paths": paths})

    def v3(self, path: str) -> bytes | None:
        """The document of `api/v1` or `apis/<group>/<version>`; None if nothing is served there."""
        resources = self._by_path().get(path.strip("/"))
        if resources is None:
            return None
        digest = self._hash(resources)
        cached = self._documents.get(path)
        if cached is not None and cached[0] == digest:
            return cached[1]
        content = msgspec.json.encode(self._build_v3(resources))
        self._documents[path] = (digest, content)
        return content

    def v3_hash(self, path: str) -> str | None:
        """The hash of a document, for its ETag; None if nothing is served there."""
        resources = self._by_path().get(path.strip("/"))
        return None if resources is None else self._hash(resources)

    def _by_path(self) -> dict[str, list[Resource]]:
        found: dict[str, list[Resource]] = {}
        for resource in self._resources():
            group = f"apis/{resource.group}" if resource.group else "api"
            found.setdefault(f"{group}/{resource.version}", []).append(resource)
        return found

    def _hash(self, resources: list[Resource]) -> str:
        digest = hashlib.sha512(f"{_DOCUMENT_FORMAT}{KUBERNETES_VERSION}".encode())
        for resource in resources:
            name = self._name(resource)
            facts = [
                *(resource.plural, resource.kind, resource.namespaced),
                *(sorted(resource.verbs), sorted(resource.subresources)),
                self._schemas.definition(name) if name and resource.crd is not None else name,
            ]
            digest.update(msgspec.json.encode(facts))
        return digest.hexdigest().upper()

    def _name(self, resource: Resource) -> str | None:
        return self._schemas.name_for_kind(resource.group, resource.version, resource.kind)

    def _build_v3(self, resources: list[Resource]) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        names: set[str] = set()
        for resource in resources:
            name = self._name(resource)
            list_name = self._schemas.name_for_kind(
                resource.group, resource.version, resource.list_kind
            )
            names.update(filter(None, (name, list_name)))
            generator = ResourcePaths(resource, name, list_name, strategic=resource.crd is None)
            paths.update(generator.items())
        names.update(self._schemas.refs_in(paths))
        components = self._closure(names)
        return {
            "openapi": "3.0.0",
            "info": _INFO,
            "paths": paths,
            "components": {"schemas": components},
        }

    def _closure(self, names: Iterable[str]) -> dict[str, Any]:
        """The definitions of these names and of all that they refer to."""
        found: dict[str, Any] = {}
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in found:
                continue
            found[name] = _PATCH_SCHEMA if name == _PATCH_BODY else self._schemas.definition(name)
            pending.extend(self._schemas.refs_in(found[name]))
        return dict(sorted(found.items()))

    # -- version 2 ----------------------------------------------------------------------------

    def v2(self) -> bytes:
        """All kinds as one Swagger 2.0 document."""
        digest = self._v2_hash()
        if self._v2 is None or self._v2[0] != digest:
            self._v2 = (digest, msgspec.json.encode(self._build_v2()))
        return self._v2[1]

    def v2_protobuf(self) -> bytes:
        """The same document's definitions in protobuf."""
        digest = self._v2_hash()
        if self._v2_protobuf is None or self._v2_protobuf[0] != digest:
            self._v2_protobuf = (digest, openapi_protobuf.encode(self._build_v2()))
        return self._v2_protobuf[1]

    def _v2_hash(self) -> str:
        hashes = (self._hash(group) for _, group in sorted(self._by_path().items()))
        return hashlib.sha512("".join(hashes).encode()).hexdigest()

    def _build_v2(self) -> dict[str, Any]:
        names: set[str] = set()
        paths: dict[str, Any] = {}
        for resource in self._resources():
            name = self._name(resource)
            list_name = self._schemas.name_for_kind(
                resource.group, resource.version, resource.list_kind
            )
            names.update(filter(None, (name, list_name)))
            generator = ResourcePaths(resource, name, list_name, strategic=resource.crd is None)
            for path, item in generator.items():
                paths[path] = {key: _v2_operation(key, value) for key, value in item.items()}
        names.update(_V2_ANSWERS)
        definitions = {name: _v2_node(node) for name, node in self._closure(names).items()}
        return {"swagger": "2.0", "info": _INFO, "paths": paths, "definitions": definitions}


def _v2_operation(key: str, operation: Any) -> Any:
    if key == "parameters":
        return [_v2_parameter(parameter) for parameter in operation]
    result = {k: v for k, v in operation.items() if k not in ("requestBody", "responses")}
    result["parameters"] = [_v2_parameter(parameter) for parameter in operation["parameters"]]
    if body := operation.get("requestBody"):
        schema = next(iter(body["content"].values()))["schema"]
        if schema.get("$ref", "").endswith(_PATCH_BODY):
            schema = {"type": "object"}
            result["consumes"] = list(body["content"])
        result["parameters"].append(
            {"name": "body", "in": "body", "required": True, "schema": _v2_node(schema)}
        )
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    result["responses"] = {"200": {"description": "OK", "schema": _v2_node(answer)}}
    return result


def _v2_parameter(parameter: dict[str, Any]) -> dict[str, Any]:
    schema = parameter["schema"]
    return {**{k: v for k, v in parameter.items() if k != "schema"}, **schema}


def _v2_node(node: Any) -> Any:
    """An OpenAPI v3 node in version 2: no oneOf, no nullable, refs beside siblings."""
    if isinstance(node, list):
        return [_v2_node(child) for child in node]
    if not isinstance(node, dict):
        return node
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "$ref" and isinstance(value, str):
            result[key] = _V2_PREFIX + value.removeprefix(REF_PREFIX)
        elif key == "allOf" and value and "$ref" in value[0]:
            result["$ref"] = _V2_PREFIX + value[0]["$ref"].removeprefix(REF_PREFIX)
        elif key in ("oneOf", "anyOf", "allOf", "not", "nullable"):
            if key == "oneOf" and {"type": "string"} in value:
                result["type"] = "string"
        elif key == "properties":
            result[key] = {name: _v2_node(child) for name, child in value.items()}
        else:
            result[key] = _v2_node(value)
    if node.get("x-kubernetes-int-or-string"):
        result.update(type="string", format="int-or-string")
    return result
