"""Networks of the mesh: which network an endpoint is in, and the gateways through which the others enter it.

In: MeshNetworks, and Services that are labelled ``topology.istio.io/network``. Out: a frozen value. Two workloads of
different networks cannot reach each other directly; their traffic goes through the gateway, by mTLS and SNI.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meltemi.model.mesh import MeshNetworks, Network
from meltemi.model.service import Service

NETWORK_LABEL = "topology.istio.io/network"
GATEWAY_PORT_LABEL = "networking.istio.io/gatewayPort"
EAST_WEST_PORT = 15443

GatewayAddress = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Networks:
    """``gateways`` by network. ``ranges`` and ``clusters`` place endpoints that do not name their network themselves."""

    gateways: tuple[tuple[str, tuple[GatewayAddress, ...]], ...] = ()
    ranges: tuple[tuple[str, str], ...] = ()  # (CIDR, network)
    clusters: tuple[tuple[str, str], ...] = ()  # (cluster, network)


NO_NETWORKS = Networks()


def derive_networks(settings: MeshNetworks, services: Iterable[Service]) -> Networks:
    """Gateways as MeshNetworks lists them, else those of labelled Services with an address from a load balancer."""
    known = tuple(services)
    gateways: dict[str, list[GatewayAddress]] = {}
    ranges: list[tuple[str, str]] = []
    clusters: list[tuple[str, str]] = []
    for name, network in settings.networks.items():
        gateways[name] = _listed(network, known)
        for entry in network.endpoints:
            if entry.from_cidr:
                ranges.append((entry.from_cidr, name))
            if entry.from_registry:
                clusters.append((entry.from_registry, name))
    for service in known:
        name = service.meta.labels.get(NETWORK_LABEL, "")
        if not name or not service.external_addresses:
            continue
        text = service.meta.labels.get(GATEWAY_PORT_LABEL, "")
        port = int(text) if text.isdecimal() else EAST_WEST_PORT
        entries = gateways.setdefault(name, [])
        entries += [(a, port) for a in service.external_addresses if (a, port) not in entries]
    return Networks(
        tuple((name, tuple(sorted(entries))) for name, entries in sorted(gateways.items())),
        tuple(sorted(ranges)),
        tuple(sorted(clusters)),
    )


def _listed(network: Network, services: tuple[Service, ...]) -> list[GatewayAddress]:
    found: list[GatewayAddress] = []
    for gateway in network.gateways:
        port = gateway.port or EAST_WEST_PORT
        if gateway.address:
            found.append((gateway.address, port))
        for service in services:
            if gateway.registry_service_name == service.hostname:
                found += [(address, port) for address in service.external_addresses]
    return found
