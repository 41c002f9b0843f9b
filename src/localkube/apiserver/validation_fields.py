"""Find and drop fields that a kind does not have.

In: a schema node and a value. Out: the paths of unknown fields, in Kubernetes' form
(`spec.template.spec.containers[0].foo`); they are removed from the value where asked. Honours
x-kubernetes-preserve-unknown-fields and x-kubernetes-embedded-resource.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localkube.apiserver.schema import OBJECT_META, REF_PREFIX

if TYPE_CHECKING:
    from localkube.apiserver.schema import Schema, SchemaIndex

_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_EMBEDDED = "x-kubernetes-embedded-resource"
_EMBEDDED_PROPERTIES: dict[str, Any] = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {"$ref": REF_PREFIX + OBJECT_META},
}
UNKNOWN_FIELDS_MAX = 100
"""Kubernetes stops reporting somewhere too; nobody reads more."""


def prune_unknown(
    schemas: SchemaIndex, node: Schema, value: Any, *, custom: bool = False
) -> list[str]:
    """Remove unknown fields from `value` in place, and return their paths.

    In built-in kinds fields that are null go as well: null means absent there. `custom` says that the node is a CRD's: there a plain `type: object` keeps no field, while in
    built-in kinds it is a free map (RawExtension, FieldsV1).
    """
    found: list[str] = []
    _Pruner(schemas, found).visit(node, value, "", closed=custom)
    return found[:UNKNOWN_FIELDS_MAX]


class _Pruner:
    def __init__(self, schemas: SchemaIndex, found: list[str]) -> None:
        self._schemas = schemas
        self._found = found

    def visit(self, node: Schema, value: Any, path: str, *, closed: bool) -> None:
        if "$ref" in node or "allOf" in node:
            # Only built-in definitions are referred to, ObjectMeta inside a custom kind as well.
            closed = closed and self._schemas.ref_name(node) is None
            node = self._schemas.deref(node)
        if isinstance(value, dict):
            self._visit_map(node, value, path, closed=closed)
        elif isinstance(value, list):
            items = node.get("items")
            if isinstance(items, dict):
                for index, item in enumerate(value):
                    if isinstance(item, dict | list):
                        self.visit(items, item, f"{path}[{index}]", closed=closed)

    def _visit_map(self, node: Schema, value: dict[str, Any], path: str, *, closed: bool) -> None:
        properties = node.get("properties")
        values = node.get("additionalProperties")
        if node.get(_EMBEDDED):
            properties = {**(properties or {}), **_EMBEDDED_PROPERTIES}
        if properties is None and values is None and not closed:
            return
        for key in list(value):
            child = (properties or {}).get(key)
            if child is None and isinstance(values, dict):
                child = values
            if child is None:
                if values is True or node.get(_PRESERVE):
                    continue
                self._found.append(f"{path}.{key}" if path else key)
                del value[key]
            elif value[key] is None and not closed:
                del value[key]  # null means absent in built-in kinds
            elif isinstance(value[key], dict | list):
                self.visit(child, value[key], f"{path}.{key}" if path else key, closed=closed)
