"""The schemas of all kinds: Kubernetes' own, and those of CustomResourceDefinitions.

In: the definitions that the `kubernetes_validate` package carries as data, and CRD schemas at run
time. Out: OpenAPI v3 nodes (plain dicts) with `$ref`s of the form `#/components/schemas/<name>`.
Promises that a returned node has normalised types ("string", never ["string", "null"]; a node that
allows null carries no mark of it: null means absent in Kubernetes) and is shared: never change it.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

Schema = dict[str, Any]

KUBERNETES_VERSION = "v1.37.0"
REF_PREFIX = "#/components/schemas/"
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
JSON_VALUE = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
_SOURCE_REF = "#/$defs/"
_EXTENSION_PREFIX = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."

_SPECIAL: dict[str, Schema] = {
    # As in Kubernetes' published OpenAPI v3: scalars with several spellings.
    INT_OR_STRING: {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
    QUANTITY: {"oneOf": [{"type": "string"}, {"type": "number"}]},
    _EXTENSION_PREFIX + "JSONSchemaPropsOrArray": {},
    _EXTENSION_PREFIX + "JSONSchemaPropsOrBool": {},
    _EXTENSION_PREFIX + "JSONSchemaPropsOrStringArray": {},
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    # Optional fields that are part of a list's key need a default, or merging cannot find it.
    "io.k8s.api.core.v1.ContainerPort": {"protocol": "TCP"},
    "io.k8s.api.core.v1.ServicePort": {"protocol": "TCP"},
}

GroupVersionKind = tuple[str, str, str]


def _read_definitions() -> dict[str, Any]:
    """The package's definitions; reading all 1.8 MB takes some 5 ms, so they are not cached."""
    path = importlib.resources.files("kubernetes_validate").joinpath(
        "kubernetes-json-schema", f"{KUBERNETES_VERSION}-local", "_definitions.json"
    )
    document: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    definitions: dict[str, Any] = document["$defs"]
    return definitions


def _normalise(node: Any, *, strip_api_enums: bool = False) -> Any:
    """Rewrite one node to OpenAPI v3: single types, our `$ref` form, no root apiVersion enums."""
    if isinstance(node, list):
        return [_normalise(child) for child in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node and isinstance(node["$ref"], str):
        target = REF_PREFIX + node["$ref"].removeprefix(_SOURCE_REF)
        rest = {k: _normalise(v) for k, v in node.items() if k != "$ref"}
        return {"allOf": [{"$ref": target}], **rest} if rest else {"$ref": target}
    result: Schema = {}
    for key, value in node.items():
        if key == "properties":
            result[key] = {name: _normalise(child) for name, child in value.items()}
            if strip_api_enums:
                for name in ("apiVersion", "kind"):
                    if name in result[key]:
                        result[key][name].pop("enum", None)
        elif key == "type" and isinstance(value, list):
            result[key] = next(kind for kind in value if kind != "null")
        elif key == "enum":
            result[key] = [item for item in value if item is not None]
        elif isinstance(value, dict | list):
            result[key] = _normalise(value)
        else:
            result[key] = value
    return result


@dataclass(slots=True)
class SchemaIndex:
    """All schemas by name and by kind. Built-in nodes are normalised when first asked for."""

    _source: dict[str, Any] = field(default_factory=_read_definitions)
    _nodes: dict[str, Schema] = field(default_factory=dict)
    _kinds: dict[GroupVersionKind, str] = field(default_factory=dict)
    _custom: dict[str, Schema] = field(default_factory=dict)
    generation: int = 0
    """Grows with every change, so that derived documents know when they are stale."""

    def __post_init__(self) -> None:
        for name, node in self._source.items():
            for kind in node.get("x-kubernetes-group-version-kind", ()):
                self._kinds[kind["group"], kind["version"], kind["kind"]] = name

    def name_for_kind(self, group: str, version: str, kind: str) -> str | None:
        """The definition's name, e.g. `io.k8s.api.apps.v1.Deployment`; None if there is none."""
        return self._kinds.get((group, version, kind))

    def for_kind(self, group: str, version: str, kind: str) -> Schema | None:
        """The root schema of a kind, None if it has none."""
        name = self._kinds.get((group, version, kind))
        return None if name is None else self.definition(name)

    def definition(self, name: str) -> Schema:
        """The schema of this name. Raises KeyError."""
        node = self._custom.get(name) or self._nodes.get(name)
        if node is None:
            source = self._source[name]
            is_kind = "x-kubernetes-group-version-kind" in source
            node = _SPECIAL.get(name) or _normalise(source, strip_api_enums=is_kind)
            for field_name, value in _DEFAULTS.get(name, {}).items():
                node["properties"][field_name]["default"] = value
            self._nodes[name] = node
        return node

    def resolve(self, ref: str) -> Schema:
        """The schema that a `$ref` names. Raises KeyError."""
        return self.definition(ref.removeprefix(REF_PREFIX))

    def deref(self, node: Schema) -> Schema:
        """The node with `$ref` and a single-entry `allOf` followed; siblings of the ref win."""
        while True:
            if "$ref" in node:
                node = self.resolve(node["$ref"])
                continue
            parts = node.get("allOf")
            if not parts or "$ref" not in parts[0]:
                return node
            siblings = {k: v for k, v in node.items() if k != "allOf"}
            node = {**self.resolve(parts[0]["$ref"]), **siblings}

    def ref_name(self, node: Schema) -> str | None:
        """The name that the node refers to, None for an inline node."""
        ref = node.get("$ref")
        if ref is None:
            parts: list[Schema] = node.get("allOf") or [{}]
            ref = parts[0].get("$ref")
        return None if ref is None else str(ref).removeprefix(REF_PREFIX)

    def field_schema(self, schema: Schema, name: str) -> Schema | None:
        """The child node of an object's field or of a map's value, dereferenced; None if unknown."""
        node = self.deref(schema)
        child = (node.get("properties") or {}).get(name)
        if child is None:
            child = node.get("additionalProperties")
        return self.deref(child) if isinstance(child, dict) else None

    def item_schema(self, schema: Schema) -> Schema | None:
        """The node of an array's items, dereferenced; None if unknown."""
        items = self.deref(schema).get("items")
        return self.deref(items) if isinstance(items, dict) else None

    def names(self) -> Iterator[str]:
        """The names of all definitions."""
        yield from self._source
        yield from self._custom

    def kinds(self) -> Iterator[tuple[GroupVersionKind, str]]:
        """All kinds and the names of their definitions."""
        yield from tuple(self._kinds.items())

    def refs_in(self, node: Any) -> Iterator[str]:
        """The names that a node refers to directly."""
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref" and isinstance(value, str):
                    yield value.removeprefix(REF_PREFIX)
                elif isinstance(value, dict | list):
                    yield from self.refs_in(value)
        elif isinstance(node, list):
            for value in node:
                yield from self.refs_in(value)

    # -- kinds that come and go ---------------------------------------------------------------

    def add_crd(self, group: str, version: str, kind: str, list_kind: str, schema: Schema) -> str:
        """Serve the schema of one version of a CRD (and of its list); returns the name."""
        name = definition_name(group, version, kind)
        root = custom_root(schema, group, version, kind)
        list_name = definition_name(group, version, list_kind)
        self._custom[name] = root
        self._custom[list_name] = custom_list(name, group, version, list_kind)
        self._kinds[group, version, kind] = name
        self._kinds[group, version, list_kind] = list_name
        self.generation += 1
        return name

    def remove_crd(self, group: str, version: str, kind: str, list_kind: str) -> None:
        """Forget a version of a CRD; unknown ones are ignored."""
        for each in (kind, list_kind):
            name = self._kinds.pop((group, version, each), None)
            if name is not None:
                self._custom.pop(name, None)
        self.generation += 1


def definition_name(group: str, version: str, kind: str) -> str:
    """The name Kubernetes publishes for a custom kind: reversed group, version, kind."""
    return ".".join([*reversed(group.split(".")), version, kind])


def custom_root(schema: Schema, group: str, version: str, kind: str) -> Schema:
    """A CRD's schema with the standard type and metadata fields that every object has."""
    properties = dict(schema.get("properties") or {})
    properties["apiVersion"] = {
        "type": "string",
        "description": "APIVersion names the version of the schema of this object.",
    }
    properties["kind"] = {
        "type": "string",
        "description": "Kind names the REST resource that this object represents.",
    }
    properties["metadata"] = {
        "allOf": [{"$ref": REF_PREFIX + OBJECT_META}],
        "description": "Standard object's metadata.",
    }
    return {
        **schema,
        "type": "object",
        "properties": properties,
        "x-kubernetes-group-version-kind": [{"group": group, "version": version, "kind": kind}],
    }


def custom_list(item: str, group: str, version: str, list_kind: str) -> Schema:
    """The schema of a list of custom objects."""
    return {
        "type": "object",
        "required": ["items"],
        "description": f"{list_kind} is a list of {item.rpartition('.')[2]}.",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "items": {"type": "array", "items": {"$ref": REF_PREFIX + item}},
            "metadata": {"allOf": [{"$ref": REF_PREFIX + LIST_META}]},
        },
        "x-kubernetes-group-version-kind": [
            {"group": group, "version": version, "kind": list_kind}
        ],
    }
