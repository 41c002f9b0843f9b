"""Follow istiod's name table, for a pod with DNS capture.

In: the Unix socket on which Envoy passes calls on to istiod (it adds TLS and the pod's token), and the xDS node.
Out: each new table to a callback. Promises: one stream, incremental, acknowledged; it comes back by itself with
growing, jittered pauses; until then the last table stays in force. Speaks gRPC by h2 alone: a gRPC library would
double the agent's memory for one stream that is nearly always silent.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from meltemi.agent.backoff import Backoff
from meltemi.agent.name_table import NameInfo
from meltemi.model.names import NDS_TYPE
from meltemi.protos import nds_pb2

_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
_MESSAGE_BYTES_MAX = 64 * 1024 * 1024
_WINDOW_BYTES = 1024 * 1024
_PIECE_BYTES = 64 * 1024
_CONNECT_S = 5.0
_HEALTHY_AFTER_S = 60.0

Hosts = Mapping[str, NameInfo]


class StreamEndedError(Exception):
    """The stream is over; the text says why."""


async def follow_names(
    socket_path: str,
    node: Mapping[str, Any],
    adopt: Callable[[Hosts], None],
    log: Callable[[str, str], None],
    chance: Callable[[], float],
) -> None:
    """Run until cancelled. ``adopt`` gets all hosts whenever they change."""
    backoff, failures, told = Backoff(0.2, 5.0), 0, ""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            await _Stream(node, adopt).run(socket_path)
        except (OSError, TimeoutError, StreamEndedError, h2.exceptions.ProtocolError) as error:
            reason = str(error) or type(error).__name__
        failures = 1 if loop.time() - began > _HEALTHY_AFTER_S else failures + 1
        # A proxy that is still starting refuses a few times; what lasts is told once.
        if failures >= 5 and reason != told:
            log("warning", f"DNS names do not come from istiod: {reason}; trying again")
            told = reason
        await asyncio.sleep(backoff.delay_s(failures, chance()))


class _Stream:
    """One Delta conversation about one type."""

    def __init__(self, node: Mapping[str, Any], adopt: Callable[[Hosts], None]) -> None:
        self._node, self._adopt = node, adopt
        config = h2.config.H2Configuration(client_side=True, header_encoding=False)
        self._h2 = h2.connection.H2Connection(config)
        self._buffer = bytearray()
        self._stream = 0

    async def run(self, socket_path: str) -> None:
        """Converse until the stream ends, which raises StreamEndedError or OSError."""
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_unix_connection(socket_path)
        try:
            self._open()
            writer.write(self._h2.data_to_send())
            while piece := await reader.read(_PIECE_BYTES):
                for event in self._h2.receive_data(piece):
                    self._take(event)
                writer.write(self._h2.data_to_send())
                await writer.drain()
            raise StreamEndedError("the connection was closed")
        finally:
            writer.close()

    def _open(self) -> None:
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_WINDOW_BYTES)
        self._stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "istiod"),
            (":path", _METHOD),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self._h2.send_headers(self._stream, headers)
        first = discovery_pb2.DeltaDiscoveryRequest(type_url=NDS_TYPE)
        ParseDict(dict(self._node), first.node, ignore_unknown_fields=True)
        self._send(first)

    def _send(self, message: discovery_pb2.DeltaDiscoveryRequest) -> None:
        data = message.SerializeToString()
        # Requests are small and few: they fit the window that Envoy opens with (64 KiB at least).
        self._h2.send_data(self._stream, struct.pack("!BI", 0, len(data)) + data)

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, self._stream)
            self._buffer += event.data
            self._take_messages()
        elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
            headers = {bytes(name): bytes(value) for name, value in event.headers}
            status, grpc_status = headers.get(b":status", b"200"), headers.get(b"grpc-status", b"0")
            if (status, grpc_status) != (b"200", b"0"):
                text = headers.get(b"grpc-message", b"").decode(errors="replace")
                raise StreamEndedError(text or f"HTTP status {status.decode()}")
        elif isinstance(event, h2.events.StreamEnded):
            raise StreamEndedError("istiod ended the stream")
        elif isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)):
            raise StreamEndedError("the stream was reset")

    def _take_messages(self) -> None:
        while len(self._buffer) >= 5:
            _, size = struct.unpack_from("!BI", self._buffer)
            if size > _MESSAGE_BYTES_MAX:
                raise StreamEndedError(f"a message of {size} bytes")
            if len(self._buffer) < 5 + size:
                return
            data = bytes(self._buffer[5 : 5 + size])
            del self._buffer[: 5 + size]
            self._take_response(data)

    def _take_response(self, data: bytes) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=NDS_TYPE)
        try:
            response = discovery_pb2.DeltaDiscoveryResponse.FromString(data)
            request.response_nonce = response.nonce
            hosts: dict[str, NameInfo] = {}
            for resource in response.resources:
                hosts.update(_hosts(resource.resource.value))
        except DecodeError as error:
            request.error_detail.code = 3  # INVALID_ARGUMENT
            request.error_detail.message = f"the name table cannot be read: {error}"
        else:
            # An answer without resources says that nothing changed, or that there are none yet.
            if response.resources or response.removed_resources:
                self._adopt(hosts)
        self._send(request)


def _hosts(body: bytes) -> dict[str, NameInfo]:
    table = nds_pb2.NameTable.FromString(body).table
    return {
        host: NameInfo(tuple(info.ips), info.shortname, info.namespace)
        for host, info in table.items()
    }
