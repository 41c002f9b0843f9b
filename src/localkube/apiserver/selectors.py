"""Label and field selectors of list, watch and deletecollection.

In: the query strings as clients send them. Out: pure predicates over objects. A selector that
cannot be understood is a 400 with Kubernetes' text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from localkube.apiserver.errors import ApiError, bad_request
from localkube.apiserver.resources import Resource

JsonObject = dict[str, Any]
Predicate = Callable[[JsonObject], bool]

_KEY = r"(?:[A-Za-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?)?")
_SET = re.compile(rf"\s*({_KEY})\s+(in|notin)\s*\(([^()]*)\)\s*(?:,|$)")
_EQUALITY = re.compile(rf"\s*({_KEY})\s*(==|=|!=|>|<)\s*([^,\s]*)\s*(?:,|$)")
_EXISTS = re.compile(rf"\s*(!?)\s*({_KEY})\s*(?:,|$)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector."""

    key: str
    operator: str  # in, notin, exists, absent, >, <
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether these labels satisfy the term; notin accepts a missing label."""
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
        try:
            number, bound = int(value or ""), int(next(iter(self.values)))
        except ValueError:
            return False
        return number > bound if self.operator == ">" else number < bound


def parse_label_selector(text: str) -> tuple[Requirement, ...]:
    """Parse `a=b,c!=d,e in (f,g),!h`. Raises a 400 ApiError."""
    requirements: list[Requirement] = []
    position = 0
    while position < len(text):
        requirement, position = _parse_term(text, position)
        requirements.append(requirement)
    return tuple(requirements)


def _parse_term(text: str, position: int) -> tuple[Requirement, int]:
    if match := _SET.match(text, position):
        values = frozenset(part.strip() for part in match[3].split(","))
        _check_values(text, values)
        return Requirement(match[1], match[2], values), match.end()
    if match := _EQUALITY.match(text, position):
        operator = {"=": "in", "==": "in", "!=": "notin"}.get(match[2], match[2])
        values = frozenset((match[3],))
        _check_values(text, values)
        return Requirement(match[1], operator, values), match.end()
    if match := _EXISTS.match(text, position):
        return Requirement(match[2], "absent" if match[1] else "exists"), match.end()
    raise bad_request(
        f'unable to parse requirement: found "{text[position:].strip()[:60]}", '
        "expected a term like key=value, key in (a,b), key or !key"
    )


def _check_values(text: str, values: frozenset[str]) -> None:
    for value in values:
        if len(value) > 63 or not _VALUE.fullmatch(value):
            raise bad_request(f'unable to parse "{text}": invalid label value "{value}"')


def match_labels(requirements: tuple[Requirement, ...], labels: Mapping[str, str]) -> bool:
    """Tell whether the labels satisfy all terms."""
    return all(requirement.matches(labels) for requirement in requirements)


# Fields that may be selected besides metadata.name and metadata.namespace, per storage.
# https://kubernetes.io/docs/concepts/overview/working-with-objects/field-selectors/
_SELECTABLE: dict[str, frozenset[str]] = {
    "pods": frozenset(
        {
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        }
    ),
    "events": frozenset(
        {
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        }
    ),
    "secrets": frozenset({"type"}),
    "namespaces": frozenset({"status.phase"}),
    "nodes": frozenset({"spec.unschedulable"}),
    "services": frozenset({"spec.clusterIP", "spec.type"}),
    "replicasets.apps": frozenset({"status.replicas"}),
    "replicationcontrollers": frozenset({"status.replicas"}),
    "jobs.batch": frozenset({"status.successful"}),
    "certificatesigningrequests.certificates.k8s.io": frozenset({"spec.signerName"}),
}
# Booleans and numbers that are absent when false or zero.
_ABSENT = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.replicas": "0"}
# events.k8s.io names the same fields differently.
_EVENT_ALIASES = {"regarding": "involvedObject", "reportingController": "reportingComponent"}


def _selectable(resource: Resource) -> frozenset[str]:
    fields = _SELECTABLE.get(resource.storage, frozenset())
    declared = getattr(resource.crd, "selectable_fields", None)
    if isinstance(declared, Mapping):
        declared = declared.get(resource.version)
    if declared:
        fields |= {str(path).lstrip(".") for path in declared}
    return fields


def field_value(obj: JsonObject, path: str) -> str:
    """Return the field as a selector compares it; "" if it is not set."""
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return _ABSENT.get(path, "")
    if path == "source" and isinstance(value, dict):
        value = value.get("component", "")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


@dataclass(frozen=True, slots=True)
class FieldTerm:
    """One term of a field selector."""

    path: str
    value: str
    negate: bool


def parse_field_selector(text: str, resource: Resource) -> tuple[FieldTerm, ...]:
    """Parse `metadata.name=a,status.phase!=Running`. Raises a 400 ApiError."""
    terms: list[FieldTerm] = []
    for part in filter(None, re.split(r"(?<!\\),", text)):
        match = re.fullmatch(r"\s*([A-Za-z0-9_.\-/\[\]]+?)\s*(==|=|!=)(.*)", part, re.DOTALL)
        if match is None:
            raise bad_request(f'invalid field selector "{text}": expected path=value')
        path = match[1]
        head, _, tail = path.partition(".")
        if resource.storage == "events" and head in _EVENT_ALIASES:
            path = _EVENT_ALIASES[head] + (f".{tail}" if tail else "")
        known = path in ("metadata.name", "metadata.namespace") or path in _selectable(resource)
        if not known:
            raise _unknown_field(resource, path)
        value = re.sub(r"\\(.)", r"\1", match[3].strip())
        terms.append(FieldTerm(path, value, match[2] == "!="))
    return tuple(terms)


def _unknown_field(resource: Resource, path: str) -> ApiError:
    return bad_request(
        f'Unable to find "{resource.group}/{resource.version}, Resource={resource.plural}" that '
        f'match label selector "", field selector "{path}": '
        f"field label not supported: {path}"
    )


def build_predicate(label_selector: str, field_selector: str, resource: Resource) -> Predicate:
    """Return a predicate for both selectors over stored objects; it accepts all if both are empty.

    Raises a 400 ApiError for a selector that cannot be understood.
    """
    requirements = parse_label_selector(label_selector)
    terms = parse_field_selector(field_selector, resource)
    if not requirements and not terms:
        return accept_all

    def matches(obj: JsonObject) -> bool:
        if requirements:
            labels = obj["metadata"].get("labels") or {}
            if not all(requirement.matches(labels) for requirement in requirements):
                return False
        return all((field_value(obj, term.path) == term.value) != term.negate for term in terms)

    return matches


def accept_all(_obj: JsonObject) -> bool:
    """The predicate of a request without selectors."""
    return True


def selected_name(field_selector: str) -> str:
    """Return the name that `metadata.name=` asks for, "" if the selector does not fix it."""
    match = re.search(r"(?:^|,)metadata\.name==?([^,]+)", field_selector)
    return match[1] if match else ""
