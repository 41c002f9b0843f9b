"""Endpoints as ClusterLoadAssignments, by hand on the wire: the message that changes most.

In: a need (already resolved for one class of proxies) and the service's endpoints. Out: one resource. The
ranking itself is mechanical: the need carries the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import ip_address

from meltemi.envoy.networks import across_networks
from meltemi.envoy.wire import field_bytes, field_int, field_text, struct_of_text, wrapped_int
from meltemi.ir.cluster import StaticEndpoint
from meltemi.ir.endpoint import EndpointNeed
from meltemi.ir.peer import mesh_metadata
from meltemi.ir.ranking import locality_weights, priority_of
from meltemi.ir.value import Pairs
from meltemi.model.names import MESH_METADATA
from meltemi.model.resource import Resource, resource_of
from meltemi.model.service import Endpoint, Health

Group = tuple[int, str, int]  # priority, locality, locality weight (0 = none)
_HEALTH = {Health.HEALTHY: 1, Health.UNHEALTHY: 2, Health.DRAINING: 3, Health.TERMINATING: 3}


@lru_cache(maxsize=4096)
def _metadata(mesh: tuple[tuple[str, str], ...], mtls: bool) -> bytes:
    """The encoded Metadata of an endpoint; many endpoints share it."""
    fields = dict(mesh)
    summary = ";".join(
        fields[key] for key in ("workload", "namespace", "canonical", "revision", "cluster")
    )
    entries: list[tuple[str, Pairs]] = []
    if mtls:
        entries.append(("envoy.transport_socket_match", (("tlsMode", "istio"),)))
    entries.append(("istio", (("workload", summary),)))
    entries.append((MESH_METADATA, mesh))
    return b"".join(
        field_bytes(1, field_text(1, name) + field_bytes(2, struct_of_text(pairs)))
        for name, pairs in entries
    )


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _encode(endpoint: Endpoint, need: EndpointNeed) -> bytes:
    """One LbEndpoint."""
    if endpoint.address.startswith("unix://"):
        address = field_bytes(2, field_text(1, endpoint.address.removeprefix("unix://")))
    else:
        address = field_bytes(
            1, field_text(2, endpoint.address) + field_int(3, endpoint.port or need.port)
        )
    mtls = endpoint.tls_mode == "istio" and not _refuses_mtls(need, endpoint)
    return (
        field_bytes(1, field_bytes(1, address))
        + field_int(2, _HEALTH[endpoint.health])
        + field_bytes(3, _metadata(mesh_metadata(endpoint), mtls))
        + wrapped_int(4, endpoint.weight or 1)
    )


def _refuses_mtls(need: EndpointNeed, endpoint: Endpoint) -> bool:
    """Whether the workload's own policy takes plaintext only."""
    return any(
        _labels_match(labels, endpoint.labels) and port in (0, endpoint.port)
        for labels, port in need.plaintext
    )


def _labels_match(subset: tuple[tuple[str, str], ...], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == text for key, text in subset)


def select(need: EndpointNeed, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """The endpoints that belong to the need: port, subset, usable address and state.

    Endpoints that are not ready are left out, as in Istio: otherwise they would count for the spill-over to
    other priorities.
    """
    return [
        endpoint
        for endpoint in endpoints
        if (not endpoint.service_port or endpoint.service_port == need.port_name)
        and _labels_match(need.subset, endpoint.labels)
        and (not need.node or endpoint.node_name == need.node)
        and need.region in ("", endpoint.locality.split("/")[0])
        and need.workload in ("", endpoint.workload)
        and need.only_cluster in ("", endpoint.cluster)
        and endpoint.health not in (Health.TERMINATING, Health.UNHEALTHY)
        and (endpoint.health is not Health.DRAINING or need.draining)
        and (
            endpoint.address.startswith("unix://")
            or _is_address(endpoint.address)
            or _behind_gateway(need, endpoint)
        )
    ]


def _behind_gateway(need: EndpointNeed, endpoint: Endpoint) -> bool:
    """Whether an endpoint without an address is reached through another network's gateway."""
    return (
        not endpoint.address
        and bool(need.network)
        and endpoint.network != need.network
        and bool(dict(need.gateways).get(endpoint.network))
    )


def _grouped(need: EndpointNeed, endpoints: list[Endpoint]) -> dict[Group, list[Endpoint]]:
    """Endpoints by priority and locality, priorities made dense, in a stable order."""
    by_place: dict[tuple[int, str], list[Endpoint]] = {}
    for endpoint in endpoints:
        place = endpoint.locality
        if need.policy.by_region:
            place = "/".join(place.split("/")[:2])
        by_place.setdefault((priority_of(need.policy, need.locality, endpoint), place), []).append(
            endpoint
        )
    dense = {old: new for new, old in enumerate(sorted({place[0] for place in by_place}))}
    distributed = bool(need.policy.enabled and need.policy.distribute)
    weights = locality_weights(need.policy, {place[1] for place in by_place}) if distributed else {}
    groups: dict[Group, list[Endpoint]] = {}
    for (priority, locality), members in sorted(by_place.items()):
        if distributed:
            weight = weights.get(locality, 0)
            if not weight:
                continue
        else:
            weight = sum(member.weight or 1 for member in members)
        groups[(dense[priority], locality, weight)] = members
    return groups


def priority_groups(
    endpoints: tuple[StaticEndpoint, ...],
) -> list[tuple[Group, list[StaticEndpoint]]]:
    """Inline endpoints by priority and locality."""
    groups: dict[Group, list[StaticEndpoint]] = {}
    for endpoint in endpoints:
        groups.setdefault(
            (endpoint.priority, endpoint.locality, endpoint.locality_weight), []
        ).append(endpoint)
    return sorted(groups.items())


def encode_endpoints(need: EndpointNeed, endpoints: Iterable[Endpoint]) -> Resource:
    """The ClusterLoadAssignment of one cluster. An empty one is a valid answer: the cluster has no endpoints."""
    out = [field_text(1, need.cluster)]
    chosen = across_networks(need, select(need, endpoints))
    for (priority, locality, weight), members in _grouped(need, chosen).items():
        region, zone, sub = ([*locality.split("/"), "", "", ""])[:3]
        place = field_text(1, region) + field_text(2, zone) + field_text(3, sub)
        body = field_bytes(1, place)
        body += b"".join(
            field_bytes(2, _encode(member, need))
            for member in sorted(members, key=lambda m: (m.address, m.port))
        )
        body += wrapped_int(3, weight) + field_int(5, priority)
        out.append(field_bytes(2, body))
    return resource_of(need.cluster, b"".join(out))
