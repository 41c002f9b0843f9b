"""One gRPC call over HTTP/2 without TLS, for the agent: a gRPC library would double its memory.

In: a connection, the method, messages as bytes. Out: the answers as bytes, and how the call ended.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from meltemi.agent.backoff import Backoff

XDS_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_CONNECT_S = 5.0
_HEALTHY_AFTER_S = 60.0
_MESSAGE_BYTES_MAX = 64 * 1024 * 1024
_WINDOW_BYTES = 1024 * 1024
_PIECE_BYTES = 64 * 1024


class StreamEndedError(Exception):
    """The call is over; the text says why."""


class GrpcCall:
    """One call on a connection of its own. What it raises: StreamEndedError, OSError, h2's ProtocolError."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        authority: str = "istiod",
    ) -> None:
        self._reader, self._writer = reader, writer
        config = h2.config.H2Configuration(client_side=True, header_encoding=False)
        self._h2 = h2.connection.H2Connection(config)
        self._buffer = bytearray()
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        self._stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", authority),
            (":path", method),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self._h2.send_headers(self._stream, headers)
        self._writer.write(self._h2.data_to_send())

    def send(self, message: bytes, *, last: bool = False) -> None:
        """Write one message. They are small and few: they fit the window that the peer opens with (64 KiB at least)."""
        data = struct.pack("!BI", 0, len(message)) + message
        self._h2.send_data(self._stream, data, end_stream=last)
        self._writer.write(self._h2.data_to_send())

    async def messages(self) -> AsyncIterator[bytes]:
        """The peer's messages until the call ends, which raises."""
        while piece := await self._reader.read(_PIECE_BYTES):
            for event in self._h2.receive_data(piece):
                for message in self._take(event):
                    yield message
            self._writer.write(self._h2.data_to_send())
            await self._writer.drain()
        raise StreamEndedError("the connection was closed")

    def _take(self, event: h2.events.Event) -> Iterator[bytes]:
        if isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream)
            self._buffer += event.data
            yield from self._whole_messages()
        elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            headers = {bytes(name): bytes(value) for name, value in event.headers}
            status, grpc_status = headers.get(b":status", b"200"), headers.get(b"grpc-status", b"0")
            if (status, grpc_status) != (b"200", b"0"):
                text = headers.get(b"grpc-message", b"").decode(errors="replace")
                raise StreamEndedError(text or f"HTTP status {status.decode()}")
        elif isinstance(event, h2.events.StreamEnded):
            raise StreamEndedError("the peer ended the stream")
        elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
            raise StreamEndedError("the stream was reset")

    def _whole_messages(self) -> Iterator[bytes]:
        while len(self._buffer) >= 5:
            _, size = struct.unpack_from("!BI", self._buffer)
            if size > _MESSAGE_BYTES_MAX:
                raise StreamEndedError(f"a message of {size} bytes")
            if len(self._buffer) < 5 + size:
                return
            data = bytes(self._buffer[5 : 5 + size])
            del self._buffer[: 5 + size]
            yield data


async def converse(socket_path: str, talk: Callable[[GrpcCall], Awaitable[None]]) -> None:
    """One xDS stream to istiod through Envoy's Unix socket, for as long as ``talk`` takes."""
    async with asyncio.timeout(_CONNECT_S):
        reader, writer = await asyncio.open_unix_connection(socket_path)
    try:
        await talk(GrpcCall(reader, writer, XDS_METHOD))
    finally:
        writer.close()


async def keep_conversing(
    run: Callable[[], Awaitable[None]],
    complaint: str,
    log: Callable[[str, str], None],
    chance: Callable[[], float],
) -> None:
    """Run a stream until cancelled, again whenever it ends, with growing, jittered pauses.

    A proxy that is still starting refuses a few times; what lasts is told once, after ``complaint``.
    """
    backoff, failures, told = Backoff(0.2, 5.0), 0, ""
    loop = asyncio.get_running_loop()
    while True:
        began, reason = loop.time(), "the stream ended"
        try:
            await run()
        except (OSError, TimeoutError, StreamEndedError, h2.exceptions.ProtocolError) as error:
            reason = str(error) or type(error).__name__
        failures = 1 if loop.time() - began > _HEALTHY_AFTER_S else failures + 1
        if failures >= 5 and reason != told:
            log("warning", f"{complaint}: {reason}; trying again")
            told = reason
        await asyncio.sleep(backoff.delay_s(failures, chance()))
