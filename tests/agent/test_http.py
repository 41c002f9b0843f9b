"""The agent's small HTTP server: bounds, odd peers, streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from meltemi.adapters.agent_http import HttpServer, Request, Response, fetch


async def answer(request: Request) -> Response:
    """Echo the method, or stream when asked to."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100_000

    if request.path == "/stream":
        return Response(200, pieces())
    if request.path == "/hang":
        raise TimeoutError
    return Response(200, f"{request.method} {request.loopback}".encode())


async def converse(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    writer.write_eof()
    async with asyncio.timeout(30):
        received = await reader.read()
    writer.close()
    return received


@pytest.mark.parametrize(
    ("sent", "start"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 200"),
        (b"GET /hang HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 504"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
        (b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 20000, b"HTTP/1.1 431"),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999\r\n\r\n" + b"z" * 70000,
            b"HTTP/1.1 413",
        ),
        (b"", b""),
    ],
)
async def test_every_peer_gets_an_answer_or_a_close(sent: bytes, start: bytes) -> None:
    """Good requests are answered, bad ones refused, nothing is buffered without a bound."""
    server = HttpServer(answer)
    port = await server.start(0)
    try:
        assert (await converse(port, sent))[:12] == start
        assert await fetch(port, "GET", "/") == (200, "GET True"), "the server goes on"
    finally:
        await server.close()


async def test_two_requests_on_one_connection() -> None:
    """Keep-alive works, also after a streamed answer."""
    server = HttpServer(answer)
    port = await server.start(0, "127.0.0.1")
    try:
        twice = b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\nHEAD / HTTP/1.1\r\nhost: a\r\n\r\n"
        received = await converse(port, twice)
        assert received.count(b"HTTP/1.1 200") == 2 and received.count(b"x") >= 300_000
        status, text = await fetch(port, "GET", "/stream")
        assert (status, len(text)) == (200, 300_000)
    finally:
        await server.close()


async def test_a_server_that_speaks_no_http_is_an_os_error() -> None:
    """The client's errors are OSError or TimeoutError, whatever the peer does."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com ready\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(OSError, match="does not speak HTTP"):
        await fetch(port, "GET", "/")
    server.close()
