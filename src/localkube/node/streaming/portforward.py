"""kubectl port-forward: connections from the client's machine to ports of a pod.

In: an upgraded connection, and how to reach a port on the pod's loopback (so programs that listen
only there answer, as on Kubernetes). Out: TCP connections inside the pod. Three transports exist and all
end here: SPDY, SPDY inside a WebSocket (kubectl from 1.31 on), and plain WebSocket channels
(client libraries). Promises: one failing connection is reported on its own error stream and does
not disturb the others.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import WSMsgType, web

from localkube.kit.reasons import reason
from localkube.kit.tasks import Tasks
from localkube.node.streaming.channels import accept_spdy, choose_protocol
from localkube.node.streaming.spdy import (
    DataReceived,
    SpdyConnection,
    SpdyError,
    StreamOpened,
    StreamReset,
)

SPDY_PROTOCOL: Final = "portforward.k8s.io"
TUNNEL_PROTOCOL: Final = "SPDY/3.1+portforward.k8s.io"
WEBSOCKET_PROTOCOL: Final = "v4.channel.k8s.io"
_READ: Final = 1 << 15
_CONNECT_S: Final = 10.0

Connect = Callable[[int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Opens a connection to a port of the pod; raises OSError."""


class ByteStream(Protocol):
    """A connection below SPDY."""

    async def read(self) -> bytes:
        """Return the next bytes, empty at the end."""

    async def write(self, data: bytes) -> None:
        """Send bytes."""


class _Tunnel:
    """SPDY bytes inside binary WebSocket messages."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        while True:
            message = await self._socket.receive()
            if message.type is WSMsgType.BINARY:
                if message.data:
                    return bytes(message.data)
            elif message.type in (
                WSMsgType.CLOSE,
                WSMsgType.CLOSED,
                WSMsgType.CLOSING,
                WSMsgType.ERROR,
            ):
                return b""

    async def write(self, data: bytes) -> None:
        if not self._socket.closed:
            await self._socket.send_bytes(data)


async def serve_spdy(request: web.Request, connect: Connect) -> None:
    """Serve a client that upgrades to SPDY."""
    protocol = choose_protocol(request, (SPDY_PROTOCOL,), "X-Stream-Protocol-Version")
    headers = {"X-Stream-Protocol-Version": protocol} if protocol else {}
    await SpdyForwarder(await accept_spdy(request, headers), connect).serve()


async def serve_tunnel(request: web.Request, connect: Connect) -> web.WebSocketResponse:
    """Serve a client that speaks SPDY inside a WebSocket."""
    socket = web.WebSocketResponse(protocols=(TUNNEL_PROTOCOL,), max_msg_size=0)
    await socket.prepare(request)
    await SpdyForwarder(_Tunnel(socket), connect).serve()
    await socket.close()
    return socket


@dataclass(slots=True)
class _Forward:
    """One connection of the client: a pair of streams that share a request id."""

    port: int
    data: int = 0
    error: int = 0
    writer: asyncio.StreamWriter | None = None
    inbox: asyncio.Queue[bytes | None] | None = None


class SpdyForwarder:
    """All connections of one client over SPDY."""

    def __init__(self, connection: ByteStream, connect: Connect) -> None:
        self._connection = connection
        self._connect = connect
        self._spdy = SpdyConnection()
        self._by_request: dict[str, _Forward] = {}
        self._by_stream: dict[int, _Forward] = {}
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Serve until the client goes away."""
        async with Tasks("port forward") as tasks:
            while True:
                data = await self._connection.read()
                if not data:
                    return
                try:
                    events = self._spdy.receive(data)
                except SpdyError:
                    return
                for event in events:
                    if isinstance(event, StreamOpened):
                        self._on_open(event, tasks)
                    elif isinstance(event, DataReceived):
                        await self._on_data(event)
                    elif isinstance(event, StreamReset):
                        self._forget(event.stream)
                await self._flush()

    def _on_open(self, event: StreamOpened, tasks: Tasks) -> None:
        headers = event.headers
        try:
            port = int(headers.get("port", ""))
        except ValueError:
            self._spdy.reset(event.stream, 1)
            return
        self._spdy.accept_stream(event.stream)
        request = headers.get("requestid", headers.get("port", ""))
        forward = self._by_request.setdefault(request, _Forward(port))
        self._by_stream[event.stream] = forward
        if headers.get("streamtype") == "error":
            forward.error = event.stream
        else:
            forward.data = event.stream
            forward.inbox = asyncio.Queue(64)
        if forward.data and forward.error:
            del self._by_request[request]
            tasks.spawn("connection", lambda: self._forward(forward))

    async def _on_data(self, event: DataReceived) -> None:
        forward = self._by_stream.get(event.stream)
        if forward is None or forward.inbox is None or event.stream != forward.data:
            return
        if event.data:
            await forward.inbox.put(event.data)
        if event.fin:
            await forward.inbox.put(None)

    def _forget(self, stream: int) -> None:
        forward = self._by_stream.pop(stream, None)
        if forward is not None and forward.writer is not None:
            forward.writer.close()

    async def _forward(self, forward: _Forward) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await self._connect(forward.port)
        except (OSError, TimeoutError) as error:
            text = (
                f"an error occurred forwarding to port {forward.port} in the pod: {reason(error)}"
            )
            await self._send(forward.error, text.encode(), fin=True)
            await self._send(forward.data, b"", fin=True)
            self._drop(forward)
            return
        forward.writer = writer
        try:
            async with Tasks("forwarded connection") as tasks:
                tasks.spawn("to pod", lambda: self._to_pod(forward, writer))
                await self._to_client(forward, reader)
        finally:
            writer.close()
            self._drop(forward)

    async def _to_client(self, forward: _Forward, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                data = await reader.read(_READ)
                if not data:
                    break
                await self._send(forward.data, data)
        except ConnectionError as error:
            await self._send(forward.error, reason(error).encode())
        await self._send(forward.data, b"", fin=True)
        await self._send(forward.error, b"", fin=True)

    @staticmethod
    async def _to_pod(forward: _Forward, writer: asyncio.StreamWriter) -> None:
        assert forward.inbox is not None
        try:
            while (data := await forward.inbox.get()) is not None:
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (ConnectionError, OSError):
            while await forward.inbox.get() is not None:
                continue  # the pod closed: what still comes has no reader

    def _drop(self, forward: _Forward) -> None:
        for stream in (forward.data, forward.error):
            self._by_stream.pop(stream, None)

    async def _send(self, stream: int, data: bytes, fin: bool = False) -> None:
        self._spdy.send(stream, data, fin)
        await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
            data = self._spdy.data_to_send()
            if data:
                await self._connection.write(data)


async def serve_websocket(
    request: web.Request, connect: Connect, ports: list[int]
) -> web.WebSocketResponse:
    """Serve plain WebSocket channels: 2*i carries port i's bytes, 2*i+1 its errors."""
    socket = web.WebSocketResponse(protocols=(WEBSOCKET_PROTOCOL,), max_msg_size=0)
    await socket.prepare(request)
    writers: dict[int, asyncio.StreamWriter] = {}
    async with Tasks("port forward") as tasks:
        for index, port in enumerate(ports):
            for channel in (2 * index, 2 * index + 1):
                await socket.send_bytes(bytes([channel]) + struct.pack("<H", port))
            try:
                reader, writers[2 * index] = await connect(port)
            except OSError as error:
                await socket.send_bytes(bytes([2 * index + 1]) + reason(error).encode())
                continue
            tasks.spawn("to client", _pump(socket, 2 * index, reader))
        async for message in socket:
            if message.type is not WSMsgType.BINARY or not message.data:
                continue
            writer = writers.get(message.data[0])
            if writer is not None:
                try:
                    writer.write(message.data[1:])
                    await writer.drain()
                except ConnectionError:
                    del writers[message.data[0]]
    for writer in writers.values():
        writer.close()
    return socket


def _pump(
    socket: web.WebSocketResponse, channel: int, reader: asyncio.StreamReader
) -> Callable[[], Awaitable[None]]:
    async def pump() -> None:
        try:
            while data := await reader.read(_READ):
                await socket.send_bytes(bytes([channel]) + data)
        except ConnectionError:
            pass
        if not socket.closed:
            await socket.close()

    return pump
