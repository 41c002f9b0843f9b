"""Lets an ApiClient inside a network namespace reach its server through the host's network.

In: `HostSockets`. Out: the keyword arguments for ApiClient.
"""

import asyncio
import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from localkube.kit.hostsockets import HostSockets


def through_host(sockets: HostSockets | None) -> dict[str, Any]:
    """Options for ApiClient(...): sockets and name resolution of the host ({} if already there)."""
    if sockets is None:
        return {}

    def make(address: Any) -> socket.socket:
        family, kind, proto = address[:3]
        return sockets.new(family, kind, proto)

    return {"socket_factory": make, "resolver": HostResolver(sockets)}


class HostResolver(AbstractResolver):
    """Resolves names as the host does, without blocking the event loop."""

    def __init__(self, sockets: HostSockets) -> None:
        self._sockets = sockets

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """aiohttp's resolver interface. Raises OSError when the name does not resolve."""
        found = await asyncio.to_thread(self._sockets.resolve, host, port, int(family))
        return [
            ResolveResult(
                hostname=host,
                host=ip,
                port=number,
                family=found_family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for found_family, ip, number in found
        ]

    async def close(self) -> None:
        """Nothing to close."""
