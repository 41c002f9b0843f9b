"""Whether an EnvoyFilter's match holds for a generated listener, chain, filter, route table or cluster."""

from __future__ import annotations

from typing import Any

from meltemi.ir.patch import PatchMatch
from meltemi.model.names import VIRTUAL_INBOUND, parse_cluster


def direction(listener: Any) -> str:
    """SIDECAR_INBOUND or SIDECAR_OUTBOUND of a listener."""
    return "SIDECAR_INBOUND" if listener.traffic_direction == 1 else "SIDECAR_OUTBOUND"


def context_holds(match: PatchMatch, context: str) -> bool:
    """Whether the patch's context includes ``context``."""
    return match.context in ("ANY", "", context)


def added_here(match: PatchMatch, gateway: bool) -> bool:
    """Whether ADD of a whole resource concerns this kind of proxy."""
    if gateway:
        return context_holds(match, "GATEWAY")
    return match.context not in ("GATEWAY", "WAYPOINT")


def listener_holds(match: PatchMatch, listener: Any) -> bool:
    """Name and port of a listener. virtualInbound stands for all inbound ports; chains narrow them."""
    if match.listener and match.listener != listener.name:
        return False
    if not match.listener_ports or listener.name == VIRTUAL_INBOUND:
        return True
    return listener.address.socket_address.port_value in match.listener_ports


def chain_holds(match: PatchMatch, listener: Any, chain: Any) -> bool:
    """The conditions on a filter chain."""
    wanted = chain.filter_chain_match
    if match.chain and match.chain != chain.name:
        return False
    if match.chain_sni and match.chain_sni not in wanted.server_names:
        return False
    if match.chain_transport and match.chain_transport != wanted.transport_protocol:
        return False
    # A chain without a socket of its own passes the bytes on.
    socket = chain.transport_socket.name or "envoy.transport_sockets.raw_buffer"
    if match.chain_socket and match.chain_socket != socket:
        return False
    if match.chain_protocols:
        protocols = {entry.strip() for entry in match.chain_protocols.split(",")}
        if not protocols <= set(wanted.application_protocols):
            return False
    if match.chain_port and match.chain_port != wanted.destination_port.value:
        return False
    if listener.name != VIRTUAL_INBOUND or not match.inbound_ports:
        return True
    return wanted.destination_port.value in match.inbound_ports


_SHORT = {
    "envoy.http_connection_manager": "envoy.filters.network.http_connection_manager",
    "envoy.tcp_proxy": "envoy.filters.network.tcp_proxy",
    "envoy.router": "envoy.filters.http.router",
    "envoy.fault": "envoy.filters.http.fault",
    "envoy.cors": "envoy.filters.http.cors",
}


def name_holds(wanted: str, name: str) -> bool:
    """A filter's name; Envoy's old names are understood."""
    return not wanted or _SHORT.get(wanted, wanted) == name


def route_config_holds(match: PatchMatch, config: Any, gateway: bool) -> bool:
    """Name, port and gateway of a route table."""
    if match.route_config and match.route_config != config.name:
        return False
    parts = config.name.split(".")
    if match.route_port:
        port = parts[1] if gateway and len(parts) > 1 else config.name.rpartition(":")[2]
        if str(match.route_port) != port:
            return False
    if not gateway:
        # Names of ports and gateways are only those of gateways (Istio's reference).
        return not match.route_gateway
    if parts[0] == "https" and len(parts) >= 5:
        namespace, _, name = match.route_gateway.rpartition("/")
        if match.route_port_name and match.route_port_name != ".".join(parts[2:-2]):
            return False
        return not name or (parts[-2] == name and namespace in ("", parts[-1]))
    return not match.gateway_ports or (len(parts) > 1 and parts[1] in map(str, match.gateway_ports))


def virtual_host_holds(match: PatchMatch, host: Any) -> bool:
    """Name or domain of a virtual host."""
    if match.vhost and match.vhost != host.name:
        return False
    return not match.vhost_domain or match.vhost_domain in host.domains


def route_holds(match: PatchMatch, route: Any) -> bool:
    """Name and action of a route."""
    if match.route and match.route != route.name:
        return False
    if match.route_action in ("", "ANY"):
        return True
    actual = {"route": "ROUTE", "redirect": "REDIRECT", "direct_response": "DIRECT_RESPONSE"}
    return actual.get(route.WhichOneof("action") or "") == match.route_action


def cluster_holds(match: PatchMatch, cluster: Any, gateway: bool) -> bool:
    """Context, name, service, subset and port of a cluster."""
    parsed = parse_cluster(cluster.name)
    inbound = parsed is not None and parsed.direction == "inbound"
    context = "GATEWAY" if gateway else ("SIDECAR_INBOUND" if inbound else "SIDECAR_OUTBOUND")
    if not context_holds(match, context):
        return False
    if match.cluster and match.cluster != cluster.name:
        return False
    if not (match.cluster_service or match.cluster_subset or match.cluster_port):
        return True
    if parsed is None:
        return False
    if match.cluster_service and not inbound and match.cluster_service != parsed.hostname:
        return False
    if match.cluster_subset and match.cluster_subset != parsed.subset:
        return False
    return not match.cluster_port or match.cluster_port == parsed.port
