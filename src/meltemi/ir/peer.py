"""What proxies tell each other about a workload: the ``mesh`` metadata of an endpoint."""

from __future__ import annotations

from collections.abc import Mapping

from meltemi.ir.value import Pairs
from meltemi.model.service import Endpoint


def canonical_name(labels: Mapping[str, str], workload: str) -> str:
    """Istio's canonical service of a workload."""
    for key in ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app"):
        if labels.get(key):
            return labels[key]
    return workload


def canonical_revision(labels: Mapping[str, str]) -> str:
    """Istio's canonical revision of a workload."""
    for key in ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"):
        if labels.get(key):
            return labels[key]
    return "latest"


def mesh_metadata(endpoint: Endpoint) -> Pairs:
    """What clients record about an endpoint, in the ``mesh`` metadata namespace."""
    return (
        ("app", endpoint.labels.get("app", "")),
        ("canonical", canonical_name(endpoint.labels, endpoint.workload)),
        ("cluster", endpoint.cluster),
        ("namespace", endpoint.namespace),
        ("revision", canonical_revision(endpoint.labels)),
        ("version", endpoint.labels.get("version", "")),
        ("workload", endpoint.workload),
    )
