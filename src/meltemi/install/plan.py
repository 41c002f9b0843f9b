"""What is to be done to a cluster, and how an installation is doing: decisions about values.

The operator applies every desired object by server-side apply, which changes only what differs; so the plan's
own work is what apply cannot do: what to prune, and what the status should say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.install.context import Manifest
from meltemi.install.render import Installation

# What an installation may consist of, in the order of removal: what sends traffic before what it relies on.
OWNED_KINDS: tuple[tuple[str, str, bool], ...] = (
    ("autoscaling/v2", "horizontalpodautoscalers", True),
    ("policy/v1", "poddisruptionbudgets", True),
    ("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", False),
    ("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations", False),
    ("apps/v1", "deployments", True),
    ("v1", "services", True),
    ("v1", "configmaps", True),
    ("rbac.authorization.k8s.io/v1", "rolebindings", True),
    ("rbac.authorization.k8s.io/v1", "roles", True),
    ("rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    ("rbac.authorization.k8s.io/v1", "clusterroles", False),
    ("v1", "serviceaccounts", True),
)
CRDS = ("apiextensions.k8s.io/v1", "customresourcedefinitions", False)


@dataclass(frozen=True, slots=True, order=True)
class ObjectId:
    """Identity of an object in a cluster."""

    kind: str
    namespace: str
    name: str


def object_id(manifest: Mapping[str, Any]) -> ObjectId:
    """The identity of a manifest or of an object read from a cluster."""
    metadata = manifest["metadata"]
    return ObjectId(manifest["kind"], metadata.get("namespace") or "", metadata["name"])


def to_prune(installation: Installation, owned: Iterable[Mapping[str, Any]]) -> list[Manifest]:
    """Objects of ``owned`` (in a cluster, with our owner label) that the spec no longer asks for."""
    wanted = {object_id(item) for item in installation.manifests}
    return [dict(item) for item in owned if object_id(item) not in wanted]


def keep_live_fields(manifest: Manifest, live: Mapping[str, Any] | None) -> Manifest:
    """The manifest with the fields of ``live`` that istiod owns once it runs.

    istiod turns the validating webhook from Ignore to Fail when it can answer; applying must not turn it back.
    """
    if live is None:
        return manifest
    policies = {hook["name"]: hook.get("failurePolicy") for hook in live.get("webhooks") or []}
    hooks = [
        {**hook, "failurePolicy": policies.get(hook["name"]) or hook["failurePolicy"]}
        for hook in manifest["webhooks"]
    ]
    return {**manifest, "webhooks": hooks}


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """How one component is: ``HEALTHY``, ``RECONCILING`` or ``ERROR`` with the reason."""

    name: str
    status: str
    error: str = ""


def deployment_ready(deployment: Mapping[str, Any] | None) -> tuple[bool, str]:
    """Whether a Deployment serves what its spec asks for, and what is missing when it does not."""
    if deployment is None:
        return False, "not created yet"
    status, spec = deployment.get("status") or {}, deployment.get("spec") or {}
    if (status.get("observedGeneration") or 0) < (deployment["metadata"].get("generation") or 0):
        return False, "the change has not been seen by its controller yet"
    wanted = spec.get("replicas", 1)
    updated, available = status.get("updatedReplicas") or 0, status.get("availableReplicas") or 0
    if updated < wanted:
        failure = next(
            (
                condition.get("message") or ""
                for condition in status.get("conditions") or []
                if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True"
            ),
            "",
        )
        return False, failure or f"{updated} of {wanted} pods are of the new version"
    if (old := (status.get("replicas") or 0) - updated) > 0:
        # They are kept while the new ones do not come up, and count as available.
        return False, f"{old} pods of the old version still run"
    if available < wanted:
        return False, f"{available} of {wanted} pods are ready"
    return True, ""


def overall(components: Iterable[ComponentHealth]) -> str:
    """The worst of the components' states."""
    states = {component.status for component in components}
    for state in ("ERROR", "RECONCILING"):
        if state in states:
            return state
    return "HEALTHY" if states else "NONE"


def status(components: Iterable[ComponentHealth], generation: int) -> dict[str, Any]:
    """The ``status`` of an IstioOperator, in the shape that Istio's operator wrote."""
    listed = list(components)
    per: dict[str, Any] = {}
    for component in listed:
        entry = {"status": component.status}
        if component.error:
            entry["error"] = component.error
        per[component.name] = entry
    result: dict[str, Any] = {
        "status": overall(listed),
        "componentStatus": per,
        "observedGeneration": generation,
    }
    errors = [f"{c.name}: {c.error}" for c in listed if c.error]
    result["message"] = "; ".join(errors)
    return result
