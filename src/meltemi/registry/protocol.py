"""Protocol selection: what a service port speaks, from its name, ``appProtocol`` or number.

Rules as documented under "Protocol Selection" in Istio's reference: ``name: <protocol>[-<suffix>]`` or ``appProtocol``; UDP is
never proxied; a few well-known server-first ports are TCP because sniffing them would hang; anything else is sniffed.
"""

from __future__ import annotations

from meltemi.model.service import Protocol

# Protocols where the server speaks first, so that sniffing the client's first bytes would never end.
SERVER_FIRST_PORTS = frozenset({25, 53, 3306, 27017})

_NAMES = {
    "http": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "grpc": Protocol.GRPC,
    "grpc-web": Protocol.GRPC_WEB,
    "https": Protocol.HTTPS,
    "tls": Protocol.TLS,
    "tcp": Protocol.TCP,
    "udp": Protocol.UDP,
    "mongo": Protocol.MONGO,
    "redis": Protocol.REDIS,
    "mysql": Protocol.MYSQL,
    "hbone": Protocol.HBONE,
    "doublehbone": Protocol.DOUBLE_HBONE,
    "http_proxy": Protocol.HTTP_PROXY,
}
# Kubernetes' own appProtocol names (Service API reference).
_KUBERNETES = {
    "kubernetes.io/h2c": Protocol.HTTP2,
    "kubernetes.io/ws": Protocol.HTTP,
    "kubernetes.io/wss": Protocol.HTTPS,
}


def parse_protocol(name: str) -> Protocol:
    """A protocol by its name as Gateways and ServiceEntries write it, in any case; else UNSUPPORTED."""
    return _NAMES.get(name.lower(), Protocol.UNSUPPORTED)


def port_protocol(
    number: int, name: str = "", transport: str = "TCP", app_protocol: str | None = None
) -> Protocol:
    """The protocol of a Kubernetes Service port. ``app_protocol`` wins over the port's name."""
    if transport == "UDP":
        return Protocol.UDP
    if app_protocol:
        known = _KUBERNETES.get(app_protocol)
        if known is not None:
            return known
        name = app_protocol
    lowered = name.lower()
    if lowered.startswith("grpc-web"):
        return Protocol.GRPC_WEB
    found = parse_protocol(lowered.partition("-")[0])
    if found is Protocol.UNSUPPORTED and number in SERVER_FIRST_PORTS:
        return Protocol.TCP
    return found


def follows_naming(name: str, app_protocol: str | None = None) -> bool:
    """True when the port's name or appProtocol says what it speaks."""
    return port_protocol(0, name, "TCP", app_protocol) is not Protocol.UNSUPPORTED
