"""The order in which a proxy prefers endpoints: mechanical, from the policy that translation resolved for it."""

from __future__ import annotations

from collections.abc import Iterable

from meltemi.ir.endpoint import LocalityPolicy
from meltemi.model.places import place_label
from meltemi.model.service import Endpoint


def _shared_levels(mine: str, other: str) -> int:
    """How many of region, zone and subzone agree, from the left."""
    count = 0
    for ours, theirs in zip(mine.split("/"), other.split("/"), strict=False):
        if ours != theirs or not ours:
            break
        count += 1
    return count


def endpoint_label(endpoint: Endpoint, name: str) -> str:
    """What a priority compares: a label, or where the endpoint runs."""
    place = place_label(
        name, endpoint.locality, endpoint.network, endpoint.cluster, endpoint.node_name
    )
    return endpoint.labels.get(name, "") if place is None else place


def priority_of(policy: LocalityPolicy, mine: str, endpoint: Endpoint) -> int:
    """Lower is preferred. Istio's failover order: same subzone, zone, region, the failover region, the rest.

    ``mine`` is the asking proxy's own locality.
    """
    if not policy.enabled:
        return 0
    if policy.node:
        return (
            0
            if endpoint.node_name == policy.node
            else 1 + _priority_by_place(policy, mine, endpoint)
        )
    return _priority_by_place(policy, mine, endpoint)


def _priority_by_place(policy: LocalityPolicy, mine: str, endpoint: Endpoint) -> int:
    if policy.by_region:
        return _unmatched(policy, endpoint) * 3 + _region_rank(policy, mine, endpoint)
    if policy.priority_labels:
        return _unmatched(policy, endpoint)
    if not mine or policy.distribute:
        return 0
    shared = _shared_levels(mine, endpoint.locality)
    if shared:
        return 3 - min(shared, 3)
    return 2 + _region_rank(policy, mine, endpoint)


def _unmatched(policy: LocalityPolicy, endpoint: Endpoint) -> int:
    """How many of the labels do not count as equal: those from the first that differs."""
    matched = 0
    for label, wanted in policy.priority_labels:
        if endpoint_label(endpoint, label) != wanted:
            break
        matched += 1
    return len(policy.priority_labels) - matched


def _region_rank(policy: LocalityPolicy, mine: str, endpoint: Endpoint) -> int:
    """0 for the proxy's own region, 1 for where it fails over to (anywhere, when nothing is said), 2 for the rest."""
    region, other = mine.split("/")[0], endpoint.locality.split("/")[0]
    if region in ("", other):
        return 0
    return 1 if dict(policy.failover).get(region) in ("", None, other) else 2


def _distribution(policy: LocalityPolicy, locality: str) -> tuple[str, int] | None:
    """The entry of ``distribute`` that covers a locality: the most specific one."""
    best = None
    for pattern, weight in policy.distribute:
        prefix = pattern.rstrip("*").rstrip("/")
        covered = not prefix or locality == prefix or locality.startswith(prefix + "/")
        if covered and (best is None or len(pattern) > len(best[0])):
            best = (pattern, weight)
    return best


def locality_weights(policy: LocalityPolicy, localities: Iterable[str]) -> dict[str, int]:
    """Weights of localities under ``distribute``; a share is split evenly by the localities it covers."""
    covered: dict[tuple[str, int], list[str]] = {}
    for locality in localities:
        entry = _distribution(policy, locality)
        if entry is not None:
            covered.setdefault(entry, []).append(locality)
    # Scaled by 100 so that a share of a few percent survives being split.
    return {
        locality: max(1, weight * 100 // len(names))
        for (_, weight), names in covered.items()
        if weight
        for locality in names
    }
