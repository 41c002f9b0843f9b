"""What every component's manifests depend on, taken once from the resolved spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.install.profiles import HUB, VERSION

Manifest = dict[str, Any]

# Labels by which the operator recognises what it owns; their names are Istio's.
OWNER = "install.operator.istio.io/owning-resource"
OWNER_NAMESPACE = "install.operator.istio.io/owning-resource-namespace"
COMPONENT = "operator.istio.io/component"
MANAGED = "operator.istio.io/managed"
VERSION_LABEL = "operator.istio.io/version"
REVISION = "istio.io/rev"
# On namespaces that an installation made, as Istio's operator labelled its own.
NAMESPACE_LABELS = {"istio-operator-managed": "Reconcile"}
RELEASE = "release=istio"  # as a selector


@dataclass(frozen=True, slots=True)
class InstallContext:
    """The settings that reach across components. ``spec`` is the resolved spec."""

    name: str
    owner_namespace: str
    namespace: str
    revision: str
    hub: str
    tag: str
    spec: Mapping[str, Any]

    @property
    def revision_label(self) -> str:
        """``default`` for an installation without a revision."""
        return self.revision or "default"

    @property
    def suffix(self) -> str:
        """``-canary`` for revision ``canary``, nothing without a revision."""
        return f"-{self.revision}" if self.revision else ""

    @property
    def istiod(self) -> str:
        """Name of the control plane's Deployment and Service."""
        return f"istiod{self.suffix}"

    @property
    def values(self) -> Mapping[str, Any]:
        """``spec.values``."""
        found: Mapping[str, Any] = self.spec.get("values") or {}
        return found

    @property
    def components(self) -> Mapping[str, Any]:
        """``spec.components``."""
        found: Mapping[str, Any] = self.spec.get("components") or {}
        return found

    def image(self, name: str, component: Mapping[str, Any] | None = None) -> str:
        """Image reference of one of our images; a component may name its own hub and tag."""
        own = component or {}
        return f"{own.get('hub') or self.hub}/{name}:{own.get('tag') or self.tag}"

    def labels(self, component: str) -> dict[str, str]:
        """Labels of every object that we install for ``component``."""
        return {
            OWNER: self.name,
            OWNER_NAMESPACE: self.owner_namespace,
            COMPONENT: component,
            MANAGED: "Reconcile",
            VERSION_LABEL: VERSION,
            REVISION: self.revision_label,
            "release": "istio",
        }


def context_from(name: str, owner_namespace: str, resolved: Mapping[str, Any]) -> InstallContext:
    """Build the context of the IstioOperator ``owner_namespace/name`` from its resolved spec."""
    return InstallContext(
        name=name,
        owner_namespace=owner_namespace,
        namespace=resolved.get("namespace") or "istio-system",
        revision=resolved.get("revision") or "",
        hub=resolved.get("hub") or HUB,
        tag=str(resolved.get("tag") or VERSION),
        spec=resolved,
    )


def manifest(
    context: InstallContext,
    component: str,
    api_version: str,
    kind: str,
    name: str,
    *,
    namespaced: bool = True,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    **body: Any,
) -> Manifest:
    """One object with the operator's labels. ``body`` holds the fields beside metadata (spec, data, ...)."""
    metadata: dict[str, Any] = {"name": name}
    if namespaced:
        metadata["namespace"] = context.namespace
    metadata["labels"] = {**context.labels(component), **(labels or {})}
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}
