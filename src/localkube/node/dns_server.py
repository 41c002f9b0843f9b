"""The cluster's DNS server: answers from the zone, asks the host's resolvers for the rest.

In: queries over UDP and TCP at the kube-dns address. Out: answers. Promises: a slow or unreachable
resolver of the host delays only the questions that need it, each at most ``_FORWARD_S`` seconds per
resolver; at most ``_FORWARDS`` questions wait at once.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from localkube.kit.hostsockets import HostSockets
from localkube.kit.tasks import Tasks
from localkube.node.network import dns_zone
from localkube.node.network.dns_zone import Zone

_FORWARD_S: Final = 2.0
_FORWARDS: Final = 512
_TCP_IDLE_S: Final = 10.0

SocketMaker = Callable[[int, int], socket.socket]


def read_resolv_conf(path: Path = Path("/etc/resolv.conf")) -> tuple[list[str], list[str]]:
    """Return the host's resolvers and search domains."""
    servers: list[str] = []
    search: list[str] = []
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return [], []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            servers.append(words[1])
        elif words[:1] in (["search"], ["domain"]):
            search = words[1:]
    return servers, search


def host_socket_maker(sockets: HostSockets | None) -> SocketMaker:
    """Return a function that makes non-blocking sockets in the host's network."""

    def make(family: int, kind: int) -> socket.socket:
        if sockets is not None:
            return sockets.new(family, kind)
        sock = socket.socket(family, kind)
        sock.setblocking(False)
        return sock

    return make


class DnsServer:
    """Serves one address; ``zone`` may be replaced at any time."""

    def __init__(
        self, zone: Zone, resolvers: list[str], make_socket: SocketMaker, port: int = 53
    ) -> None:
        self.zone = zone
        self.port = port
        self._resolvers = resolvers
        self._make_socket = make_socket
        self._tasks = Tasks("dns")
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._waiting = 0
        self._turn = 0
        self._log = structlog.get_logger("localkube.node.dns")

    async def start(self, address: str) -> None:
        """Listen on ``address`` over UDP and TCP. Raises OSError."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self), (address, self.port)
        )
        self._transport = transport
        self.port = transport.get_extra_info("sockname")[1]
        self._server = await asyncio.start_server(self._serve_stream, address, self.port)

    async def close(self) -> None:
        """Stop listening."""
        if self._transport is not None:
            self._transport.close()
        if self._server is not None:
            self._server.close()
        await self._tasks.close()

    def answer(self, message: bytes, udp: bool) -> bytes | None:
        """Answer from the zone; None if somebody else must be asked."""
        if len(message) < 12 or message[2] & 0x80:
            return b""
        question = dns_zone.decode_question(message)
        if question is None:
            return dns_zone.encode_failure(message, dns_zone.FORMERR)
        self._turn += 1
        found = dns_zone.resolve(self.zone, question.name, question.kind, self._turn)
        if found is None:
            return None
        return dns_zone.encode_answer(question, found, self.zone, udp)

    def forward_later(self, message: bytes, reply: Callable[[bytes], None]) -> None:
        """Ask the host's resolvers and give the answer to ``reply``."""
        if self._waiting >= _FORWARDS:
            reply(dns_zone.encode_failure(message, dns_zone.SERVFAIL))
            return
        self._waiting += 1

        async def work() -> None:
            try:
                reply(await self._forward(message, udp=True))
            finally:
                self._waiting -= 1

        self._tasks.spawn("forward", work)

    async def _forward(self, message: bytes, udp: bool) -> bytes:
        for resolver in self._resolvers:
            try:
                async with asyncio.timeout(_FORWARD_S):
                    return await self._ask(resolver, message, udp)
            except (OSError, TimeoutError) as error:
                self._log.debug("resolver did not answer", resolver=resolver, error=str(error))
        return dns_zone.encode_failure(message, dns_zone.SERVFAIL)

    async def _ask(self, resolver: str, message: bytes, udp: bool) -> bytes:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        with self._make_socket(family, kind) as sock:
            await loop.sock_connect(sock, (resolver, 53))
            if udp:
                await loop.sock_sendall(sock, message)
                while True:
                    data = await loop.sock_recv(sock, 65535)
                    if data[:2] == message[:2]:
                        return data
            await loop.sock_sendall(sock, struct.pack("!H", len(message)) + message)
            (size,) = struct.unpack("!H", await _receive(loop, sock, 2))
            return await _receive(loop, sock, size)

    async def _serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE_S):
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                    message = await reader.readexactly(size)
                found = self.answer(message, udp=False)
                if found is None:
                    found = await self._forward(message, udp=False)
                if found:
                    writer.write(struct.pack("!H", len(found)) + found)
                    await writer.drain()
        except (asyncio.IncompleteReadError, TimeoutError, OSError):
            pass  # the client is done, or gone
        finally:
            writer.close()


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = await loop.sock_recv(sock, size - len(data))
        if not chunk:
            raise ConnectionResetError("the resolver closed the connection")
        data += chunk
    return data


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        found = self._server.answer(data, udp=True)
        if found:
            self._send(found, addr)
        elif found is None:
            self._server.forward_later(data, lambda reply: self._send(reply, addr))

    def _send(self, data: bytes, address: tuple[str | Any, int]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(data, address)
