"""Which webhooks want to see a request.

In: a webhook of a Validating- or MutatingWebhookConfiguration and an operation. Out: whether it
matches, and the version in which it wants the object. Pure but for reading the namespace's labels.
Semantics: "Matching requests" in the page on dynamic admission control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localkube.apiserver import crd_cel
from localkube.apiserver.rbac import label_selector_matches

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader, Operation

Versions = Callable[[str, str], Iterable[str]]
"""(group, plural) -> the versions in which the resource is served."""

_EXEMPT = frozenset(
    {
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
        ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
        ("authentication.k8s.io", "tokenreviews"),
        ("authentication.k8s.io", "selfsubjectreviews"),
        ("authorization.k8s.io", "subjectaccessreviews"),
        ("authorization.k8s.io", "localsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectrulesreviews"),
    }
)


class ConditionError(Exception):
    """A match condition could not be evaluated; the webhook's failure policy decides."""


@dataclass(frozen=True, slots=True)
class Match:
    """A webhook wants the request, with the object in `version`."""

    version: str


def is_exempt(operation: Operation) -> bool:
    """Whether no webhook may ever see this request: it could lock everyone out."""
    return (operation.resource.group, operation.resource.plural) in _EXEMPT


def match_webhook(
    webhook: Object, operation: Operation, reader: ObjectReader, versions: Versions
) -> Match | None:
    """How the webhook wants to see the request, None if it does not.

    Raises ConditionError when a matchCondition fails to evaluate.
    """
    version = _match_rules(webhook, operation, versions)
    if version is None:
        return None
    if not _namespace_matches(webhook.get("namespaceSelector"), operation, reader):
        return None
    if not _object_matches(webhook.get("objectSelector"), operation):
        return None
    if not _conditions_match(webhook.get("matchConditions") or (), operation):
        return None
    return Match(version)


def _match_rules(webhook: Object, operation: Operation, versions: Versions) -> str | None:
    resource = operation.resource
    for rule in webhook.get("rules") or ():
        if _rule_matches(rule, operation) and _has(rule.get("apiVersions"), resource.version):
            return resource.version
    if webhook.get("matchPolicy", "Equivalent") == "Exact":
        return None
    # Equivalent: the same resource asked for through another of its versions.
    for rule in webhook.get("rules") or ():
        if not _rule_matches(rule, operation):
            continue
        for version in versions(resource.group, resource.plural):
            if _has(rule.get("apiVersions"), version):
                return version
    return None


def _has(patterns: Any, value: str) -> bool:
    return bool(patterns) and ("*" in patterns or value in patterns)


def _rule_matches(rule: Object, operation: Operation) -> bool:
    """Everything of a rule but the version."""
    resource = operation.resource
    if not _has(rule.get("operations"), operation.verb):
        return False
    if not _has(rule.get("apiGroups"), resource.group):
        return False
    namespaced = resource.namespaced
    if rule.get("scope", "*") == ("Cluster" if namespaced else "Namespaced"):
        return False
    return any(
        _resource_matches(pattern, resource.plural, operation.subresource)
        for pattern in rule.get("resources") or ()
    )


def _resource_matches(pattern: str, plural: str, subresource: str) -> bool:
    name, _, sub = pattern.partition("/")
    return name in ("*", plural) and (sub == subresource or (sub == "*" and "/" in pattern))


def _namespace_matches(selector: Any, operation: Operation, reader: ObjectReader) -> bool:
    if not selector:
        return True
    if (operation.resource.group, operation.resource.plural) == ("", "namespaces"):
        subject = operation.object or operation.old_object or {}
    elif not operation.resource.namespaced:
        return True
    else:
        subject = reader.read("", "namespaces", None, operation.namespace or "") or {}
    return label_selector_matches(selector, _labels(subject))


def _object_matches(selector: Any, operation: Operation) -> bool:
    if not selector:
        return True
    candidates = [o for o in (operation.object, operation.old_object) if o is not None]
    return any(label_selector_matches(selector, _labels(candidate)) for candidate in candidates)


def _labels(obj: Object) -> dict[str, str]:
    return (obj.get("metadata") or {}).get("labels") or {}


def _conditions_match(conditions: Iterable[Object], operation: Operation) -> bool:
    values: dict[str, Any] | None = None
    problem = ""
    for condition in conditions:
        if values is None:
            values = {
                "object": operation.object,
                "oldObject": operation.old_object,
                "request": build_request(operation, "", operation.resource.version),
            }
        outcome = crd_cel.evaluate(str(condition.get("expression", "")), values)
        if outcome is False:
            return False  # a false condition outweighs one that fails
        if isinstance(outcome, str):
            problem = problem or f'matchCondition "{condition.get("name", "")}": {outcome}'
    if problem:
        raise ConditionError(problem)
    return True


_OPTIONS_KINDS = {
    "CREATE": "CreateOptions",
    "UPDATE": "UpdateOptions",
    "DELETE": "DeleteOptions",
}


def build_request(operation: Operation, uid: str, version: str) -> Object:
    """The `request` of an AdmissionReview, with the object in `version`."""
    resource = operation.resource
    request: Object = {
        "uid": uid,
        "kind": _kind(operation, version),
        "resource": _plural(operation, version),
        "requestKind": _kind(operation, resource.version),
        "requestResource": _plural(operation, resource.version),
        "operation": operation.verb,
        "userInfo": operation.user.user_info(),
        "object": _in_version(operation.object, resource.group, version),
        "oldObject": _in_version(operation.old_object, resource.group, version),
        "dryRun": operation.dry_run,
        "options": None,
    }
    if operation.subresource:
        request["subResource"] = operation.subresource
        request["requestSubResource"] = operation.subresource
    if operation.name:
        request["name"] = operation.name
    if operation.namespace:
        request["namespace"] = operation.namespace
    elif (resource.group, resource.plural) == ("", "namespaces"):
        request["namespace"] = operation.name
    kind = _OPTIONS_KINDS.get(operation.verb)
    if kind is not None:
        request["options"] = {"kind": kind, "apiVersion": "meta.k8s.io/v1", **operation.options}
    return request


def _kind(operation: Operation, version: str) -> Object:
    resource = operation.resource
    return {"group": resource.group, "version": version, "kind": resource.kind}


def _plural(operation: Operation, version: str) -> Object:
    resource = operation.resource
    return {"group": resource.group, "version": version, "resource": resource.plural}


def _in_version(obj: Object | None, group: str, version: str) -> Object | None:
    """The object with another apiVersion; the only conversion there is (strategy None)."""
    api_version = f"{group}/{version}" if group else version
    if obj is None or not group or obj.get("apiVersion") == api_version:
        return obj
    if not str(obj.get("apiVersion", "")).startswith(f"{group}/"):
        return obj  # a subresource's own kind, such as Scale
    return {**obj, "apiVersion": api_version}
