"""What each proxy on a request's way reports: a response header per proxy, the last one first added.

Pure. In: values of the header ``x-meltemi-hop``. Out: ``Hop``s in the order in which the request met them.
"""

from __future__ import annotations

from dataclasses import dataclass

HOP_HEADER = "x-meltemi-hop"
# Envoy's command operators; a value that does not exist is "-". A tab cannot be part of any of them.
_FIELDS = (
    "ROUTE_NAME",
    "UPSTREAM_CLUSTER_RAW",
    "UPSTREAM_HOST",
    "RESPONSE_FLAGS",
    "RESPONSE_CODE",
    "RESPONSE_CODE_DETAILS",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_PEER_URI_SAN",
    "REQUESTED_SERVER_NAME",
    "FILTER_CHAIN_NAME",
    "REQ(:AUTHORITY)",
    "REQ(:PATH)",
    "PROTOCOL",
    "DOWNSTREAM_LOCAL_ADDRESS",
)
HOP_FORMAT = "{proxy}\t{direction}\t" + "\t".join(f"%{name}%" for name in _FIELDS)


@dataclass(frozen=True, slots=True)
class Hop:
    """One proxy's part. Empty texts: not known, or not so."""

    proxy: str
    direction: str  # outbound, inbound or gateway
    route: str = ""
    cluster: str = ""
    endpoint: str = ""
    flags: str = ""
    status: int = 0
    details: str = ""
    attempts: int = 0
    peer: str = ""  # who the caller proved to be
    tls: str = ""  # of the caller's connection
    upstream_tls: str = ""
    upstream_peer: str = ""
    sni: str = ""
    chain: str = ""
    host: str = ""
    path: str = ""
    protocol: str = ""
    local: str = ""  # the destination as this proxy saw it


def parse_hops(values: list[str]) -> tuple[Hop, ...]:
    """Hops in the request's order. The header comes in the response's order: the server's proxy first."""
    return tuple(reversed([hop for value in values if (hop := _parse(value)) is not None]))


def _parse(value: str) -> Hop | None:
    parts = [("" if part == "-" else part) for part in value.split("\t")]
    if len(parts) != len(_FIELDS) + 2:
        return None
    proxy, direction, route, cluster, endpoint, flags, status, details, attempts, *rest = parts
    return Hop(
        proxy,
        direction,
        route,
        cluster,
        endpoint,
        flags,
        int(status) if status.isdecimal() else 0,
        details,
        int(attempts) if attempts.isdecimal() else 0,
        *rest,
    )
