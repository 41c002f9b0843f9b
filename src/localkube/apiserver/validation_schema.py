"""Check a value against an OpenAPI v3 schema, with Kubernetes' extensions and messages.

In: a schema node and a value. Out: field errors, in document order. Pure. Two dialects: custom
kinds get the words of kube-openapi ("spec.a in body must be of type integer"), built-in kinds the
short form, have no required fields under `status`, and treat null as absent everywhere.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
import re2

from localkube.apiserver import validation_errors as fe
from localkube.apiserver import validation_formats as formats
from localkube.apiserver.errors import FieldError
from localkube.apiserver.schema import INT_OR_STRING, QUANTITY

if TYPE_CHECKING:
    from localkube.apiserver.schema import Schema, SchemaIndex

ERRORS_MAX = 50
"""One object gets at most this many causes."""
_NOT_ENFORCED: frozenset[tuple[str, str]] = frozenset(
    {
        # The schema calls these required, but an absent one decodes to a usable zero value.
        ("EndpointSlice", "endpoints"),
        ("NetworkPolicySpec", "podSelector"),
        ("NetworkPolicyPeer", "podSelector"),
        ("Event", "metadata"),
        ("Event", "involvedObject"),
        ("Event", "eventTime"),
        ("PodTemplateSpec", "metadata"),
        ("APIServiceSpec", "groupPriorityMinimum"),
        ("ValidatingAdmissionPolicySpec", "validations"),
        ("CustomResourceDefinitionVersion", "served"),
        ("CustomResourceDefinitionVersion", "storage"),
        ("HTTPHeader", "value"),
        ("PreferredSchedulingTerm", "preference"),
    }
)


@lru_cache(maxsize=1024)
def _pattern(pattern: str) -> Any:
    """The compiled RE2 pattern (Go's dialect), None when it does not compile."""
    try:
        return re2.compile(pattern)
    except re2.error:
        return None


def type_name(value: Any) -> str:
    """The JSON type of a value as kube-openapi names it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _has_type(kind: str, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            if isinstance(value, float):
                return value.is_integer()
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case _:
            return True


def _is_time(value: str) -> bool:
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:
        return False
    return "T" in value


def _is_date(value: str) -> bool:
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True


def _is_base64(value: str) -> bool:
    try:
        base64.b64decode(value.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _is_ip(version: int) -> Callable[[str], bool]:
    def check(value: str) -> bool:
        try:
            return ipaddress.ip_address(value).version == version
        except ValueError:
            return False

    return check


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date-time": _is_time,
    "date": _is_date,
    "byte": _is_base64,
    "ipv4": _is_ip(4),
    "ipv6": _is_ip(6),
    "cidr": lambda value: formats.check_cidr(value) is None,
}
_INTEGER_BITS = {"int32": 31, "int64": 63}


class SchemaValidator:
    """Validates one value; `custom` selects the dialect of custom kinds.

    `types_only` leaves out what is required: for an object that has no defaults yet.
    """

    def __init__(self, schemas: SchemaIndex, *, custom: bool, types_only: bool = False) -> None:
        self._schemas = schemas
        self._custom = custom
        self._types_only = types_only
        self._errors: list[FieldError] = []

    def validate(self, node: Schema, value: Any, path: str = "") -> list[FieldError]:
        self._visit(node, value, path, enforce=not self._types_only)
        return self._errors[:ERRORS_MAX]

    def _add(self, error: FieldError) -> None:
        self._errors.append(error)

    def _text(self, path: str, rest: str) -> str:
        return f"{path} in body {rest}" if self._custom else rest

    def _visit(self, node: Schema, value: Any, path: str, *, enforce: bool) -> None:
        if len(self._errors) >= ERRORS_MAX:
            return
        name = self._schemas.ref_name(node)
        if name == INT_OR_STRING:
            if isinstance(value, bool) or not isinstance(value, int | str):
                self._add(fe.invalid(path, value, "must be an integer or a string"))
            return
        if name == QUANTITY:
            if formats.parse_quantity(value) is None:
                self._add(fe.invalid(path, value, formats.QUANTITY_PROBLEM))
            return
        node = self._schemas.deref(node)
        if value is None:
            if self._custom and not node.get("nullable") and node.get("type"):
                self._type_error(path, value, node["type"])
            return
        if node.get("x-kubernetes-int-or-string"):
            if isinstance(value, bool) or not isinstance(value, int | str):
                self._type_error(path, value, "integer,string")
                return
        elif (kind := node.get("type")) and not _has_type(kind, value):
            self._type_error(path, value, kind)
            return
        self._check_value(node, value, path)
        if isinstance(value, dict):
            self._check_map(node, value, path, name, enforce=enforce)
        elif isinstance(value, list):
            self._check_list(node, value, path, enforce=enforce)
        if self._custom:
            self._check_junctors(node, value, path)

    def _type_error(self, path: str, value: Any, kind: str) -> None:
        if self._custom:
            given = type_name(value)
            self._add(fe.invalid(path, given, f'{path} in body must be of type {kind}: "{given}"'))
        else:
            self._add(fe.invalid(path, value, f"must be of type {kind}"))

    def _check_value(self, node: Schema, value: Any, path: str) -> None:
        allowed = node.get("enum")
        if allowed and value not in allowed:
            self._add(fe.unsupported(path, value, allowed))
        if isinstance(value, str):
            self._check_string(node, value, path)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self._check_number(node, value, path)

    def _check_string(self, node: Schema, value: str, path: str) -> None:
        limit = node.get("maxLength")
        if limit is not None and len(value) > limit:
            self._add(fe.too_long(path, limit))
        limit = node.get("minLength")
        if limit is not None and len(value) < limit:
            self._add(
                fe.invalid(path, value, self._text(path, f"should be at least {limit} chars long"))
            )
        pattern = node.get("pattern")
        if pattern:
            compiled = _pattern(pattern)
            if compiled is not None and compiled.search(value) is None:
                self._add(fe.invalid(path, value, self._text(path, f"should match '{pattern}'")))
        check = _FORMATS.get(node.get("format", ""))
        if check is not None and value and not check(value):
            detail = f'must be of type {node["format"]}: "{value}"'
            self._add(fe.invalid(path, value, self._text(path, detail)))

    def _check_number(self, node: Schema, value: float, path: str) -> None:
        bits = _INTEGER_BITS.get(node.get("format", ""))
        if bits is not None and not -(1 << bits) <= value < (1 << bits):
            self._add(fe.invalid(path, value, f"must be a number of {bits + 1} bits"))
        low, high = node.get("minimum"), node.get("maximum")
        if low is not None and (value <= low if node.get("exclusiveMinimum") else value < low):
            words = "greater than" if node.get("exclusiveMinimum") else "greater than or equal to"
            self._add(fe.invalid(path, value, self._text(path, f"should be {words} {low}")))
        if high is not None and (value >= high if node.get("exclusiveMaximum") else value > high):
            words = "less than" if node.get("exclusiveMaximum") else "less than or equal to"
            self._add(fe.invalid(path, value, self._text(path, f"should be {words} {high}")))
        step = node.get("multipleOf")
        if step and not math.isclose(value / step, round(value / step), abs_tol=1e-9):
            self._add(fe.invalid(path, value, self._text(path, f"should be a multiple of {step}")))

    def _check_map(
        self, node: Schema, value: dict[str, Any], path: str, name: str | None, *, enforce: bool
    ) -> None:
        short = (name or "").rpartition(".")[2]
        for key in node.get("required", ()) if enforce else ():
            missing = key not in value or (value[key] is None and not self._custom)
            if missing and (short, key) not in _NOT_ENFORCED:
                self._add(fe.required(fe.join(path, key)))
        count, low, high = len(value), node.get("minProperties"), node.get("maxProperties")
        if low is not None and count < low:
            detail = f"should have at least {low} properties"
            self._add(fe.invalid(path, count, self._text(path, detail)))
        if high is not None and count > high:
            self._add(fe.too_many(path, count, high))
        properties = node.get("properties") or {}
        values = node.get("additionalProperties")
        for key, child in value.items():
            schema = properties.get(key)
            is_map = schema is None
            if is_map:
                schema = values if isinstance(values, dict) else None
            if schema is None or (not path and key in ("apiVersion", "kind")):
                continue
            if self._custom and not path and key == "metadata":
                continue  # checked by the object rules, in their words
            inner = enforce and (self._custom or not (key == "status" and not path))
            self._visit(schema, child, fe.join(path, key), enforce=inner)

    def _check_list(self, node: Schema, value: list[Any], path: str, *, enforce: bool) -> None:
        count, low, high = len(value), node.get("minItems"), node.get("maxItems")
        if low is not None and count < low:
            detail = f"should have at least {low} items"
            self._add(fe.invalid(path, count, self._text(path, detail)))
        if high is not None and count > high:
            self._add(fe.too_many(path, count, high))
        items = node.get("items")
        if isinstance(items, dict):
            for index, item in enumerate(value):
                if item is None and not self._custom and self._schemas.deref(items).get("type"):
                    self._add(fe.required(fe.at_index(path, index)))
                self._visit(items, item, fe.at_index(path, index), enforce=enforce)
        if self._custom:
            self._check_list_type(node, value, path)

    def _check_list_type(self, node: Schema, value: list[Any], path: str) -> None:
        kind = node.get("x-kubernetes-list-type")
        keys = node.get("x-kubernetes-list-map-keys") or ()
        if kind not in ("set", "map") and not node.get("uniqueItems"):
            return
        seen: set[bytes] = set()
        for index, item in enumerate(value):
            identity = item
            if kind == "map":
                if not isinstance(item, dict):
                    continue
                identity = {key: item[key] for key in keys if key in item}
            encoded = msgspec.json.encode(identity, order="deterministic")
            if encoded in seen:
                self._add(fe.duplicate(fe.at_index(path, index), identity))
            seen.add(encoded)

    # -- anyOf, oneOf, allOf, not -------------------------------------------------------------

    def _check_junctors(self, node: Schema, value: Any, path: str) -> None:
        shown = f'"{path}"' if path else '"<root>"'
        if node.get("anyOf") and not node.get("x-kubernetes-int-or-string"):
            failures = [self._errors_of(part, value, path) for part in node["anyOf"]]
            if all(failures):
                self._add_best(failures)
                text = f"{shown} must validate at least one schema (anyOf)"
                self._add(fe.invalid(path, "", text))
        if node.get("oneOf"):
            failures = [self._errors_of(part, value, path) for part in node["oneOf"]]
            valid = sum(1 for failure in failures if not failure)
            if valid != 1:
                if valid == 0:
                    self._add_best(failures)
                found = f"Found {valid} valid alternatives" if valid else "Found none valid"
                text = f"{shown} must validate one and only one schema (oneOf). {found}"
                self._add(fe.invalid(path, "", text))
        for part in node.get("allOf") or ():
            if "$ref" in part:
                continue
            failure = self._errors_of(part, value, path)
            if failure:
                self._errors.extend(failure)
                self._add(fe.invalid(path, "", f"{shown} must validate all the schemas (allOf)"))
        forbidden = node.get("not")
        if forbidden is not None and not self._errors_of(forbidden, value, path):
            self._add(fe.invalid(path, "", f"{shown} must not validate the schema (not)"))

    def _errors_of(self, node: Schema, value: Any, path: str) -> list[FieldError]:
        return SchemaValidator(self._schemas, custom=True).validate(node, value, path)

    def _add_best(self, failures: list[list[FieldError]]) -> None:
        """Report the alternative that came closest, as kube-openapi does."""
        best = min(range(len(failures)), key=lambda index: len(failures[index]))
        self._errors.extend(failures[best])
