"""The HTTP ports of this process: webhooks, debug pages and metrics, with bounds on what a client may hold.

In: applications. Out: ports. Promises: a connection without a request, with half of one, or without TLS ends by itself, and one address
holds a bounded number of them, so that whoever opens many takes nothing from others.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from dataclasses import dataclass

import structlog
from aiohttp import web

from meltemi.adapters.grpc_server import PortTaken

log = structlog.get_logger("http")


@dataclass(frozen=True, slots=True)
class Bounds:
    """``handshake_s``: for TLS. ``head_s``: until a request's head is there, and between requests; longer than API servers keep a
    connection that they do not use (90 s), so that they end it. ``per_address``: connections of one client.
    """

    handshake_s: float = 10.0
    head_s: float = 100.0
    per_address: int = 200


class _Counted(asyncio.Protocol):
    """Passes everything on to the HTTP protocol; a connection too many of its address is closed at once."""

    def __init__(self, inner: asyncio.Protocol, held: Counter[str], most: int) -> None:
        self._inner = inner
        self._held = held
        self._most = most
        self._peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = str((transport.get_extra_info("peername") or [""])[0])
        if self._held[peer] >= self._most:
            log.warning("too many connections", peer=peer, most=self._most)
            transport.abort()
            return
        self._held[peer] += 1
        self._peer = peer
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._peer:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._peer else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._peer:
            self._held[self._peer] -= 1
            if not self._held[self._peer]:
                del self._held[self._peer]
            self._inner.connection_lost(error)


class HttpPorts:
    """HTTP servers of this process, closed together."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._runners: list[web.AppRunner] = []
        self._servers: list[asyncio.Server] = []
        self.ports: dict[str, int] = {}

    async def listen(
        self, name: str, app: web.Application, address: str, tls: ssl.SSLContext | None = None
    ) -> int:
        """Serve; returns the port. Raises PortTaken."""
        host, _, port = address.rpartition(":")
        bounds = self._bounds
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=bounds.head_s
        )
        await runner.setup()
        handlers = runner.server
        assert handlers is not None, "setup makes it"
        held: Counter[str] = Counter()
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: _Counted(handlers(), held, bounds.per_address),
                host.strip("[]") or None,
                int(port or 0),
                ssl=tls,
                ssl_handshake_timeout=bounds.handshake_s if tls else None,
                backlog=128,
            )
        except OSError as error:
            await runner.cleanup()
            raise PortTaken(f"{name}: {address} cannot be bound: {error.strerror}") from error
        self._runners.append(runner)
        self._servers.append(server)
        self.ports[name] = server.sockets[0].getsockname()[1]
        return self.ports[name]

    async def close(self) -> None:
        """Stop all servers."""
        for server in self._servers:
            server.close()
        for runner in self._runners:
            await runner.cleanup()
