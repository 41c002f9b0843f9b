"""Render an IstioOperator into the objects of each component, in the order of installation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.install import base, gateways, pilot
from meltemi.install.context import InstallContext, Manifest, context_from
from meltemi.install.profiles import resolve


@dataclass(frozen=True, slots=True)
class Component:
    """The manifests of one component; ``workloads`` are the Deployments whose readiness makes it healthy."""

    name: str
    manifests: tuple[Manifest, ...]

    @property
    def workloads(self) -> tuple[tuple[str, str], ...]:
        """(namespace, name) of each Deployment."""
        return tuple(
            (item["metadata"]["namespace"], item["metadata"]["name"])
            for item in self.manifests
            if item["kind"] == "Deployment"
        )


@dataclass(frozen=True, slots=True)
class Installation:
    """All components of one IstioOperator, in order: each needs those before it."""

    context: InstallContext
    components: tuple[Component, ...]

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """Every object, in order."""
        return tuple(item for component in self.components for item in component.manifests)


def render(
    name: str, namespace: str, spec: Mapping[str, Any], crds: Iterable[Manifest]
) -> Installation:
    """The installation that IstioOperator ``namespace/name`` with ``spec`` describes.

    Raises ``UnknownProfileError`` or ``OverlayError``, both ValueErrors with a text for the user.
    """
    context = context_from(name, namespace, resolve(spec))

    def enabled(key: str) -> bool:
        return bool((context.components.get(key) or {}).get("enabled"))

    components = [
        Component("Base", tuple(base.render(context, crds)) if enabled("base") else ()),
        Component("Pilot", tuple(pilot.render(context)) if enabled("pilot") else ()),
        Component(gateways.INGRESS, tuple(gateways.render(context, gateways.INGRESS))),
        Component(gateways.EGRESS, tuple(gateways.render(context, gateways.EGRESS))),
    ]
    return Installation(context, tuple(c for c in components if c.manifests))
