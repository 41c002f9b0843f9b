"""discoverySelectors: the namespaces that the mesh looks at.

In: the mesh's selectors, the labels of all namespaces, what the platforms gave. Out: the same without objects of other
namespaces: no service, workload or rule of theirs exists for any proxy. The root namespace always counts, so that
mesh-wide policies cannot get lost; no selectors mean all namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from meltemi.model.config import AnyConfig
from meltemi.model.frozen import FrozenMap
from meltemi.model.mesh import K8sLabelSelector, LabelSelectorRequirement, MeshConfig
from meltemi.registry.index import Registry

Visible = Callable[[str], bool]


def discovered(mesh: MeshConfig, labels: Mapping[str, Mapping[str, str]]) -> Visible | None:
    """Whether a namespace counts; None when all do. One selector of several is enough."""
    chosen = mesh.discovery_selectors
    if not chosen:
        return None
    names = {mesh.root_namespace}
    for name, own in labels.items():
        # Kubernetes gives every namespace this label itself; files need not.
        known = {"kubernetes.io/metadata.name": name, **own}
        if any(_selects(selector, known) for selector in chosen):
            names.add(name)
    return names.__contains__


def _selects(selector: K8sLabelSelector, labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in selector.match_labels.items()) and all(
        _meets(requirement, labels) for requirement in selector.match_expressions
    )


def _meets(requirement: LabelSelectorRequirement, labels: Mapping[str, str]) -> bool:
    """Kubernetes' operators; what is unknown selects nothing."""
    value = labels.get(requirement.key)
    if requirement.operator == "In":
        return value in requirement.values
    if requirement.operator == "NotIn":
        return value not in requirement.values
    if requirement.operator == "Exists":
        return value is not None
    return requirement.operator == "DoesNotExist" and value is None


def registry_of(registry: Registry, counts: Visible) -> Registry:
    """Services and workloads of the namespaces that count."""
    return replace(
        registry,
        services=FrozenMap(
            (host, kept)
            for host, group in registry.services.items()
            if (kept := tuple(service for service in group if counts(service.namespace)))
        ),
        workloads=FrozenMap(
            (address, here)
            for address, group in registry.workloads.items()
            if (here := tuple(workload for workload in group if counts(workload.namespace)))
        ),
        entry_addresses=FrozenMap(
            (key, addresses)
            for key, addresses in registry.entry_addresses.items()
            if counts(key.namespace)
        ),
    )


def configs_of(configs: Iterable[AnyConfig], counts: Visible) -> list[AnyConfig]:
    """Objects of the namespaces that count."""
    return [config for config in configs if counts(config.meta.namespace)]
