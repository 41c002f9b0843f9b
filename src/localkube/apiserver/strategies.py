"""What each kind's objects look like when they are created and changed, before admission.

In: objects as clients send them. Out: objects with the server's own fields set, and the parts
that this request may not change put back. Pure; the rules are those of Kubernetes' registry
strategies for the kinds that need any. Given objects may be changed: they belong to the request.
"""

from __future__ import annotations

import base64
import uuid
from typing import Any

from localkube.apiserver.errors import ApiError, bad_request
from localkube.apiserver.resources import Resource

JsonObject = dict[str, Any]

# Built-in kinds whose metadata.generation counts changes of what is desired.
_GENERATION = frozenset(
    {
        "pods",
        "replicationcontrollers",
        "daemonsets.apps",
        "deployments.apps",
        "replicasets.apps",
        "statefulsets.apps",
        "cronjobs.batch",
        "jobs.batch",
        "poddisruptionbudgets.policy",
        "ingresses.networking.k8s.io",
        "ingressclasses.networking.k8s.io",
        "networkpolicies.networking.k8s.io",
        "mutatingwebhookconfigurations.admissionregistration.k8s.io",
        "validatingwebhookconfigurations.admissionregistration.k8s.io",
        "validatingadmissionpolicies.admissionregistration.k8s.io",
        "validatingadmissionpolicybindings.admissionregistration.k8s.io",
        "customresourcedefinitions.apiextensions.k8s.io",
        "priorityclasses.scheduling.k8s.io",
    }
)
# Kinds that register themselves with a status, or whose status is written like any field.
_STATUS_KEPT_ON_CREATE = frozenset({"nodes"})
# Fields of metadata that only the server sets.
_SERVER_METADATA = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
)


def has_generation(resource: Resource) -> bool:
    """Tell whether the kind counts its generations; all custom resources do."""
    return resource.crd is not None or resource.storage in _GENERATION


def prepare_create(resource: Resource, obj: JsonObject, now: str) -> JsonObject:
    """Set what the server sets on a new object: identity, generation, initial status."""
    metadata = obj["metadata"]
    for name in (*_SERVER_METADATA, "resourceVersion"):
        metadata.pop(name, None)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = now
    if has_generation(resource):
        metadata["generation"] = 1
    if "status" in resource.subresources and resource.storage not in _STATUS_KEPT_ON_CREATE:
        obj.pop("status", None)
    _finish(resource, obj)
    match resource.storage:
        case "pods":
            obj["status"] = {"phase": "Pending", "qosClass": pod_qos_class(obj)}
        case "namespaces":
            spec = obj.setdefault("spec", {})
            spec["finalizers"] = ["kubernetes"]
            obj["status"] = {"phase": "Active"}
        case "persistentvolumeclaims":
            obj["status"] = {"phase": "Pending"}
        case "persistentvolumes":
            obj["status"] = {"phase": "Available"}
        case "services":
            obj["status"] = {"loadBalancer": {}}
        case "jobs.batch":
            _generate_job_selector(obj)
    return obj


def _generate_job_selector(job: JsonObject) -> None:
    """A Job selects its pods by its own uid, unless it says that it selects by itself.

    https://kubernetes.io/docs/concepts/workloads/controllers/job/#specifying-your-own-pod-selector
    """
    spec = job.get("spec")
    if not isinstance(spec, dict) or spec.get("manualSelector"):
        return
    uid, name = job["metadata"]["uid"], job["metadata"]["name"]
    template = spec.setdefault("template", {})
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    for prefix in ("", "batch.kubernetes.io/"):
        labels.setdefault(f"{prefix}controller-uid", uid)
        labels.setdefault(f"{prefix}job-name", name)
    if not spec.get("selector"):
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}


def prepare_update(
    resource: Resource, subresource: str, new: JsonObject, old: JsonObject
) -> JsonObject:
    """Put back what a request to this subresource ("" is the object itself) may not change."""
    new = _limit_to_subresource(resource, subresource, new, old)
    metadata, before = new["metadata"], old["metadata"]
    for name in _SERVER_METADATA:
        if name in before:
            metadata[name] = before[name]
        else:
            metadata.pop(name, None)
    metadata["name"] = before["name"]
    if "namespace" in before:
        metadata["namespace"] = before["namespace"]
    _finish(resource, new)
    if resource.storage == "namespaces" and subresource != "finalize":
        kept = old.get("spec", {}).get("finalizers")
        if kept:
            new.setdefault("spec", {})["finalizers"] = kept
        elif "spec" in new:
            new["spec"].pop("finalizers", None)
    if has_generation(resource) and subresource != "status" and _desired_changed(new, old):
        metadata["generation"] = before.get("generation", 0) + 1
    return new


def _limit_to_subresource(
    resource: Resource, subresource: str, new: JsonObject, old: JsonObject
) -> JsonObject:
    if subresource in ("status", "approval"):
        if resource.crd is not None:
            limited = {**old, "metadata": {**old["metadata"]}}
            _take_managed_fields(limited, new)
        else:
            limited = {**old, "metadata": {**new["metadata"]}}
            for name in ("ownerReferences", "finalizers"):
                _take(limited["metadata"], old["metadata"], name)
        _take(limited, new, "status")
        if subresource == "approval":
            _only_approval(limited, new, old)
        return limited
    if subresource == "finalize":
        limited = {**old, "metadata": {**old["metadata"]}}
        finalizers = (new.get("spec") or {}).get("finalizers") or []
        limited["spec"] = {**old.get("spec", {}), "finalizers": finalizers}
        return limited
    if "status" in resource.subresources and subresource != "binding":
        _take(new, old, "status")
    return new


def _only_approval(limited: JsonObject, new: JsonObject, old: JsonObject) -> None:
    status = {**(old.get("status") or {})}
    _take(status, new.get("status") or {}, "conditions")
    limited["status"] = status


def _take_managed_fields(target: JsonObject, source: JsonObject) -> None:
    if source["metadata"].get("managedFields"):
        target["metadata"]["managedFields"] = source["metadata"]["managedFields"]


def _take(target: JsonObject, source: JsonObject, name: str) -> None:
    if name in source:
        target[name] = source[name]
    else:
        target.pop(name, None)


def _desired_changed(new: JsonObject, old: JsonObject) -> bool:
    ignored = ("metadata", "status", "apiVersion", "kind")
    return {k: v for k, v in new.items() if k not in ignored} != {
        k: v for k, v in old.items() if k not in ignored
    }


def _finish(resource: Resource, obj: JsonObject) -> None:
    """Normalise what holds for every write of a kind."""
    metadata = obj["metadata"]
    for name in ("labels", "annotations", "finalizers", "ownerReferences"):
        if name in metadata and not metadata[name]:
            del metadata[name]
    if resource.storage == "namespaces":
        labels = metadata.setdefault("labels", {})
        labels["kubernetes.io/metadata.name"] = metadata["name"]
    elif resource.storage == "secrets":
        _encode_string_data(obj)


def _encode_string_data(secret: JsonObject) -> None:
    texts = secret.pop("stringData", None)
    if not texts:
        return
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        raise bad_request("Secret stringData: every value is a string")
    data = {**(secret.get("data") or {})}
    for key, text in texts.items():
        data[key] = base64.b64encode(text.encode()).decode()
    secret["data"] = data


def pod_qos_class(pod: JsonObject) -> str:
    """Return Guaranteed, Burstable or BestEffort, from the containers' requests and limits."""
    spec = pod.get("spec") or {}
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    resources = [c.get("resources") or {} for c in containers if isinstance(c, dict)]
    wanted = [
        {**(r.get("limits") or {}), **(r.get("requests") or {})}
        for r in resources
        if isinstance(r, dict)
    ]
    compute = ("cpu", "memory")
    if not any(name in want for want in wanted for name in compute):
        return "BestEffort"
    for limited, want in zip(resources, wanted, strict=False):
        limits = limited.get("limits") or {}
        if any(name not in limits or want.get(name) != limits[name] for name in compute):
            return "Burstable"
    return "Guaranteed"


def check_identity(resource: Resource, obj: JsonObject, namespace: str, name: str) -> None:
    """Check that an object is of the path's kind, namespace and name; fill in what is missing.

    Raises ApiError 400.
    """
    kind, api_version = obj.get("kind"), obj.get("apiVersion")
    obj.setdefault("kind", resource.kind)
    obj.setdefault("apiVersion", resource.api_version)
    if kind not in (None, "", resource.kind) or api_version not in (
        None,
        "",
        resource.api_version,
    ):
        raise bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): it is "
            f"{api_version} {kind}, expected {resource.api_version} {resource.kind}"
        )
    metadata = obj.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise bad_request("metadata is not an object")
    if resource.namespaced:
        given = metadata.get("namespace")
        if given and given != namespace:
            raise _mismatch("namespace", given, namespace)
        metadata["namespace"] = namespace
    else:
        metadata.pop("namespace", None)
    if name:
        given = metadata.get("name")
        if given and given != name:
            raise _mismatch("name", given, name)
        metadata["name"] = name
    for key in ("name", "generateName"):
        if not isinstance(metadata.get(key, ""), str):
            raise bad_request(f"metadata.{key} is not a string")


def _mismatch(field: str, given: str, expected: str) -> ApiError:
    if field == "namespace":
        return bad_request(
            "the namespace of the provided object does not match the namespace sent on the "
            f"request: {given} is not {expected}"
        )
    return bad_request(
        f"the name of the object ({given}) does not match the name on the URL ({expected})"
    )
