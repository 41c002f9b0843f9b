"""Named channels over one upgraded connection: WebSocket or SPDY, the user need not know which.

In: an aiohttp request that asks for an upgrade. Out: ``Channels``: messages that came in, and
writes to named channels. Promises: writes wait while the client is slow, reads stop while we are.

Subprotocols of Kubernetes: https://kubernetes.io/docs/reference/using-api/api-concepts/ and
KEP-4006 (v5 adds the closing of one channel to v4's WebSocket framing).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import WSMsgType, web

from localkube.node.streaming.spdy import (
    ConnectionEnding,
    DataReceived,
    Event,
    SpdyConnection,
    SpdyError,
    StreamOpened,
    StreamReset,
)

CHANNELS: Final = ("stdin", "stdout", "stderr", "error", "resize")
"""The channel numbers of the WebSocket subprotocols, in order."""
WEBSOCKET_PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
SPDY_PROTOCOLS: Final = ("v4.channel.k8s.io",)
_CLOSE_SIGNAL: Final = 255
_READ: Final = 1 << 16
_OPEN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes of one channel; ``fin``: nothing more will come on it."""

    channel: str
    data: bytes
    fin: bool = False


class Channels(Protocol):
    """What a session needs of its connection."""

    def messages(self) -> AsyncIterator[Message]:
        """Yield what the client sends until it goes away."""

    async def write(self, channel: str, data: bytes) -> None:
        """Send on a channel; a channel that the client did not ask for swallows it."""

    async def close(self) -> None:
        """End the session."""


def is_spdy(request: web.Request) -> bool:
    """Return whether the client asks for SPDY."""
    return request.headers.get("Upgrade", "").lower() == "spdy/3.1"


class Upgraded:
    """The raw connection below an accepted upgrade."""

    def __init__(self, response: web.StreamResponse, reader: asyncio.StreamReader) -> None:
        self._response = response
        self._reader = reader

    async def read(self) -> bytes:
        """Return the next bytes, empty at the end."""
        return await self._reader.read(_READ)

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the client is slow."""
        await self._response.write(data)


class _Tap:
    """Takes the place of aiohttp's HTTP parser on an upgraded connection."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        if data:
            self._reader.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self._reader.feed_eof()


async def accept_spdy(request: web.Request, headers: dict[str, str]) -> Upgraded:
    """Answer 101 and return the connection."""
    response = web.StreamResponse(status=101, headers=headers)
    response.headers["Upgrade"] = "SPDY/3.1"
    response.headers["Connection"] = "Upgrade"
    reader = asyncio.StreamReader(limit=_READ)
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client is gone")
    tap: Any = _Tap(reader)
    # The client speaks only after our 101, so the change of parsers cannot miss a byte.
    request.protocol.set_parser(tap)
    # asyncio's reader pauses the transport by itself when its buffer is full.
    reader.set_transport(transport)
    await response.prepare(request)
    request["upgraded"] = response
    return Upgraded(response, reader)


def choose_protocol(request: web.Request, known: tuple[str, ...], header: str) -> str | None:
    """Return the first subprotocol of ours that the client offers."""
    offered = {
        item.strip() for value in request.headers.getall(header, []) for item in value.split(",")
    }
    return next((name for name in known if name in offered), None)


class WebSocketChannels:
    """Channels over a WebSocket: the first byte of a message is the channel's number."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket

    @classmethod
    async def accept(cls, request: web.Request, expected: set[str]) -> WebSocketChannels:
        """Answer the upgrade."""
        socket = web.WebSocketResponse(
            protocols=WEBSOCKET_PROTOCOLS, max_msg_size=0, heartbeat=30, autoclose=True
        )
        await socket.prepare(request)
        request["upgraded"] = socket
        channels = cls(socket)
        # An empty message on the first channel of ours tells the client that the session began.
        first = next((name for name in ("stdout", "stderr") if name in expected), "error")
        await channels.write(first, b"")
        return channels

    async def messages(self) -> AsyncIterator[Message]:
        """Yield messages of known channels."""
        async for message in self._socket:
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                continue
            data = message.data.encode() if isinstance(message.data, str) else message.data
            if not data:
                continue
            number = data[0]
            if number == _CLOSE_SIGNAL and len(data) > 1 and data[1] < len(CHANNELS):
                yield Message(CHANNELS[data[1]], b"", fin=True)
            elif number < len(CHANNELS):
                yield Message(CHANNELS[number], data[1:])

    async def write(self, channel: str, data: bytes) -> None:
        """Send one message."""
        if not self._socket.closed:
            await self._socket.send_bytes(bytes([CHANNELS.index(channel)]) + data)

    async def close(self) -> None:
        """Close the WebSocket."""
        await self._socket.close()


class SpdyChannels:
    """Channels over SPDY: one stream each, named by its ``streamtype`` header."""

    def __init__(self, connection: Upgraded) -> None:
        self._connection = connection
        self._spdy = SpdyConnection()
        self._names: dict[int, str] = {}
        self._streams: dict[str, int] = {}
        self._pending: list[Message] = []

    @classmethod
    async def accept(cls, request: web.Request, expected: set[str]) -> SpdyChannels:
        """Answer the upgrade and wait for the expected streams. Raises SpdyError, TimeoutError."""
        protocol = choose_protocol(request, SPDY_PROTOCOLS, "X-Stream-Protocol-Version")
        if protocol is None:
            raise SpdyError(f"none of the offered protocols is {SPDY_PROTOCOLS[0]}")
        headers = {"X-Stream-Protocol-Version": protocol}
        channels = cls(await accept_spdy(request, headers))
        async with asyncio.timeout(_OPEN_S):
            while not expected <= channels._streams.keys():
                data = await channels._connection.read()
                if not data:
                    raise SpdyError("the client went away before it opened its streams")
                channels._pending += await channels._take(data)
        return channels

    async def messages(self) -> AsyncIterator[Message]:
        """Yield data of all streams."""
        pending, self._pending = self._pending, []
        for message in pending:
            yield message
        while True:
            data = await self._connection.read()
            if not data:
                return
            try:
                for message in await self._take(data):
                    yield message
            except SpdyError:
                return

    async def _take(self, data: bytes) -> list[Message]:
        messages = []
        for event in self._spdy.receive(data):
            message = self._on_event(event)
            if message is not None:
                messages.append(message)
        await self._flush()
        return messages

    def _on_event(self, event: Event) -> Message | None:
        if isinstance(event, StreamOpened):
            name = event.headers.get("streamtype", "")
            self._names[event.stream] = name
            self._streams[name] = event.stream
            self._spdy.accept_stream(event.stream)
        elif isinstance(event, DataReceived):
            return Message(self._names.get(event.stream, ""), event.data, event.fin)
        elif isinstance(event, StreamReset):
            return Message(self._names.get(event.stream, ""), b"", fin=True)
        elif isinstance(event, ConnectionEnding):
            return None
        return None

    async def write(self, channel: str, data: bytes) -> None:
        """Send on the stream of this name, if the client opened it."""
        stream = self._streams.get(channel)
        if stream is not None and data:
            self._spdy.send(stream, data)
            await self._flush()

    async def close(self) -> None:
        """End all streams and the connection."""
        for stream in self._streams.values():
            self._spdy.send(stream, b"", fin=True)
        self._spdy.go_away()
        await self._flush()

    async def _flush(self) -> None:
        data = self._spdy.data_to_send()
        if data:
            await self._connection.write(data)
