"""Endpoints of other networks, replaced by the gateways through which those are entered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network

from meltemi.ir.endpoint import EndpointNeed
from meltemi.model.service import Endpoint

_GATEWAY_LABELS = ("app", "version")


def network_of(need: EndpointNeed, endpoint: Endpoint) -> str:
    """An endpoint's own word, else that of its address range, else that of its cluster."""
    if endpoint.network:
        return endpoint.network
    for text, network in need.ranges:
        try:
            if ip_address(endpoint.address) in ip_network(text, strict=False):
                return network
        except ValueError:
            continue
    return dict(need.clusters).get(endpoint.cluster, "")


def across_networks(need: EndpointNeed, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Endpoints as the proxy can reach them.

    A network without known gateways is taken to be reachable directly. Only mTLS endpoints can be reached through a
    gateway (it routes by the SNI of the mesh), so others of that network are left out. What stands behind a gateway
    counts with its weight, per locality, so that shares stay as they were.
    """
    gateways = dict(need.gateways)
    if not need.network or not (gateways or need.local_only):
        return list(endpoints)
    near: list[Endpoint] = []
    far: dict[tuple[str, str], list[Endpoint]] = {}
    for endpoint in endpoints:
        network = network_of(need, endpoint)
        if not network or network == need.network:
            near.append(endpoint)
        elif need.local_only:
            continue
        elif not gateways.get(network):
            near.append(endpoint)
        elif endpoint.tls_mode == "istio":
            far.setdefault((network, endpoint.locality), []).append(endpoint)
    for (network, _), members in sorted(far.items()):
        entries = gateways[network]
        total = sum(member.weight or 1 for member in members)
        near += [
            replace(
                members[0],
                address=address,
                port=port,
                weight=max(1, total // len(entries)),
                labels={},
                workload="",
                network=network,
            )
            for address, port in entries
        ]
    # One gateway may stand for several localities, but an address may be listed only once in each.
    return near
