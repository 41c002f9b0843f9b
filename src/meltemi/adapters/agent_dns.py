"""DNS of a pod with capture: answers the mesh's names itself, asks the platform's resolvers for the rest.

In: questions over UDP and TCP on loopback, and a ``NameTable`` that may be replaced at any time. Out: answers; with
the table empty, everything is forwarded. Promises: questions to the resolvers carry the socket mark that exempts them
from capture, and come from a port of their own, chosen by the kernel; a resolver that is silent delays only the
questions that it was asked; a bounded number of questions waits at once, others are refused; a question that no
resolver answers gets SERVFAIL.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Sequence

from meltemi.agent.metrics import DnsCounters
from meltemi.agent.name_table import NameTable, answer, refuse

_SO_MARK = 36
_RESOLVER_PORT = 53
_RESOLVER_S = 2.0  # a resolver's time; glibc waits five seconds in all by default
_WAITING_MAX = 512
_TCP_IDLE_S = 10.0
_MESSAGE_BYTES_MAX = 65535

Ask = Callable[[str, bytes], Awaitable[bytes]]


class DnsProxy:
    """One listening address, UDP and TCP."""

    def __init__(
        self,
        resolvers: Sequence[str],
        counters: DnsCounters,
        *,
        mark: int = 0,
        parallel: bool = False,
        resolver_port: int = _RESOLVER_PORT,
    ) -> None:
        """``resolvers`` are addresses; ``parallel`` asks all at once and takes the first answer."""
        self.table = NameTable()
        self._resolvers = tuple(resolvers)
        self._counters = counters
        self._mark, self._parallel, self._port = mark, parallel, resolver_port
        self._transport: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen on ``host``; port 0 takes any. The port.

        :raises OSError: when the port is taken.
        """
        self._server = await asyncio.start_server(self._serve_stream, host, port)
        port = int(self._server.sockets[0].getsockname()[1])
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Datagrams(self._take), local_addr=(host, port)
        )
        return port

    async def close(self) -> None:
        """Stop; questions that wait get no answer."""
        if self._server is not None:
            self._server.close()
        if self._transport is not None:
            self._transport.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- listening --------------------------------------------------------------------------------

    def _take(self, question: bytes, peer: tuple[str, int]) -> None:
        """One datagram. What the table answers is answered at once."""
        self._counters.requests += 1
        found = answer(self.table, question)
        if found is None and len(self._tasks) >= _WAITING_MAX:
            found = refuse(question)
        if found is not None:
            self._send(found, peer)
        elif len(self._tasks) < _WAITING_MAX:
            task = asyncio.get_running_loop().create_task(self._relay(question, peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, question: bytes, peer: tuple[str, int]) -> None:
        found = await self._resolve(question, self._ask_datagram)
        if found is not None:
            self._send(found, peer)

    def _send(self, message: bytes, peer: tuple[str, int]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(message, peer)

    async def _serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= _WAITING_MAX:
            writer.close()
            return
        self._tasks.add(task)
        try:
            while True:
                async with asyncio.timeout(_TCP_IDLE_S):
                    question = await _read_message(reader)
                self._counters.requests += 1
                found = answer(self.table, question, stream=True)
                if found is None:
                    found = await self._resolve(question, self._ask_stream)
                if found is None:
                    return
                writer.write(struct.pack("!H", len(found)) + found)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the client went away or was silent: its loss
        finally:
            self._tasks.discard(task)
            writer.close()

    # --- resolvers --------------------------------------------------------------------------------

    async def _resolve(self, question: bytes, ask: Ask) -> bytes | None:
        """The first answer of a resolver, else SERVFAIL; None for what is not even a question."""
        started = time.monotonic()
        self._counters.upstream_requests += 1
        if self._parallel and len(self._resolvers) > 1:
            found = await self._first(question, ask)
        else:
            found = None
            for resolver in self._resolvers:
                found = await self._try(resolver, question, ask)
                if found is not None:
                    break
        self._counters.observe(time.monotonic() - started)
        if found is not None:
            return found
        self._counters.upstream_failures += 1
        return refuse(question)

    async def _first(self, question: bytes, ask: Ask) -> bytes | None:
        tasks = [asyncio.ensure_future(self._try(r, question, ask)) for r in self._resolvers]
        try:
            for done in asyncio.as_completed(tasks):
                found = await done
                if found is not None:
                    return found
            return None
        finally:
            for task in tasks:
                task.cancel()

    async def _try(self, resolver: str, question: bytes, ask: Ask) -> bytes | None:
        try:
            async with asyncio.timeout(_RESOLVER_S):
                return await ask(resolver, question)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return None

    def _socket(self, resolver: str, kind: socket.SocketKind) -> socket.socket:
        family = socket.AF_INET6 if ":" in resolver else socket.AF_INET
        made = socket.socket(family, kind)
        made.setblocking(False)
        if self._mark:
            try:
                made.setsockopt(socket.SOL_SOCKET, _SO_MARK, self._mark)
            except OSError:
                made.close()
                raise
        return made

    async def _ask_datagram(self, resolver: str, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with self._socket(resolver, socket.SOCK_DGRAM) as sock:
            await loop.sock_connect(sock, (resolver, self._port))
            await loop.sock_sendall(sock, question)
            while True:
                found = await loop.sock_recv(sock, _MESSAGE_BYTES_MAX)
                if found[:2] == question[:2]:
                    return found

    async def _ask_stream(self, resolver: str, question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        sock = self._socket(resolver, socket.SOCK_STREAM)
        try:
            await loop.sock_connect(sock, (resolver, self._port))
            reader, writer = await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(struct.pack("!H", len(question)) + question)
            await writer.drain()
            return await _read_message(reader)
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """Hands datagrams on."""

    def __init__(self, take: Callable[[bytes, tuple[str, int]], None]) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """One question."""
        self._take(data, addr)


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    (size,) = struct.unpack("!H", await reader.readexactly(2))
    return await reader.readexactly(size)
