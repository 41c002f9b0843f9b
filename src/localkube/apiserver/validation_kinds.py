"""Check built-in kinds: workloads, ConfigMaps, webhooks, RBAC, Ingress; and find the other rules.

In: an object whose types are right. Out: field errors in Kubernetes' words. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localkube.apiserver import validation_errors as fe
from localkube.apiserver import validation_formats as formats
from localkube.apiserver.errors import FieldError
from localkube.apiserver.rbac import GROUP as RBAC_GROUP
from localkube.apiserver.rbac import label_selector_matches
from localkube.apiserver.validation_meta import validate_label_selector, validate_labels
from localkube.apiserver.validation_pods import validate_pod_spec, validate_pod_update
from localkube.apiserver.validation_services import validate_service, validate_service_update

Object = dict[str, Any]
Errors = list[FieldError]

SECRET_BYTES_MAX = 1024 * 1024


def _validate_pod(obj: Object) -> Errors:
    return validate_pod_spec(obj.get("spec") or {}, "spec")


def _validate_template(spec: Object, errors: Errors, *, restart: tuple[str, ...]) -> None:
    template = spec.get("template")
    if not isinstance(template, dict):
        errors.append(fe.required("spec.template"))
        return
    metadata = template.get("metadata") or {}
    errors += validate_labels(metadata.get("labels"), "spec.template.metadata.labels")
    pod = template.get("spec") or {}
    errors += validate_pod_spec(pod, "spec.template.spec")
    policy = pod.get("restartPolicy")
    if policy is not None and policy not in restart:
        errors.append(fe.unsupported("spec.template.spec.restartPolicy", policy, restart))


def _validate_selector(spec: Object, errors: Errors) -> None:
    selector = spec.get("selector")
    if not isinstance(selector, dict):
        errors.append(fe.required("spec.selector"))
        return
    errors += validate_label_selector(selector, "spec.selector")
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        errors.append(fe.invalid("spec.selector", selector, "empty selector is invalid"))
        return
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    if not label_selector_matches(selector, labels):
        errors.append(
            fe.invalid(
                "spec.template.metadata.labels",
                labels,
                "`selector` does not match template `labels`",
            )
        )


def _validate_not_negative(spec: Object, errors: Errors, *fields: str) -> None:
    for field in fields:
        value = spec.get(field)
        if isinstance(value, int) and value < 0:
            errors.append(fe.invalid(f"spec.{field}", value, "must be greater than or equal to 0"))


def _validate_workload(obj: Object) -> Errors:
    errors: Errors = []
    spec = obj.get("spec") or {}
    _validate_not_negative(spec, errors, "replicas", "minReadySeconds", "revisionHistoryLimit")
    _validate_selector(spec, errors)
    _validate_template(spec, errors, restart=("Always",))
    return errors


def _validate_deployment(obj: Object) -> Errors:
    errors = _validate_workload(obj)
    strategy = (obj.get("spec") or {}).get("strategy") or {}
    kind = strategy.get("type")
    if kind not in ("Recreate", "RollingUpdate"):
        errors.append(fe.unsupported("spec.strategy.type", kind, ("Recreate", "RollingUpdate")))
    rolling = strategy.get("rollingUpdate")
    if kind == "Recreate" and rolling:
        errors.append(
            fe.forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            )
        )
    if kind == "RollingUpdate" and isinstance(rolling, dict):
        for field in ("maxUnavailable", "maxSurge"):
            problem = formats.check_percent_or_int(rolling.get(field))
            if problem:
                path = f"spec.strategy.rollingUpdate.{field}"
                errors.append(fe.invalid(path, rolling.get(field), problem))
        if all(rolling.get(field) in (0, "0%") for field in ("maxUnavailable", "maxSurge")):
            errors.append(
                fe.invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    rolling.get("maxUnavailable"),
                    "may not be 0 when `maxSurge` is 0",
                )
            )
    return errors


def _validate_job(obj: Object) -> Errors:
    errors: Errors = []
    spec = obj.get("spec") or {}
    _validate_not_negative(
        spec,
        errors,
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    )
    _validate_template(spec, errors, restart=("OnFailure", "Never"))
    return errors


def _validate_cron_job(obj: Object) -> Errors:
    spec = obj.get("spec") or {}
    errors: Errors = []
    schedule = str(spec.get("schedule") or "")
    if len(schedule.split()) != 5 and not schedule.startswith("@"):
        detail = f"expected exactly 5 fields, found {len(schedule.split())}: {schedule}"
        errors.append(fe.invalid("spec.schedule", schedule, detail))
    policies = ("Allow", "Forbid", "Replace")
    if spec.get("concurrencyPolicy") not in (None, *policies):
        errors.append(fe.unsupported("spec.concurrencyPolicy", spec["concurrencyPolicy"], policies))
    return errors


# -- configuration ----------------------------------------------------------------------------


def _validate_config_map(obj: Object) -> Errors:
    errors: Errors = []
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    size = 0
    for field, values in (("data", data), ("binaryData", binary)):
        for key, value in values.items():
            if problem := formats.check_config_key(key):
                errors.append(fe.invalid(f"{field}[{key}]", key, problem))
            if field == "binaryData" and key in data:
                errors.append(
                    fe.invalid(f"{field}[{key}]", key, "duplicate of key present in data")
                )
            size += len(str(value))
    if size > SECRET_BYTES_MAX:
        errors.append(fe.too_long("", SECRET_BYTES_MAX))
    return errors


_SECRET_KEYS = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


def _validate_secret(obj: Object) -> Errors:
    errors: Errors = []
    values = obj.get("data") or {}
    for key in values:
        if problem := formats.check_config_key(key):
            errors.append(fe.invalid(f"data[{key}]", key, problem))
    if sum(len(str(value)) for value in values.values()) * 3 // 4 > SECRET_BYTES_MAX:
        errors.append(fe.too_long("data", SECRET_BYTES_MAX))
    kind = obj.get("type")
    for key in _SECRET_KEYS.get(str(kind), ()):
        if key not in values:
            errors.append(fe.required(f"data[{key}]"))
    if kind == "kubernetes.io/service-account-token":
        key = "kubernetes.io/service-account.name"
        if not ((obj.get("metadata") or {}).get("annotations") or {}).get(key):
            errors.append(fe.required(f"metadata.annotations[{key}]"))
    return errors


def _validate_webhooks(obj: Object) -> Errors:
    errors: Errors = []
    names: set[str] = set()
    for index, webhook in enumerate(obj.get("webhooks") or ()):
        path = f"webhooks[{index}]"
        name = webhook.get("name") or ""
        if name.count(".") < 2 or formats.check_dns_subdomain(name):
            detail = "should be a domain with at least three segments separated by dots"
            errors.append(fe.invalid(f"{path}.name", name, detail))
        if name in names:
            errors.append(fe.duplicate(f"{path}.name", name))
        names.add(name)
        _validate_webhook(webhook, path, errors)
    return errors


def _validate_webhook(webhook: Object, path: str, errors: Errors) -> None:
    versions = webhook.get("admissionReviewVersions") or ()
    if not versions:
        errors.append(fe.required(f"{path}.admissionReviewVersions", "must specify one of v1"))
    elif not {"v1", "v1beta1"} & set(versions):
        detail = "must include at least one of v1, v1beta1"
        errors.append(fe.invalid(f"{path}.admissionReviewVersions", versions, detail))
    effects = ("None", "NoneOnDryRun")
    if webhook.get("sideEffects") not in effects:
        errors.append(fe.unsupported(f"{path}.sideEffects", webhook.get("sideEffects"), effects))
    for field, allowed in (
        ("failurePolicy", ("Fail", "Ignore")),
        ("matchPolicy", ("Equivalent", "Exact")),
        ("reinvocationPolicy", ("IfNeeded", "Never")),
    ):
        if webhook.get(field) not in (None, *allowed):
            errors.append(fe.unsupported(f"{path}.{field}", webhook[field], allowed))
    timeout_s = webhook.get("timeoutSeconds")
    if timeout_s is not None and not 1 <= timeout_s <= 30:
        detail = "the timeout value must be between 1 and 30 seconds"
        errors.append(fe.invalid(f"{path}.timeoutSeconds", timeout_s, detail))
    for field in ("namespaceSelector", "objectSelector"):
        errors += validate_label_selector(webhook.get(field), f"{path}.{field}")
    client = webhook.get("clientConfig") or {}
    if ("url" in client) == ("service" in client):
        errors.append(
            fe.required(f"{path}.clientConfig", "exactly one of url or service is required")
        )
    if "url" in client and not str(client["url"]).startswith("https://"):
        detail = "'https' is the only allowed URL scheme"
        errors.append(fe.invalid(f"{path}.clientConfig.url", client["url"], detail))
    for index, rule in enumerate(webhook.get("rules") or ()):
        for field in ("operations", "apiGroups", "apiVersions", "resources"):
            if not rule.get(field):
                errors.append(fe.required(f"{path}.rules[{index}].{field}"))


def _validate_role(obj: Object) -> Errors:
    errors: Errors = []
    namespaced = obj.get("kind") == "Role"
    for index, rule in enumerate(obj.get("rules") or ()):
        path = f"rules[{index}]"
        if not rule.get("verbs"):
            errors.append(fe.required(f"{path}.verbs", "verbs must contain at least one value"))
        if rule.get("nonResourceURLs"):
            if namespaced:
                detail = "namespaced rules cannot apply to non-resource URLs"
                errors.append(
                    fe.invalid(f"{path}.nonResourceURLs", rule["nonResourceURLs"], detail)
                )
            continue
        for field, what in (("apiGroups", "api groups"), ("resources", "resource")):
            if not rule.get(field):
                detail = f"resource rules must supply at least one {what}"
                errors.append(fe.required(f"{path}.{field}", detail))
    return errors


def _validate_binding(obj: Object) -> Errors:
    errors: Errors = []
    ref = obj.get("roleRef") or {}
    if ref.get("apiGroup") != RBAC_GROUP:
        errors.append(fe.unsupported("roleRef.apiGroup", ref.get("apiGroup"), (RBAC_GROUP,)))
    kinds = ("ClusterRole",) if obj.get("kind") != "RoleBinding" else ("Role", "ClusterRole")
    if ref.get("kind") not in kinds:
        errors.append(fe.unsupported("roleRef.kind", ref.get("kind"), kinds))
    if not ref.get("name"):
        errors.append(fe.required("roleRef.name"))
    for index, subject in enumerate(obj.get("subjects") or ()):
        path = f"subjects[{index}]"
        if not subject.get("name"):
            errors.append(fe.required(f"{path}.name"))
        subjects = ("ServiceAccount", "User", "Group")
        if subject.get("kind") not in subjects:
            errors.append(fe.unsupported(f"{path}.kind", subject.get("kind"), subjects))
        if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
            errors.append(fe.required(f"{path}.namespace"))
    return errors


def _validate_ingress(obj: Object) -> Errors:
    errors: Errors = []
    spec = obj.get("spec") or {}
    if not spec.get("rules") and not spec.get("defaultBackend"):
        detail = "either `defaultBackend` or `rules` must be specified"
        errors.append(fe.invalid("spec", spec, detail))
    types = ("Exact", "ImplementationSpecific", "Prefix")
    for index, rule in enumerate(spec.get("rules") or ()):
        for number, entry in enumerate((rule.get("http") or {}).get("paths") or ()):
            path = f"spec.rules[{index}].http.paths[{number}]"
            kind = entry.get("pathType")
            if kind is None:
                errors.append(fe.required(f"{path}.pathType", "pathType must be specified"))
            elif kind not in types:
                errors.append(fe.unsupported(f"{path}.pathType", kind, types))
            elif kind != "ImplementationSpecific" and not str(entry.get("path") or "").startswith(
                "/"
            ):
                detail = "must be an absolute path"
                errors.append(fe.invalid(f"{path}.path", entry.get("path") or "", detail))
    return errors


def _validate_endpoint_slice(obj: Object) -> Errors:
    errors: Errors = []
    types = ("FQDN", "IPv4", "IPv6")
    if obj.get("addressType") not in types:
        errors.append(fe.unsupported("addressType", obj.get("addressType"), types))
    for index, endpoint in enumerate(obj.get("endpoints") or ()):
        if not endpoint.get("addresses"):
            path = f"endpoints[{index}].addresses"
            errors.append(fe.required(path, "must contain at least 1 address"))
        for number, address in enumerate(endpoint.get("addresses") or ()):
            if obj.get("addressType") in ("IPv4", "IPv6") and formats.check_ip(str(address)):
                path = f"endpoints[{index}].addresses[{number}]"
                errors.append(fe.invalid(path, address, formats.check_ip(str(address)) or ""))
    return errors


_CREATE: dict[tuple[str, str], Callable[[Object], Errors]] = {
    ("", "Pod"): _validate_pod,
    ("", "Service"): validate_service,
    ("", "ConfigMap"): _validate_config_map,
    ("", "Secret"): _validate_secret,
    ("apps", "Deployment"): _validate_deployment,
    ("apps", "ReplicaSet"): _validate_workload,
    ("apps", "StatefulSet"): _validate_workload,
    ("apps", "DaemonSet"): _validate_workload,
    ("batch", "Job"): _validate_job,
    ("batch", "CronJob"): _validate_cron_job,
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): _validate_webhooks,
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): _validate_webhooks,
    (RBAC_GROUP, "Role"): _validate_role,
    (RBAC_GROUP, "ClusterRole"): _validate_role,
    (RBAC_GROUP, "RoleBinding"): _validate_binding,
    (RBAC_GROUP, "ClusterRoleBinding"): _validate_binding,
    ("networking.k8s.io", "Ingress"): _validate_ingress,
    ("discovery.k8s.io", "EndpointSlice"): _validate_endpoint_slice,
}


def validate_kind(group: str, kind: str, obj: Object) -> Errors:
    """Errors by the rules of a built-in kind; none for kinds without rules of their own."""
    function = _CREATE.get((group, kind))
    return function(obj) if function is not None else []


# -- updates ----------------------------------------------------------------------------------

_IMMUTABLE: dict[tuple[str, str], tuple[tuple[str, ...], ...]] = {
    ("apps", "Deployment"): (("spec", "selector"),),
    ("apps", "ReplicaSet"): (("spec", "selector"),),
    ("apps", "DaemonSet"): (("spec", "selector"),),
    ("batch", "Job"): (
        ("spec", "selector"),
        ("spec", "completionMode"),
        ("spec", "podReplacementPolicy"),
    ),
    ("discovery.k8s.io", "EndpointSlice"): (("addressType",),),
}
_STATEFUL_SET_MUTABLE = frozenset(
    {
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    }
)


def validate_kind_update(group: str, kind: str, new: Object, old: Object) -> Errors:
    """Errors in a change by the rules of a built-in kind: what may not change."""
    errors: Errors = []
    for path in _IMMUTABLE.get((group, kind), ()):
        before, after = _at(old, path), _at(new, path)
        if before is not None and before != after:
            errors.append(fe.invalid(".".join(path), after, "field is immutable"))
    match (group, kind):
        case ("", "Pod"):
            errors += validate_pod_update(new, old)
        case ("", "Service"):
            errors += validate_service_update(new.get("spec") or {}, old.get("spec") or {})
        case ("", "Secret"):
            if old.get("type") != new.get("type"):
                errors.append(fe.invalid("type", new.get("type"), "field is immutable"))
            errors += _validate_frozen(new, old, ("data", "immutable"))
        case ("", "ConfigMap"):
            errors += _validate_frozen(new, old, ("data", "binaryData", "immutable"))
        case ("apps", "StatefulSet"):
            errors += _validate_stateful_set_update(new, old)
        case (g, "RoleBinding" | "ClusterRoleBinding") if g == RBAC_GROUP:
            if old.get("roleRef") != new.get("roleRef"):
                errors.append(fe.invalid("roleRef", new.get("roleRef"), "cannot change roleRef"))
        case _:
            pass
    return errors


def _at(obj: Object, path: tuple[str, ...]) -> Any:
    value: Any = obj
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _validate_frozen(new: Object, old: Object, fields: tuple[str, ...]) -> Errors:
    if not old.get("immutable"):
        return []
    return [
        fe.forbidden(field, "field is immutable when `immutable` is set")
        for field in fields
        if (old.get(field) or {}) != (new.get(field) or {})
    ]


def _validate_stateful_set_update(new: Object, old: Object) -> Errors:
    before, after = old.get("spec") or {}, new.get("spec") or {}
    for field in (set(before) | set(after)) - _STATEFUL_SET_MUTABLE:
        if before.get(field) != after.get(field):
            return [
                fe.forbidden(
                    "spec",
                    "updates to statefulset spec for fields other than 'replicas', 'ordinals', "
                    "'template', 'updateStrategy', 'revisionHistoryLimit', "
                    "'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                )
            ]
    return []
