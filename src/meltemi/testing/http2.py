"""HTTP/2 and gRPC for clients of the rig, on a socket that is connected already.

In: one request. Out: one answer, with trailers. Blocking; a connection carries one request.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from meltemi.testing.http1 import Answer, Broken


def exchange(
    connection: socket.socket,
    method: str,
    scheme: str,
    path: str,
    host: str,
    headers: Mapping[str, str],
    body: bytes = b"",
) -> Answer:
    """One request and its answer. Raises Broken, TimeoutError."""
    machine = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    machine.initiate_connection()
    stream = machine.get_next_available_stream_id()
    fields = [(":method", method), (":scheme", scheme), (":authority", host), (":path", path)]
    fields += [(name.lower(), value) for name, value in headers.items() if name.lower() != "host"]
    machine.send_headers(stream, fields, end_stream=not body)
    answer = Answer(0, [], b"", "2")
    rest = memoryview(body)
    try:
        while True:
            rest = _send_some(machine, stream, rest)
            connection.sendall(machine.data_to_send())
            data = connection.recv(65536)
            if not data:
                raise Broken("the connection was closed before the answer was whole")
            if _take(machine, machine.receive_data(data), answer):
                connection.sendall(machine.data_to_send())
                return answer
    except TimeoutError:
        raise
    except (OSError, ProtocolError) as error:
        raise error if isinstance(error, Broken) else Broken(str(error)) from error


def _send_some(machine: H2Connection, stream: int, rest: memoryview) -> memoryview:
    """As much of the body as flow control lets through."""
    while rest:
        room = min(machine.local_flow_control_window(stream), machine.max_outbound_frame_size)
        if room <= 0:
            return rest
        part, rest = rest[:room], rest[room:]
        machine.send_data(stream, bytes(part), end_stream=not rest)
    return rest


def _take(machine: H2Connection, events: list[Event], answer: Answer) -> bool:
    """Note what came; True when the answer is whole."""
    for event in events:
        if isinstance(event, ResponseReceived):
            fields = [(str(name), str(value)) for name, value in event.headers or ()]
            answer.status = int(dict(fields)[":status"])
            answer.headers = [(name, value) for name, value in fields if name[0] != ":"]
        elif isinstance(event, DataReceived):
            answer.body += event.data or b""
            machine.acknowledge_received_data(
                event.flow_controlled_length or 0, event.stream_id or 1
            )
        elif isinstance(event, TrailersReceived):
            answer.trailers = [(str(name), str(value)) for name, value in event.headers or ()]
        elif isinstance(event, StreamEnded):
            return True
        elif isinstance(event, StreamReset):
            raise Broken(f"the stream was reset (HTTP/2 error {event.error_code})")
        elif isinstance(event, ConnectionTerminated):
            raise Broken(f"the connection was terminated (HTTP/2 error {event.error_code})")
    return False


def grpc_frame(message: bytes) -> bytes:
    """A message in gRPC's framing, uncompressed."""
    return struct.pack("!BI", 0, len(message)) + message


def grpc_messages(body: bytes) -> list[bytes]:
    """The whole messages of a body."""
    found = []
    while len(body) >= 5:
        size = struct.unpack("!I", body[1:5])[0]
        if len(body) < 5 + size:
            break
        found.append(body[5 : 5 + size])
        body = body[5 + size :]
    return found
