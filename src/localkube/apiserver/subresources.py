"""Subresources with an object of their own: scale, binding, eviction and token.

In: a `Call`. Out: the subresource's object and the HTTP status. Status, finalize and approval are
the resource's own object and are handled by `writing`; streams are in `node_proxy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from localkube.apiserver import errors
from localkube.apiserver.bodies import (
    APPLY_PATCH,
    JSON_PATCH,
    read_object,
    read_patch,
)
from localkube.apiserver.context import Call, WriteOptions, write_options
from localkube.apiserver.deletion import delete_object
from localkube.apiserver.errors import FieldError
from localkube.apiserver.patch_json import apply_json_patch, apply_merge_patch
from localkube.apiserver.resources import Resource
from localkube.apiserver.selectors import Requirement, parse_label_selector
from localkube.apiserver.tables import dig, selector_text
from localkube.apiserver.versions import from_storage
from localkube.apiserver.writing import ObjectWriter

JsonObject = dict[str, Any]

_SCALE = {"kind": "Scale", "apiVersion": "autoscaling/v1"}


# -- scale ----------------------------------------------------------------------------------------


def _selector(resource: Resource, obj: JsonObject, path: str) -> str:
    if resource.crd is not None:
        found = dig(obj, path, "") if path else ""
        return found if isinstance(found, str) else ""
    text = selector_text(dig(obj, "spec.selector"))
    if obj.get("kind") == "ReplicationController":
        text = selector_text({"matchLabels": dig(obj, "spec.selector", {})})
    return "" if text == "<none>" else text


def build_scale(resource: Resource, obj: JsonObject) -> JsonObject:
    """Return the Scale of an object."""
    if resource.scale_paths is None:
        raise errors.no_such_path()
    spec_path, status_path, selector_path = resource.scale_paths
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    metadata = {key: obj["metadata"][key] for key in kept if key in obj["metadata"]}
    status: JsonObject = {"replicas": dig(obj, status_path, 0)}
    if selector := _selector(resource, obj, selector_path):
        status["selector"] = selector
    return {
        **_SCALE,
        "metadata": metadata,
        "spec": {"replicas": dig(obj, spec_path, 0)},
        "status": status,
    }


def _set_path(obj: JsonObject, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        child = obj.get(part)
        if not isinstance(child, dict):
            child = obj[part] = {}
        obj = child
    obj[last] = value


def get_scale(call: Call) -> JsonObject:
    """Return the named object's Scale."""
    resource = call.resource
    stored = call.server.store.get(resource.storage, call.namespace, call.name)
    if stored is None:
        raise errors.not_found(resource.plural, call.name, resource.group)
    return build_scale(resource, from_storage(resource, stored.object))


async def write_scale(call: Call, writer: ObjectWriter) -> JsonObject:
    """Set the replicas by PUT or PATCH of the Scale; return the Scale then."""
    resource = call.resource
    media_type, body = "", None
    if call.request.method == "PATCH":
        media_type, body = await read_patch(call.request)
    else:
        body = await read_object(call.request, call.warnings)

    def transform(old: JsonObject) -> JsonObject:
        scale = build_scale(resource, old)
        if media_type == JSON_PATCH:
            scale = apply_json_patch(scale, body)
        elif media_type:
            scale = apply_merge_patch(scale, body)
        else:
            scale = body if isinstance(body, dict) else {}
        replicas = _replicas(call, scale)
        assert resource.scale_paths is not None
        _set_path(old, resource.scale_paths[0], replicas)
        asked = (scale.get("metadata") or {}).get("resourceVersion")
        if asked:
            old["metadata"]["resourceVersion"] = asked
        else:
            old["metadata"].pop("resourceVersion", None)
        return old

    if resource.scale_paths is None:
        raise errors.no_such_path()
    options = write_options(call)
    if media_type == APPLY_PATCH and not call.option("fieldManager"):
        raise errors.bad_request("fieldManager is required for apply patch")
    updated = await writer.update(
        resource, call.namespace, call.name, transform, options, subresource="scale"
    )
    return build_scale(resource, updated)


def _replicas(call: Call, scale: Any) -> int:
    if not isinstance(scale, dict) or scale.get("kind") not in (None, "", "Scale"):
        raise errors.bad_request("the body is not a Scale object")
    replicas = dig(scale, "spec.replicas", 0)
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 0:
        cause = FieldError(
            "spec.replicas",
            "FieldValueInvalid",
            f"Invalid value: {replicas}: must be a whole number greater than or equal to 0",
        )
        raise errors.invalid("Scale", call.name, [cause], "autoscaling")
    return replicas


# -- pods -----------------------------------------------------------------------------------------


def _success() -> JsonObject:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "code": 201,
    }


async def bind_pod(call: Call, writer: ObjectWriter, name: str) -> JsonObject:
    """Assign a pod to a node, as a scheduler asks by a Binding."""
    return await _bind(call, writer, name, await read_object(call.request, call.warnings))


async def _bind(call: Call, writer: ObjectWriter, name: str, binding: JsonObject) -> JsonObject:
    node = dig(binding, "target.name", "")
    if not isinstance(node, str) or not node:
        raise errors.bad_request("a Binding names a node: write target: {kind: Node, name: ...}")
    pods = call.server.resource("", "pods")
    now = call.server.timestamp()

    def transform(pod: JsonObject) -> JsonObject:
        if pod["metadata"].get("deletionTimestamp"):
            why = f"pod {name} is being deleted, cannot be assigned to a host"
            raise errors.conflict("pods", name, why=why)
        current = dig(pod, "spec.nodeName", "")
        if current and current != node:
            why = f"pod {name} is already assigned to node {json_text(current)}"
            raise errors.conflict("pods", name, why=why)
        pod.setdefault("spec", {})["nodeName"] = node
        status = pod.setdefault("status", {})
        others = [c for c in status.get("conditions") or () if c.get("type") != "PodScheduled"]
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now}
        status["conditions"] = [*others, scheduled]
        annotations = dig(binding, "metadata.annotations", {})
        if annotations:
            pod["metadata"].setdefault("annotations", {}).update(annotations)
        pod["metadata"].pop("resourceVersion", None)
        return pod

    await writer.update(
        pods, call.namespace, name, transform, write_options(call), subresource="binding"
    )
    return _success()


async def create_binding(call: Call, writer: ObjectWriter) -> JsonObject:
    """Answer POST of a Binding to the bindings collection; its name is the pod's."""
    binding = await read_object(call.request, call.warnings)
    name = dig(binding, "metadata.name", "")
    if not name:
        raise errors.bad_request("a Binding's metadata.name is the pod's name")
    return await _bind(call, writer, name, binding)


def json_text(text: str) -> str:
    """Return the text in double quotes."""
    return f'"{text}"'


async def evict_pod(call: Call) -> JsonObject:
    """Delete a pod if no PodDisruptionBudget forbids it now. Raises ApiError 429 if one does."""
    eviction = await read_object(call.request, call.warnings)
    store = call.server.store
    pods = call.server.resource("", "pods")
    stored = store.get("pods", call.namespace, call.name)
    if stored is None:
        raise errors.not_found("pods", call.name)
    running = dig(stored.object, "status.phase") not in ("Succeeded", "Failed", "Pending")
    if running and not stored.object["metadata"].get("deletionTimestamp"):
        _check_budgets(call, stored.object)
    options = eviction.get("deleteOptions") or {}
    write = write_options(call)
    if "All" in (options.get("dryRun") or ()):
        write = WriteOptions(
            write.user, True, write.field_manager, write.field_validation, False, write.warnings
        )
    await delete_object(call.server, pods, call.namespace, call.name, options, write)
    return _success()


def _check_budgets(call: Call, pod: JsonObject) -> None:
    labels = pod["metadata"].get("labels") or {}
    for budget in call.server.store.list("poddisruptionbudgets.policy", call.namespace):
        selector = dig(budget.object, "spec.selector")
        if selector is None:
            continue
        text = selector_text(selector)
        terms = () if text == "<none>" else parse_label_selector(text)
        if not all(term.matches(labels) for term in terms):
            continue
        status = budget.object.get("status") or {}
        # Without a controller that counts there is no status, and the budget is only kept.
        if "disruptionsAllowed" not in status:
            continue
        # What is healthy is counted now: of several evictions at once, the controller's count
        # would let all through.
        needed, healthy = int(status.get("desiredHealthy") or 0), _healthy(call, terms)
        always = dig(budget.object, "spec.unhealthyPodEvictionPolicy", "") == "AlwaysAllow"
        if not _is_ready(pod) and (always or healthy >= needed > 0):
            continue
        if healthy <= needed or int(status["disruptionsAllowed"] or 0) <= 0:
            cause = (
                f"The disruption budget {budget.name} needs {needed} "
                f"healthy pods and has {healthy} currently"
            )
            raise errors.too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.", 0, cause
            )


def _healthy(call: Call, terms: Sequence[Requirement]) -> int:
    return sum(
        _is_ready(pod.object)
        and not pod.object["metadata"].get("deletionTimestamp")
        and all(term.matches(pod.object["metadata"].get("labels") or {}) for term in terms)
        for pod in call.server.store.list("pods", call.namespace)
    )


def _is_ready(pod: JsonObject) -> bool:
    conditions = dig(pod, "status.conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


# -- service accounts -----------------------------------------------------------------------------


async def create_token(call: Call) -> JsonObject:
    """Answer a TokenRequest for the named ServiceAccount."""
    request = await read_object(call.request, call.warnings)
    request.setdefault("kind", "TokenRequest")
    request.setdefault("apiVersion", "authentication.k8s.io/v1")
    return await call.server.policy.issue_token(call.namespace, call.name, request)
