"""CustomResourceDefinitions, generated from the typed models.

Out: plain dicts, ready for ``kubectl apply``. The schemas are structural as Kubernetes demands: every level has a type, free-form
parts say ``x-kubernetes-preserve-unknown-fields``, and one-of groups use ``required`` only. What a schema cannot say is the webhook's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from meltemi.config.durations import DURATION_PATTERN
from meltemi.config.kinds import INSTALL, KINDS, KindInfo
from meltemi.config.shapes import Choice, FieldShape, ListOf, MapOf, Record, Scalar, Shape, record

Schema = dict[str, Any]

_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"


def crd_manifests() -> list[dict[str, Any]]:
    """One CustomResourceDefinition per kind, in a fixed order; fresh objects at every call."""
    return [crd_manifest(info) for info in KINDS.values()]


def crd_manifest(info: KindInfo) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    group = info.group.removesuffix(".istio.io")
    names: dict[str, Any] = {
        "kind": info.kind,
        "listKind": f"{info.kind}List",
        "plural": info.plural,
        "singular": info.singular,
        "categories": ["istio-io", f"{group}-istio-io"],
    }
    short = [name for name in info.short_names if name not in (info.plural, info.singular)]
    if short:
        names["shortNames"] = short
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{info.plural}.{info.group}",
            "labels": {"app": "istio-pilot", "istio": group, "release": "istio"},
            # People's objects must survive an uninstall that only removes the control plane.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": info.group,
            "names": names,
            "scope": info.scope,
            "versions": [_version(info, version) for version in info.versions],
        },
    }


def _version(info: KindInfo, version: str) -> dict[str, Any]:
    columns = [
        {"name": name, "jsonPath": path, "type": kind, "description": text}
        for name, path, kind, text in info.columns
    ]
    columns.append(
        {
            "name": "Age",
            "jsonPath": ".metadata.creationTimestamp",
            "type": "date",
            "description": "Time since the object was created",
        }
    )
    return {
        "name": version,
        "served": True,
        "storage": version == info.storage,
        "additionalPrinterColumns": columns,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": object_schema(info)},
    }


def object_schema(info: KindInfo) -> Schema:
    """Schema of a whole object: spec and status (API servers know the rest)."""
    shape = record(info.spec)
    schema: Schema = {
        "type": "object",
        "description": shape.description,
        "properties": {"spec": schema_of(shape), "status": _status(info)},
    }
    if shape.required:
        schema["required"] = ["spec"]
    return schema


def _status(info: KindInfo) -> Schema:
    if info.group == INSTALL:
        return {"type": "object", _PRESERVE: True}
    text: Schema = {"type": "string"}
    condition: Schema = {
        "type": "object",
        "properties": {
            "type": dict(text),
            "status": dict(text),
            "reason": dict(text),
            "message": dict(text),
            "lastProbeTime": {"type": "string", "format": "date-time"},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": {_INT_OR_STRING: True},
        },
    }
    properties: Schema = {
        "conditions": {"type": "array", "items": condition},
        "validationMessages": {"type": "array", "items": {"type": "object", _PRESERVE: True}},
        "observedGeneration": {_INT_OR_STRING: True},
    }
    if info.kind == "ServiceEntry":
        address: Schema = {
            "type": "object",
            "properties": {"value": dict(text), "host": dict(text)},
        }
        properties["addresses"] = {"type": "array", "items": address}
    return {"type": "object", "properties": properties, _PRESERVE: True}


def schema_of(shape: Shape) -> Schema:
    """The structural schema of a shape."""
    if isinstance(shape, Record):
        return _record(shape)
    if isinstance(shape, ListOf):
        return {"type": "array", "items": schema_of(shape.item)}
    if isinstance(shape, MapOf):
        return {"type": "object", "additionalProperties": schema_of(shape.value)}
    if isinstance(shape, Choice):
        return {"type": "string", "enum": list(shape.values)}
    return _scalar(shape)


def _record(shape: Record) -> Schema:
    schema: Schema = {"type": "object"}
    if shape.description:
        schema["description"] = shape.description
    if shape.fields:
        schema["properties"] = {field.wire: _field(field) for field in shape.fields.values()}
    if shape.required:
        schema["required"] = list(shape.required)
    groups = [group for group in shape.one_of if _exclusive(shape, group)]
    alternatives = [_at_most_one(group) for group in groups]
    if len(alternatives) == 1:
        schema.update(alternatives[0])
    elif alternatives:
        schema["allOf"] = alternatives
    return schema


def _field(field: FieldShape) -> Schema:
    schema = schema_of(field.shape)
    if field.description:
        schema["description"] = field.description
    return schema


@cache
def _optional(shape: Record) -> frozenset[str]:
    """Fields whose absence differs from their zero value."""
    return frozenset(
        field.wire for field in shape.fields.values() if getattr(shape.cls(), field.name) is None
    )


def _exclusive(shape: Record, group: tuple[str, ...]) -> bool:
    """A group is for the schema only if every field's presence counts: ``hosts: []`` is as good as no hosts."""
    return all(name in _optional(shape) for name in group)


def _at_most_one(group: tuple[str, ...]) -> Schema:
    given: list[Schema] = [{"required": [name]} for name in group]
    return {"oneOf": [{"not": {"anyOf": given}}, *({"required": [name]} for name in group)]}


def _scalar(shape: Scalar) -> Schema:
    if shape.format == "any":
        return {_PRESERVE: True}
    if shape.format == "free-form":
        return {"type": "object", _PRESERVE: True}
    if shape.format == "int-or-string":
        return {_INT_OR_STRING: True}
    if shape.format == "duration":
        return {"type": "string", "pattern": DURATION_PATTERN}
    schema: Schema = {"type": shape.type}
    if shape.format == "byte":
        schema["format"] = "byte"
    if shape.ge is not None:
        schema["minimum"] = shape.ge
    if shape.le is not None:
        schema["maximum"] = shape.le
    return schema
