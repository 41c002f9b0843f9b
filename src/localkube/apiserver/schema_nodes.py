"""What patching needs to know of a schema: how a value at one place is merged.

In: OpenAPI v3 schemas with Kubernetes' extensions. Out: `SchemaNode`, a cursor that follows
`$ref` and `allOf` and answers how maps and lists there merge (strategic merge, server-side apply).
A place without a schema merges as Kubernetes deduces: maps by key, lists and scalars as a whole.
"""

from __future__ import annotations

from typing import Any, Literal

from localkube.apiserver.policy import Schemas

JsonObject = dict[str, Any]
ListKind = Literal["atomic", "map", "set"]

OBJECT_META = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


class SchemaNode:
    """The schema at one place of an object; `schema` is empty where there is none."""

    __slots__ = ("_children", "_overlay", "_schemas", "schema")

    def __init__(
        self, schemas: Schemas | None, schema: JsonObject, overlay: JsonObject | None = None
    ) -> None:
        self._schemas = schemas
        self._children: dict[str, SchemaNode] = {}
        # Keywords beside a $ref (a field's own patch strategy) win over the referred schema's.
        self._overlay = overlay or {}
        while schemas is not None:
            refs = [schema["$ref"]] if "$ref" in schema else []
            refs += [part["$ref"] for part in schema.get("allOf", ()) if "$ref" in part]
            if not refs:
                break
            beside = {k: v for k, v in schema.items() if k.startswith("x-") or k == "default"}
            self._overlay = {**beside, **self._overlay}
            schema = schemas.resolve(refs[0])
        self.schema = schema

    def _keyword(self, name: str) -> Any:
        return self._overlay.get(name, self.schema.get(name))

    @property
    def properties(self) -> JsonObject:
        """The named fields of a struct; empty for a map of free keys."""
        found = self.schema.get("properties")
        return found if isinstance(found, dict) else {}

    def field(self, name: str) -> SchemaNode:
        """Return the node of a map's member."""
        node = self._children.get(name)
        if node is None:
            node = self._children[name] = self._make_field(name)
        return node

    def _make_field(self, name: str) -> SchemaNode:
        found = self.properties.get(name)
        if found is None:
            found = self.schema.get("additionalProperties")
        return self._node(found)

    def items(self) -> SchemaNode:
        """Return the node of a list's elements."""
        node = self._children.get("")
        if node is None:
            node = self._children[""] = self._node(self.schema.get("items"))
        return node

    def _node(self, schema: Any) -> SchemaNode:
        if not isinstance(schema, dict):
            return EMPTY
        return SchemaNode(self._schemas, schema)

    @property
    def default(self) -> Any:
        """The default value, None if there is none."""
        return self._keyword("default")

    @property
    def atomic_map(self) -> bool:
        """Whether a map here has one owner as a whole."""
        return bool(self._keyword("x-kubernetes-map-type") == "atomic")

    @property
    def list_kind(self) -> ListKind:
        """How a list here merges under server-side apply."""
        kind = self._keyword("x-kubernetes-list-type")
        return kind if kind in ("map", "set") else "atomic"

    @property
    def list_keys(self) -> tuple[str, ...]:
        """The fields that identify an element of a list of kind "map"."""
        return tuple(self._keyword("x-kubernetes-list-map-keys") or ())

    @property
    def patch_strategies(self) -> frozenset[str]:
        """The strategic merge strategies: merge, replace, retainKeys."""
        return frozenset((self._keyword("x-kubernetes-patch-strategy") or "").split(","))

    @property
    def patch_merge_key(self) -> str | None:
        """The field that identifies a list's element in a strategic merge patch."""
        key = self._keyword("x-kubernetes-patch-merge-key")
        return key if isinstance(key, str) else None


EMPTY = SchemaNode(None, {})


def root_node(schemas: Schemas, group: str, version: str, kind: str) -> SchemaNode:
    """Return the node of a whole object. Custom resources get ObjectMeta's schema for metadata."""
    schema = schemas.for_kind(group, version, kind)
    if schema is None:
        schema = {}
    node = SchemaNode(schemas, schema)
    metadata = node.field("metadata")
    if not metadata.properties:
        node = SchemaNode(
            schemas,
            {
                **node.schema,
                "properties": {**node.properties, "metadata": {"$ref": OBJECT_META}},
            },
        )
    return node
