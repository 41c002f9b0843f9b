"""Clients of istiod's ports that open connections and take their time: with TLS, with a request's head, with nothing at all."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import grpc
from aiohttp import web
from grpc import aio

from meltemi.adapters.grpc_server import GrpcServer, Serving, credentials
from meltemi.adapters.http_ports import Bounds, HttpPorts
from meltemi.adapters.webhook_https import server_context
from pki import make_authority

HELLO = b"\x16\x03\x01\x02\x00\x01\x00"  # the beginning of a ClientHello
HEAD = b"POST /echo HTTP/1.1\r\nhost: istiod\r\nx-slow: "
PREFACE = b"PRI * HTTP/2.0\r\n"
DEADLINE_S = 20.0


def serving() -> Serving:
    """What the TLS ports show."""
    authority = make_authority()
    chain, key = authority.issue("istiod.example")
    return Serving(key, chain, authority.root)


def trusting(*protocols: str) -> ssl.SSLContext:
    """TLS of a client that believes everybody."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context


async def outlasts(port: int, tls: ssl.SSLContext | None, first: bytes, drip: bytes) -> bool:
    """Whether a client that sends ``first`` and then ``drip`` again and again, slowly, can stay until it gives up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        writer.write(first)

        async def drop_by_drop() -> None:
            while drip:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(0.05)

        slowly = asyncio.ensure_future(drop_by_drop())
        try:
            async with asyncio.timeout(DEADLINE_S):
                while await reader.read(65536):
                    pass
        except TimeoutError:
            return True
        except OSError:
            return False
        finally:
            slowly.cancel()
            await asyncio.gather(slowly, return_exceptions=True)
        return False
    finally:
        writer.transport.abort()


@asynccontextmanager
async def echo(bounds: Bounds) -> AsyncIterator[int]:
    """An HTTPS port of istiod's making."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application(client_max_size=1000)
    app.router.add_post("/echo", answer)
    ports = HttpPorts(bounds)
    try:
        yield await ports.listen("https", app, "127.0.0.1:0", server_context(serving()))
    finally:
        await ports.close()


async def test_http_ports_wait_for_nobody() -> None:
    """No TLS, half of it, TLS and then nothing, a head without end, silence after an answer: each ends, others are served meanwhile."""
    complete = HEAD + b"\r\ncontent-length: 0\r\n\r\n"
    slow = [
        (None, b"", b""),
        (None, HELLO, b"\x00"),
        (trusting(), b"", b""),
        (trusting(), HEAD, b"a"),
        (trusting(), complete, b""),
        (trusting(), complete + HEAD, b"a"),
    ]
    async with (
        echo(Bounds(handshake_s=0.3, head_s=0.5)) as port,
        aiohttp.ClientSession() as session,
    ):
        waiting = asyncio.gather(*(outlasts(port, *each) for each in slow))
        url = f"https://127.0.0.1:{port}/echo"
        async with session.post(url, data=b"others", ssl=trusting()) as found:
            assert await found.read() == b"others"
        assert await waiting == [False] * len(slow)


async def test_sizes_of_requests() -> None:
    """A head that is too long and a body that is too large are refused."""
    async with echo(Bounds()) as port, aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{port}/echo"
        for headers, body, status in (
            ({"x-long": "a" * 100_000}, b"", 400),
            ({f"x-{n}": "a" * 1000 for n in range(1000)}, b"", 400),
            ({}, b"a" * 2000, 413),
            ({}, b"a" * 1000, 200),
        ):
            async with session.post(url, data=body, headers=headers, ssl=trusting()) as found:
                assert found.status == status, headers.keys()


async def test_too_many_connections() -> None:
    """One address holds so many and no more; when it lets go of them it may come again."""
    async with echo(Bounds(per_address=3)) as port, AsyncExitStack() as stack:
        writers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting())
            stack.callback(writer.transport.abort)
            writers.append(writer)
        await asyncio.sleep(0)  # the server's side of the last handshake
        assert not await outlasts(port, trusting(), b"", b"")

        async def works(local: str) -> bool:
            """From an address of its own."""
            connector = aiohttp.TCPConnector(local_addr=(local, 0), ssl=trusting())
            async with aiohttp.ClientSession(connector=connector) as session:
                try:
                    async with session.post(f"https://127.0.0.1:{port}/echo", data=b"x") as found:
                        return found.status == 200
                except aiohttp.ClientError:
                    return False

        assert await works("127.0.0.9")
        assert not await works("127.0.0.1")
        for writer in writers:
            writer.transport.abort()
        async with asyncio.timeout(DEADLINE_S):
            while not await works("127.0.0.1"):
                await asyncio.sleep(0.02)


async def test_grpc_ports_wait_for_nobody() -> None:
    """Nothing, half of TLS, half of HTTP/2's beginning, TLS and then nothing: each ends; calls are answered meanwhile."""

    async def call(request: bytes, _: aio.ServicerContext) -> bytes:
        return request

    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Call": grpc.unary_unary_rpc_method_handler(call)}
    )
    server = GrpcServer([handler], handshake_s=0.5)
    plain = server.listen("plain", "127.0.0.1:0")
    secure = server.listen("tls", "127.0.0.1:0", credentials(serving, require_client=False))
    mutual = server.listen("mtls", "127.0.0.1:0", credentials(serving, require_client=True))
    await server.start()
    try:
        slow = [
            (plain, None, b"", b""),
            (plain, None, PREFACE, b""),
            (secure, None, b"", b""),
            (secure, None, HELLO, b"\x00"),
            (secure, trusting("h2"), b"", b""),
            (mutual, None, HELLO, b"\x00"),
        ]
        waiting = asyncio.gather(*(outlasts(*each) for each in slow))
        async with aio.insecure_channel(f"127.0.0.1:{plain}") as channel:
            assert await channel.unary_unary("/test.Echo/Call")(b"others", timeout=20) == b"others"
        assert await waiting == [False] * len(slow)
    finally:
        await server.stop(0.1)


def test_bounds_of_the_real_ports() -> None:
    """Longer than an API server keeps a connection that it does not use, and not without end."""
    assert 90 < Bounds().head_s < 120
    assert 0 < Bounds().handshake_s <= 20
