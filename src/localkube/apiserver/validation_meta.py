"""Check what all kinds have in common: names, labels, annotations, owners, and their updates.

In: an object's metadata. Out: field errors. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localkube.apiserver import validation_errors as fe
from localkube.apiserver import validation_formats as formats
from localkube.apiserver.errors import FieldError

Object = dict[str, Any]

ANNOTATIONS_BYTES_MAX = 256 * 1024

_NAME_RULES: dict[tuple[str, str], Callable[[str], str | None]] = {
    ("", "Namespace"): formats.check_dns_label,
    ("", "Service"): formats.check_dns_1035,
    ("rbac.authorization.k8s.io", "Role"): formats.check_path_segment,
    ("rbac.authorization.k8s.io", "ClusterRole"): formats.check_path_segment,
    ("rbac.authorization.k8s.io", "RoleBinding"): formats.check_path_segment,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): formats.check_path_segment,
}


def validate_metadata(
    group: str, kind: str, metadata: Object, *, namespaced: bool
) -> list[FieldError]:
    """Errors in an object's metadata."""
    errors: list[FieldError] = []
    name = metadata.get("name")
    if not name:
        detail = "name or generateName is required"
        errors.append(fe.required("metadata.name", detail))
    elif isinstance(name, str):
        problem = _NAME_RULES.get((group, kind), formats.check_dns_subdomain)(name)
        if problem:
            errors.append(fe.invalid("metadata.name", name, problem))
    namespace = metadata.get("namespace")
    if namespaced and not namespace:
        errors.append(fe.required("metadata.namespace"))
    if not namespaced and namespace:
        errors.append(fe.forbidden("metadata.namespace", "not allowed on this type"))
    errors += validate_labels(metadata.get("labels"), "metadata.labels")
    errors += _validate_annotations(metadata.get("annotations"))
    errors += _validate_owners(metadata.get("ownerReferences"))
    for index, finalizer in enumerate(metadata.get("finalizers") or ()):
        problem = formats.check_qualified_name(str(finalizer))
        if problem:
            errors.append(fe.invalid(f"metadata.finalizers[{index}]", finalizer, problem))
    return errors


def validate_labels(labels: Any, path: str) -> list[FieldError]:
    """Errors in a label map."""
    errors: list[FieldError] = []
    if not isinstance(labels, dict):
        return errors
    for key, value in labels.items():
        problem = formats.check_qualified_name(key)
        if problem:
            errors.append(fe.invalid(path, key, problem))
        if not isinstance(value, str):
            errors.append(fe.invalid(path, value, "must be of type string"))
            continue
        problem = formats.check_label_value(value)
        if problem:
            errors.append(fe.invalid(path, value, problem))
    return errors


def _validate_annotations(annotations: Any) -> list[FieldError]:
    errors: list[FieldError] = []
    if not isinstance(annotations, dict):
        return errors
    size = 0
    for key, value in annotations.items():
        problem = formats.check_qualified_name(key.lower())
        if problem:
            errors.append(fe.invalid("metadata.annotations", key, problem))
        if not isinstance(value, str):
            errors.append(fe.invalid("metadata.annotations", value, "must be of type string"))
            continue
        size += len(key.encode()) + len(value.encode())
    if size > ANNOTATIONS_BYTES_MAX:
        errors.append(fe.too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX))
    return errors


def _validate_owners(owners: Any) -> list[FieldError]:
    errors: list[FieldError] = []
    controllers: list[str] = []
    for index, owner in enumerate(owners or ()):
        path = f"metadata.ownerReferences[{index}]"
        if not isinstance(owner, dict):
            errors.append(fe.invalid(path, owner, "must be of type object"))
            continue
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                errors.append(
                    fe.invalid(f"{path}.{field}", owner.get(field, ""), "must not be empty")
                )
        if owner.get("controller"):
            controllers.append(f"{owner.get('kind')}/{owner.get('name')}")
    if len(controllers) > 1:
        errors.append(
            fe.invalid(
                "metadata.ownerReferences",
                controllers,
                'Only one reference can have Controller set to true. Found "true" in references '
                f"for {controllers[0]} and {controllers[1]}",
            )
        )
    return errors


def validate_metadata_update(new: Object, old: Object) -> list[FieldError]:
    """Errors in a change of metadata: name, namespace, uid and creation time stay."""
    errors: list[FieldError] = []
    for field in ("name", "namespace", "uid", "creationTimestamp"):
        before, after = old.get(field), new.get(field)
        if before is not None and after is not None and before != after:
            errors.append(fe.invalid(f"metadata.{field}", after, "field is immutable"))
    return errors


def validate_label_selector(selector: Any, path: str) -> list[FieldError]:
    """Errors in a metav1.LabelSelector."""
    errors: list[FieldError] = []
    if not isinstance(selector, dict):
        return errors
    errors += validate_labels(selector.get("matchLabels"), f"{path}.matchLabels")
    for index, requirement in enumerate(selector.get("matchExpressions") or ()):
        here = f"{path}.matchExpressions[{index}]"
        operator, values = requirement.get("operator"), requirement.get("values") or []
        if operator in ("In", "NotIn"):
            if not values:
                errors.append(
                    fe.required(
                        f"{here}.values",
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    )
                )
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                errors.append(
                    fe.forbidden(
                        f"{here}.values",
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    )
                )
        else:
            errors.append(fe.invalid(f"{here}.operator", operator, "not a valid selector operator"))
        problem = formats.check_qualified_name(str(requirement.get("key", "")))
        if problem:
            errors.append(fe.invalid(f"{here}.key", requirement.get("key", ""), problem))
    return errors
