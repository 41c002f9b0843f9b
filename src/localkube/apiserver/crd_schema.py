"""Structural schemas: what a CRD's schema must look like, and the defaults it carries.

In: `spec.versions[*].schema.openAPIV3Schema`. Out: field errors for a schema that is not
structural, and objects with the schema's defaults filled in. Pure. The rules are those of
"Specifying a structural schema" in the Kubernetes documentation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import re2

from localkube.apiserver import validation_errors as fe
from localkube.apiserver.errors import FieldError

Schema = dict[str, Any]

_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_JUNCTORS = ("allOf", "anyOf", "oneOf")
_FORBIDDEN_IN_JUNCTORS = (
    "type",
    "description",
    "default",
    "additionalProperties",
    "nullable",
)
_FORBIDDEN = (
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
    "uniqueItems",
)
INT_OR_STRING = "x-kubernetes-int-or-string"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
EMBEDDED = "x-kubernetes-embedded-resource"


def validate_structural(schema: Any, path: str) -> list[FieldError]:
    """Errors that keep a schema from being structural."""
    if not isinstance(schema, dict):
        return [fe.required(path, "schemas are required")]
    errors: list[FieldError] = []
    if schema.get("type") != "object":
        errors.append(
            fe.invalid(f"{path}.type", schema.get("type") or "", "must be object at the root")
            if schema.get("type")
            else fe.required(f"{path}.type", "must not be empty at the root")
        )
    metadata = (schema.get("properties") or {}).get("metadata")
    if isinstance(metadata, dict):
        allowed = {"name", "generateName"}
        for name in set(metadata.get("properties") or ()) - allowed:
            errors.append(
                fe.forbidden(
                    f"{path}.properties[metadata]",
                    f"must not specify anything other than name and generateName, but metadata."
                    f"{name} is specified",
                )
            )
    _visit(schema, path, errors, root=True)
    return errors


def _visit(schema: Schema, path: str, errors: list[FieldError], *, root: bool = False) -> None:
    for name in _FORBIDDEN:
        if name in schema and schema[name] not in (None, False, "", {}, []):
            errors.append(fe.forbidden(f"{path}.{name}", f"{name} is not supported"))
    kind = schema.get("type")
    if kind is not None and kind not in _TYPES:
        errors.append(fe.unsupported(f"{path}.type", kind, _TYPES))
    if not kind and not root and not schema.get(INT_OR_STRING) and not schema.get(PRESERVE):
        errors.append(fe.required(f"{path}.type", "must not be empty for specified object fields"))
    if schema.get(EMBEDDED) and kind != "object":
        errors.append(
            fe.invalid(
                f"{path}.type",
                kind or "",
                "must be object if x-kubernetes-embedded-resource is true",
            )
        )
    if schema.get("properties") and schema.get("additionalProperties"):
        detail = "additionalProperties and properties are mutual exclusive"
        errors.append(fe.forbidden(f"{path}.additionalProperties", detail))
    _validate_pattern(schema, path, errors)
    _validate_list_type(schema, path, errors)
    for place, child in children(schema):
        _visit(child, f"{path}.{place}", errors)
    for junctor in _JUNCTORS:
        for index, part in enumerate(schema.get(junctor) or ()):
            _visit_junctor(schema, part, f"{path}.{junctor}[{index}]", errors)
    if isinstance(schema.get("not"), dict):
        _visit_junctor(schema, schema["not"], f"{path}.not", errors)


def _validate_pattern(schema: Schema, path: str, errors: list[FieldError]) -> None:
    pattern = schema.get("pattern")
    if not pattern:
        return
    try:
        re2.compile(pattern)
    except re2.error:
        detail = "must be a valid regular expression, but isn't: RE2 cannot compile it"
        errors.append(fe.invalid(f"{path}.pattern", pattern, detail))


def _validate_list_type(schema: Schema, path: str, errors: list[FieldError]) -> None:
    kind = schema.get("x-kubernetes-list-type")
    keys = schema.get("x-kubernetes-list-map-keys")
    if kind not in (None, "atomic", "set", "map"):
        errors.append(
            fe.unsupported(f"{path}.x-kubernetes-list-type", kind, ("atomic", "map", "set"))
        )
    if kind == "map" and not keys:
        errors.append(
            fe.required(
                f"{path}.x-kubernetes-list-map-keys",
                "must not be empty if x-kubernetes-list-type is map",
            )
        )
    if schema.get("type") == "array" and not isinstance(schema.get("items"), dict):
        errors.append(fe.required(f"{path}.items", "must be specified"))
    for key in keys or ():
        if key not in ((schema.get("items") or {}).get("properties") or {}):
            detail = "entries must all be names of item properties"
            errors.append(fe.invalid(f"{path}.x-kubernetes-list-map-keys", keys, detail))


def _visit_junctor(owner: Schema, part: Any, path: str, errors: list[FieldError]) -> None:
    """Inside anyOf and its like only values are constrained; nothing is declared there."""
    if not isinstance(part, dict):
        return
    if owner.get(INT_OR_STRING) and set(part) <= {"type"}:
        return
    for name in _FORBIDDEN_IN_JUNCTORS:
        if part.get(name) not in (None, "", {}, False):
            errors.append(fe.forbidden(f"{path}.{name}", "must be empty to be structural"))
    for place, child in children(part):
        _visit_junctor(owner, child, f"{path}.{place}", errors)
    for junctor in _JUNCTORS:
        for index, inner in enumerate(part.get(junctor) or ()):
            _visit_junctor(owner, inner, f"{path}.{junctor}[{index}]", errors)


def children(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """(place, schema) of the properties, items and map values of a node."""
    for name, child in (schema.get("properties") or {}).items():
        if isinstance(child, dict):
            yield f"properties[{name}]", child
    for place in ("items", "additionalProperties"):
        child = schema.get(place)
        if isinstance(child, dict):
            yield place, child


def fill_defaults(schema: Schema, value: Any) -> Any:
    """The value with the schema's defaults, changed in place where it is a map or list.

    A null where null is not allowed and a default exists becomes the default; where there is no
    default it is dropped, as Kubernetes does.
    """
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        for name, child in properties.items():
            if name in value and value[name] is None and not child.get("nullable"):
                del value[name]
            if name not in value and child.get("default") is not None:
                value[name] = copy.deepcopy(child["default"])
        values = schema.get("additionalProperties")
        for name, member in value.items():
            inner = properties.get(name)
            if inner is None and isinstance(values, dict):
                inner = values
            if inner is not None and isinstance(member, dict | list):
                fill_defaults(inner, member)
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for member in value:
            fill_defaults(schema["items"], member)
    return value
