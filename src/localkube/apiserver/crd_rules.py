"""Evaluate x-kubernetes-validations: the CEL rules of a CRD's schema.

In: a schema, the new and the old value. Out: field errors with the rule's message; and, for a whole
schema, the rules that cannot be evaluated here and why. Compiled rules are cached. The functions
that Kubernetes adds to CEL are in `crd_cel`. A rule that fails to evaluate is an error, as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from localkube.apiserver import crd_cel
from localkube.apiserver import validation_errors as fe
from localkube.apiserver.errors import FieldError

if TYPE_CHECKING:
    from localkube.apiserver.schema import Schema

RULES = "x-kubernetes-validations"
_MISSING = object()
_REASONS = {
    "FieldValueInvalid": "Invalid value",
    "FieldValueForbidden": "Forbidden",
    "FieldValueRequired": "Required value",
    "FieldValueDuplicate": "Duplicate value",
}


def has_rules(schema: Schema) -> bool:
    """Whether any rule applies anywhere below this node."""
    if schema.get(RULES):
        return True
    children = list((schema.get("properties") or {}).values())
    children += [schema.get("items"), schema.get("additionalProperties")]
    children += [part for name in ("allOf", "anyOf", "oneOf") for part in schema.get(name) or ()]
    return any(isinstance(child, dict) and has_rules(child) for child in children)


def unusable_rules(schema: Schema, path: str) -> Iterator[tuple[str, str, str]]:
    """(path, rule, why) of every rule that does not compile."""
    for index, rule in enumerate(schema.get(RULES) or ()):
        problem = crd_cel.compile_problem(str(rule.get("rule", "")))
        if problem:
            yield f"{path}.{RULES}[{index}].rule", str(rule.get("rule", "")), problem
    for name, child in (schema.get("properties") or {}).items():
        if isinstance(child, dict):
            yield from unusable_rules(child, f"{path}.properties[{name}]")
    for place in ("items", "additionalProperties"):
        if isinstance(schema.get(place), dict):
            yield from unusable_rules(schema[place], f"{path}.{place}")


def validate_rules(schema: Schema, new: Any, old: Any = None) -> list[FieldError]:
    """Errors of all rules for a whole object; `old` is None on creation."""
    errors: list[FieldError] = []
    _visit(schema, new, _MISSING if old is None else old, "", errors)
    return errors


def _visit(schema: Schema, new: Any, old: Any, path: str, errors: list[FieldError]) -> None:
    rules = schema.get(RULES)
    if rules:
        for rule in rules:
            error = _evaluate(schema, rule, new, old, path)
            if error is not None:
                errors.append(error)
    if isinstance(new, dict):
        properties = schema.get("properties") or {}
        values = schema.get("additionalProperties")
        for name, value in new.items():
            child = properties.get(name)
            if child is None and isinstance(values, dict):
                child = values
            if child is not None and value is not None:
                before = old.get(name, _MISSING) if isinstance(old, dict) else _MISSING
                _visit(child, value, before, fe.join(path, name), errors)
    elif isinstance(new, list) and isinstance(schema.get("items"), dict):
        before = _matching_items(schema, new, old)
        for index, value in enumerate(new):
            _visit(schema["items"], value, before[index], fe.at_index(path, index), errors)


def _matching_items(schema: Schema, new: list[Any], old: Any) -> list[Any]:
    """The old item of each new one: known only in lists of type map, by their keys."""
    keys = schema.get("x-kubernetes-list-map-keys")
    if schema.get("x-kubernetes-list-type") != "map" or not keys or not isinstance(old, list):
        return [_MISSING] * len(new)
    known = {_key(item, keys): item for item in old if isinstance(item, dict)}
    return [
        known.get(_key(item, keys), _MISSING) if isinstance(item, dict) else _MISSING
        for item in new
    ]


def _key(item: dict[str, Any], keys: list[str]) -> str:
    return repr([item.get(key) for key in keys])


def _evaluate(
    schema: Schema, rule: dict[str, Any], new: Any, old: Any, path: str
) -> FieldError | None:
    text = str(rule.get("rule", ""))
    transition = crd_cel.mentions(text, "oldSelf")
    optional_old = bool(rule.get("optionalOldSelf"))
    if transition and old is _MISSING and not optional_old:
        return None  # a transition rule says nothing about a new value
    if crd_cel.compile_problem(text):
        return None  # the CRD's author was warned when it was created
    values = {"self": crd_cel.typed(schema, new)}
    if transition:
        present = old is not _MISSING
        before = crd_cel.typed(schema, old) if present else None
        values["oldSelf"] = crd_cel.OptionalOld(before, present=present) if optional_old else before
    outcome = crd_cel.evaluate(text, values)
    if outcome is True:
        return None
    message = _message(rule, text, values, outcome)
    where = path + str(rule.get("fieldPath") or "")
    reason = str(rule.get("reason") or "FieldValueInvalid")
    where = where.lstrip(".")
    if reason == "FieldValueRequired":
        return fe.required(where, message)
    if reason == "FieldValueForbidden":
        return fe.forbidden(where, message)
    if reason == "FieldValueDuplicate":
        return FieldError(where, reason, f"Duplicate value: {message}")
    return fe.invalid(where, schema.get("type") or "object", message)


def _message(rule: dict[str, Any], text: str, values: dict[str, Any], outcome: bool | str) -> str:
    if isinstance(outcome, str):
        return f"rule evaluation error: {outcome}, evaluating rule: {text}"
    expression = rule.get("messageExpression")
    if expression:
        made = crd_cel.evaluate_text(str(expression), values)
        if made and made.strip():
            return made
    return str(rule.get("message") or f"failed rule: {text.strip()}")
