"""Defaults, unknown fields and validation of any object, built-in or custom.

In: a resource and an object. Out: the object with defaults, warnings about unknown fields, field
errors; ApiError for an object that does not decode as its kind. It only chooses: the rules are in
`defaults*`, `validation_*` and `crd*`. No input makes it fail in any other way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from localkube.apiserver import crd, crd_rules, crd_schema, errors
from localkube.apiserver.defaults import default_object
from localkube.apiserver.errors import FieldError
from localkube.apiserver.validation_fields import prune_unknown
from localkube.apiserver.validation_kinds import validate_kind, validate_kind_update
from localkube.apiserver.validation_meta import validate_metadata, validate_metadata_update
from localkube.apiserver.validation_schema import SchemaValidator

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object
    from localkube.apiserver.resources import Resource
    from localkube.apiserver.schema import Schema, SchemaIndex

_CRD_KEY = (crd.GROUP, "CustomResourceDefinition")


class Validator:
    """The checks of objects against one schema index."""

    def __init__(self, schemas: SchemaIndex) -> None:
        self._schemas = schemas

    def default(self, resource: Resource, obj: Object) -> Object:
        """The object with its kind's default values, changed in place."""
        custom = resource.crd
        if isinstance(custom, crd.CustomVersion):
            crd_schema.fill_defaults(_without_metadata(custom.schema), obj)
            return obj
        return default_object(resource.group, resource.kind, obj)

    def prune(self, resource: Resource, obj: Object, field_validation: str) -> list[str]:
        """Drop unknown fields in place; the texts for warnings.

        Raises ApiError 400 for unknown fields under Strict, and 422 when a built-in kind's field
        has the wrong type, since nothing further could be done with such an object.
        """
        custom = resource.crd
        schema = self._schemas.for_kind(resource.group, resource.version, resource.kind)
        if schema is None:
            return []
        is_custom = isinstance(custom, crd.CustomVersion)
        unknown = prune_unknown(self._schemas, schema, obj, custom=is_custom)
        if not is_custom:
            self._raise_wrong_types(resource, schema, obj)
        warnings = [custom.deprecation] if is_custom and custom.deprecation else []
        if not unknown or field_validation == "Ignore":
            return warnings
        texts = [f'unknown field "{path}"' for path in unknown]
        if field_validation == "Strict":
            raise errors.bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a '
                f"{resource.kind}: strict decoding error: {', '.join(texts)}"
            )
        return warnings + texts

    def _raise_wrong_types(self, resource: Resource, schema: Schema, obj: Object) -> None:
        validator = SchemaValidator(self._schemas, custom=False, types_only=True)
        causes = validator.validate(schema, obj)
        if causes:
            name = (obj.get("metadata") or {}).get("name")
            shown = name if isinstance(name, str) else ""
            raise errors.invalid(resource.kind, shown, causes, resource.group)

    def validate_create(self, resource: Resource, obj: Object) -> list[FieldError]:
        """Errors in a new object."""
        found = validate_metadata(
            resource.group,
            resource.kind,
            obj.get("metadata") or {},
            namespaced=resource.namespaced,
        )
        return found + self._validate_object(resource, obj, None)

    def validate_update(self, resource: Resource, new: Object, old: Object) -> list[FieldError]:
        """Errors in a changed object, immutable fields included."""
        found = validate_metadata(
            resource.group,
            resource.kind,
            new.get("metadata") or {},
            namespaced=resource.namespaced,
        )
        found += validate_metadata_update(new.get("metadata") or {}, old.get("metadata") or {})
        found += self._validate_object(resource, new, old)
        if not isinstance(resource.crd, crd.CustomVersion):
            found += validate_kind_update(resource.group, resource.kind, new, old)
            if (resource.group, resource.kind) == _CRD_KEY:
                found += crd.validate_crd_update(new, old)
        return found

    def _validate_object(
        self, resource: Resource, obj: Object, old: Object | None
    ) -> list[FieldError]:
        custom = resource.crd
        if isinstance(custom, crd.CustomVersion):
            found = SchemaValidator(self._schemas, custom=True).validate(custom.schema, obj)
            if not found and custom.has_rules:
                found = crd_rules.validate_rules(custom.schema, obj, old)
            return found
        schema = self._schemas.for_kind(resource.group, resource.version, resource.kind)
        if schema is None:
            return []
        found = SchemaValidator(self._schemas, custom=False).validate(schema, obj)
        if found:
            return found  # the rules of kinds rely on right types
        if (resource.group, resource.kind) == _CRD_KEY:
            return crd.validate_crd(obj)
        return validate_kind(resource.group, resource.kind, obj)


def _without_metadata(schema: Schema) -> Schema:
    properties = schema.get("properties") or {}
    if "metadata" not in properties:
        return schema
    return {**schema, "properties": {k: v for k, v in properties.items() if k != "metadata"}}
