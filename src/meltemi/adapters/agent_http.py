"""A small HTTP/1.1 server and client on asyncio and h11, for an agent that must stay small.

In: connections. Out: ``Request`` to a handler, its ``Response`` back; and ``open_request`` to call Envoy's
admin port or the application. Promises bounds on everything a peer sends (head 16 KiB, body 64 KiB, 10 s per
request, 64 connections at once) and streams answers piece by piece.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11

_HEAD_BYTES_MAX = 16 * 1024
_BODY_BYTES_MAX = 64 * 1024
_PIECE_BYTES = 64 * 1024
_REQUEST_S_MAX = 10.0
_IDLE_S_MAX = 75.0
_CONNECTIONS_MAX = 64
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer asked; ``loopback`` says that it is in this pod."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    loopback: bool


@dataclass(frozen=True, slots=True)
class Response:
    """Status and body; the body may be a stream."""

    status: int
    body: bytes | AsyncIterator[bytes] = b""
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = field(default=())


Handler = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Serves one handler on one port until ``close``."""

    def __init__(self, handler: Handler) -> None:
        """``handler`` answers every request; an exception in it becomes a 500 without details."""
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, port: int, host: str | None = None) -> int:
        """Listen (port 0: any) and return the port.

        :raises OSError: when the port is taken.
        """
        if host is not None:
            self._server = await asyncio.start_server(self._serve, host, port)
        else:
            dual = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if dual else socket.AF_INET
            listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
            self._server = await asyncio.start_server(self._serve, sock=listener)
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _CONNECTIONS_MAX:
                await self._converse(reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError):
            pass  # the peer went away, was silent or spoke no HTTP: its loss
        finally:
            self._open -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        loopback = bool(peer) and (
            peer[0].startswith("127.") or peer[0] in ("::1",) or peer[0].startswith("::ffff:127.")
        )
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
        while True:
            async with asyncio.timeout(_IDLE_S_MAX):
                try:
                    request = await _read_request(connection, reader, loopback)
                except h11.RemoteProtocolError as error:
                    if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                        await _send(connection, writer, Response(error.error_status_hint), False)
                    return
            if request is None:
                return
            response = await self._answer(request)
            await _send(connection, writer, response, request.method == "HEAD")
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _answer(self, request: Request) -> Response:
        try:
            async with asyncio.timeout(_REQUEST_S_MAX):
                return await self._handler(request)
        except TimeoutError:
            return Response(504, b"the proxy did not answer in time\n")


async def _read_request(
    connection: h11.Connection, reader: asyncio.StreamReader, loopback: bool
) -> Request | None:
    head: h11.Request | None = None
    size = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_PIECE_BYTES))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            size += len(event.data)
            if size > _BODY_BYTES_MAX:
                raise h11.RemoteProtocolError("body too large", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = tuple(
                (name.decode(), value.decode("latin-1")) for name, value in head.headers
            )
            return Request(head.method.decode(), head.target.decode(), headers, loopback)
        else:
            return None


async def _send(
    connection: h11.Connection, writer: asyncio.StreamWriter, response: Response, head_only: bool
) -> None:
    headers = [("content-type", response.content_type), *response.headers]
    if isinstance(response.body, bytes):
        headers.append(("content-length", str(len(response.body))))
    if response.status >= 400 and connection.their_state is h11.ERROR:
        headers.append(("connection", "close"))
    reply = h11.Response(status_code=response.status, headers=headers)
    writer.write(connection.send(reply) or b"")
    if not head_only:
        if isinstance(response.body, bytes):
            writer.write(connection.send(h11.Data(data=response.body)) or b"")
        else:
            async for piece in response.body:
                writer.write(connection.send(h11.Data(data=piece)) or b"")
                await writer.drain()
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    async with asyncio.timeout(_REQUEST_S_MAX):
        await writer.drain()


@asynccontextmanager
async def open_request(
    port: int,
    method: str,
    path: str,
    *,
    host: str = "127.0.0.1",
    accept: str = "",
    timeout_s: float = 5.0,
    more: Sequence[tuple[str, str]] = (),
    tls: ssl.SSLContext | None = None,
    source: str = "",
) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """Status and body stream of one request.

    ``more`` are headers, a Host among them replaces ``host``; ``source`` is the address to call from.

    :raises OSError: when there is no connection or it breaks.
    :raises TimeoutError: when a piece takes longer than ``timeout_s``.
    """
    async with asyncio.timeout(timeout_s):
        local = (source, 0) if source else None
        reader, writer = await asyncio.open_connection(host, port, ssl=tls, local_addr=local)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [("connection", "close"), ("content-length", "0"), *more]
        if not any(name.lower() == "host" for name, _ in more):
            headers.insert(0, ("host", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"))
        if accept:
            headers.append(("accept", accept))
        writer.write(
            connection.send(h11.Request(method=method, target=path, headers=headers)) or b""
        )
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        status = await _read_status(connection, reader, timeout_s)
        yield status, _read_body(connection, reader, timeout_s)
    except h11.ProtocolError as error:
        raise ConnectionError(f"{host}:{port} does not speak HTTP: {error}") from error
    finally:
        writer.close()


async def fetch(port: int, method: str, path: str, *, timeout_s: float = 5.0) -> tuple[int, str]:
    """Status and text of one request to this pod; errors as ``open_request``."""
    async with open_request(port, method, path, timeout_s=timeout_s) as (status, pieces):
        text = b"".join([piece async for piece in pieces])
    return status, text.decode(errors="replace")


async def _next(
    connection: h11.Connection, reader: asyncio.StreamReader, timeout_s: float
) -> object:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        async with asyncio.timeout(timeout_s):
            connection.receive_data(await reader.read(_PIECE_BYTES))


async def _read_status(
    connection: h11.Connection, reader: asyncio.StreamReader, timeout_s: float
) -> int:
    while True:
        event = await _next(connection, reader, timeout_s)
        if isinstance(event, h11.Response):
            return event.status_code
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("closed without an answer")


async def _read_body(
    connection: h11.Connection, reader: asyncio.StreamReader, timeout_s: float
) -> AsyncIterator[bytes]:
    while True:
        event = await _next(connection, reader, timeout_s)
        if isinstance(event, h11.Data):
            yield bytes(event.data)
        else:
            return
