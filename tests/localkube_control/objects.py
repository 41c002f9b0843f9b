"""Small builders of Kubernetes objects for the tests of controllers."""

import itertools
from datetime import UTC, datetime
from typing import Any

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
EARLIER = "2026-03-01T11:00:00Z"
_numbers = itertools.count(1)


def meta(name: str, namespace: str | None = "ns", **fields: Any) -> dict[str, Any]:
    number = next(_numbers)
    result = {
        "name": name,
        "uid": f"uid-{name}-{number}",
        "resourceVersion": str(number),
        "creationTimestamp": EARLIER,
        "generation": 1,
    }
    if namespace:
        result["namespace"] = namespace
    return {**result, **fields}


def owner_of(owner: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def pod(
    name: str,
    *,
    labels: dict[str, str] | None = None,
    owner: dict[str, Any] | None = None,
    ready: bool = True,
    phase: str = "Running",
    ip: str | None = "10.244.0.9",
    node: str | None = "node0",
    terminating: bool = False,
    since: str = EARLIER,
    **spec: Any,
) -> dict[str, Any]:
    metadata = meta(name, labels=labels or {"app": "web"})
    if owner is not None:
        metadata["ownerReferences"] = owner_of(owner)
    if terminating:
        metadata["deletionTimestamp"] = "2026-03-01T12:00:30Z"
    status: dict[str, Any] = {"phase": phase}
    if ip:
        status["podIP"] = ip
    condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since}
    status["conditions"] = [condition]
    fields: dict[str, Any] = {"containers": [{"name": "c", "image": "x"}], **spec}
    if node:
        fields["nodeName"] = node
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": fields,
        "status": status,
    }


def template(image: str = "x", **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "web", **labels}},
        "spec": {"containers": [{"name": "c", "image": image}]},
    }


def workload(kind: str, name: str, *, api: str = "apps/v1", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": meta(name),
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": template(),
            **spec,
        },
    }


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    fields = {
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": 8000, "protocol": "TCP"}],
        "clusterIP": "10.96.1.1",
        **spec,
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta(name), "spec": fields}


def node(name: str = "node0", *, ready: str = "True", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta(name, None, labels={"kubernetes.io/hostname": name}),
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


def of_type(plan: Any, kind: type) -> list[Any]:
    return [action for action in plan.actions if isinstance(action, kind)]
