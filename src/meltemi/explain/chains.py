"""Which listener and which filter chain take a connection, by Envoy's own order of conditions."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network

from meltemi.explain.request import Request
from meltemi.ir.listener import ChainMatch, FilterChain, Listener
from meltemi.ir.proxy import ProxyIR
from meltemi.model.names import VIRTUAL_INBOUND, VIRTUAL_OUTBOUND


def find_listener(ir: ProxyIR, request: Request) -> tuple[Listener | None, str]:
    """The listener, and why."""
    if request.inbound and not ir.gateway:
        found = next((entry for entry in ir.listeners if entry.name == VIRTUAL_INBOUND), None)
        return found, "captured inbound traffic"
    exact = [
        entry
        for entry in ir.listeners
        if entry.port == request.port and entry.address == request.address
    ]
    if exact and request.address != "0.0.0.0":
        return exact[0], f"listens on {request.address}:{request.port}"
    for entry in ir.listeners:
        if entry.port == request.port and entry.address == "0.0.0.0":
            return entry, f"takes port {request.port} of every address"
    fallback = next((entry for entry in ir.listeners if entry.name == VIRTUAL_OUTBOUND), None)
    return fallback, f"no listener for {request.address}:{request.port}"


def _prefix_length(match: ChainMatch, address: str) -> int:
    """Length of the longest matching prefix; -1 when the chain wants others; 0 when it wants none."""
    if not match.prefixes:
        return 0
    try:
        probe = ip_address(address)
    except ValueError:
        return -1
    nets = (ip_network(text, strict=False) for text in match.prefixes)
    return max((net.prefixlen for net in nets if probe in net), default=-1)


def _name_rank(match: ChainMatch, sni: str) -> int:
    """Longer is better; -1 when the chain wants other names."""
    if not match.server_names:
        return 0
    best = -1
    for name in match.server_names:
        if name == sni:
            best = max(best, 10_000)
        elif name.startswith("*") and sni.endswith(name[1:]):
            best = max(best, len(name))
    return best


def _transport(request: Request) -> str:
    return "tls" if request.tls or request.sni else "raw_buffer"


def _protocols(request: Request, listener: Listener) -> tuple[str, ...]:
    if _transport(request) == "tls":
        return request.alpn
    if not request.host or not listener.inspection.http:
        return ()
    if request.inbound and request.port in listener.inspection.http_skip_ports:
        return ()
    return ("h2c",) if request.http2 else ("http/1.1",)


def _keep(chains: list[FilterChain], rank: Callable[[ChainMatch], int]) -> list[FilterChain]:
    """Those with the best rank. Envoy does not come back to others later."""
    ranked = [(rank(chain.match), chain) for chain in chains]
    best = max((score for score, _ in ranked), default=-1)
    return [chain for score, chain in ranked if score == best and score >= 0]


def find_chain(listener: Listener, request: Request) -> tuple[FilterChain | None, str]:
    """The chain, and why. Conditions in Envoy's order: port, address, server name, transport, protocols."""
    port = request.port if request.inbound else listener.port
    transport, protocols = _transport(request), _protocols(request, listener)

    def by_port(match: ChainMatch) -> int:
        if not match.destination_port:
            return 0
        return 1 if match.destination_port == port else -1

    def by_transport(match: ChainMatch) -> int:
        if not match.transport_protocol:
            return 0
        return 1 if match.transport_protocol == transport else -1

    def by_protocols(match: ChainMatch) -> int:
        if not match.application_protocols:
            return 0
        return 1 if set(match.application_protocols) & set(protocols) else -1

    left = list(listener.chains)
    if listener.name != VIRTUAL_OUTBOUND:
        left = _keep(left, by_port)
    else:
        left = [chain for chain in left if not chain.match.destination_port]
    left = _keep(left, lambda match: _prefix_length(match, request.address))
    left = _keep(left, lambda match: _name_rank(match, request.sni))
    left = _keep(left, by_transport)
    left = _keep(left, by_protocols)
    if left:
        return left[0], _why(left[0].match)
    if listener.default_chain is not None:
        return listener.default_chain, "no other chain matches"
    return None, "no chain matches"


def _why(match: ChainMatch) -> str:
    parts = []
    if match.destination_port:
        parts.append(f"port {match.destination_port}")
    if match.prefixes:
        parts.append("address in " + ", ".join(match.prefixes))
    if match.server_names:
        parts.append("server name " + ", ".join(match.server_names))
    if match.transport_protocol:
        parts.append({"tls": "TLS", "raw_buffer": "plaintext"}[match.transport_protocol])
    if match.application_protocols:
        parts.append("protocol " + ", ".join(match.application_protocols))
    return ", ".join(parts) or "takes everything"
