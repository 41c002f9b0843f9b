"""Finds what is wrong across objects.

In: decoded objects (Kubernetes' own too), optionally the registry that istiod already has. Out: findings with Istio's codes, each at the
object, field and line that causes it; sorted by severity, then place. Pure. An object's annotation
``galley.istio.io/analyze-suppress`` (codes separated by commas, or ``*``) silences findings about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meltemi.analyze import conflicts, objects, routes, workloads
from meltemi.analyze.annotations import analyze_annotations
from meltemi.analyze.context import Analysis, build_context
from meltemi.model.config import Config
from meltemi.model.mesh import DEFAULT_MESH_CONFIG, MeshConfig
from meltemi.model.origin import Finding, Level
from meltemi.registry.index import Registry

SUPPRESS = "galley.istio.io/analyze-suppress"
_RANK = {Level.ERROR: 0, Level.WARNING: 1, Level.INFO: 2}

ANALYZERS: tuple[Callable[[Analysis], None], ...] = (
    routes.analyze_destinations,
    routes.analyze_destination_rules,
    routes.analyze_gateways,
    routes.analyze_delegates,
    routes.analyze_reachability,
    routes.analyze_claims,
    conflicts.analyze_mesh_hosts,
    conflicts.analyze_gateway_routes,
    conflicts.analyze_rules_of_a_host,
    workloads.analyze_shared_ports,
    workloads.analyze_containers,
    workloads.analyze_subsets,
    objects.analyze_gateway_pods,
    objects.analyze_gateway_secrets,
    objects.analyze_gateway_conflicts,
    objects.analyze_port_names,
    objects.analyze_namespaces,
    objects.analyze_pods,
    objects.analyze_selectors,
    objects.analyze_telemetry_providers,
    objects.analyze_envoy_filters,
    analyze_annotations,
)


def analyze(
    configs: Iterable[Config[Any]],
    registry: Registry | None = None,
    mesh: MeshConfig = DEFAULT_MESH_CONFIG,
    whole: bool = False,
    domain: str = "cluster.local",
) -> list[Finding]:
    """All findings. ``whole``: the objects are everything that a cluster has (see ``Analysis``)."""
    found = list(configs)
    context = build_context(found, registry, mesh, whole, domain)
    for analyzer in ANALYZERS:
        analyzer(context)
    silent = {
        (config.kind, config.meta.namespace, config.meta.name): {
            code.strip() for code in config.meta.annotations[SUPPRESS].split(",")
        }
        for config in found
        if SUPPRESS in config.meta.annotations
    }
    kept = [finding for finding in context.findings if not _suppressed(finding, silent)]
    return sorted(kept, key=lambda f: (_RANK[f.level], f.origin, f.code))


def _suppressed(finding: Finding, silent: dict[tuple[str, str, str], set[str]]) -> bool:
    place = finding.origin
    codes = silent.get((place.kind, place.namespace, place.name), set())
    return "*" in codes or finding.code in codes
