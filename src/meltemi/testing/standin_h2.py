"""HTTP/2 and gRPC for stand-ins.

In: bytes of one connection. Out: a JSON answer per request; a gRPC call gets its own messages back, with the JSON in the
header ``x-echo``, and status OK.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import ProtocolError

from meltemi.testing.standins import Application, Received, Session, Trouble, json_bytes, later


@dataclass(slots=True)
class _Stream:
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    waiting: bytes = b""
    trailers: list[tuple[str, str]] | None = None


class Http2(Session):
    """One connection."""

    def __init__(self, app: Application) -> None:
        super().__init__(app)
        self._machine = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, _Stream] = {}

    def opened(self) -> None:
        """Say hello."""
        self._machine.initiate_connection()
        self._flush()

    def received(self, data: bytes) -> None:
        """Take frames."""
        try:
            for event in self._machine.receive_data(data):
                self._take(event)
        except ProtocolError:
            self._flush()
            self.app.channel.close()
            return
        self._flush()

    def _flush(self) -> None:
        if data := self._machine.data_to_send():
            self.app.channel.write(data)

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            headers = {str(name): str(value) for name, value in event.headers or ()}
            self._streams[event.stream_id or 0] = _Stream(headers)
        elif isinstance(event, DataReceived):
            number = event.stream_id or 0
            self._machine.acknowledge_received_data(event.flow_controlled_length or 0, number)
            if number in self._streams:
                self._streams[number].body += event.data or b""
        elif isinstance(event, StreamEnded):
            self._ended(event.stream_id or 0)
        elif isinstance(event, StreamReset):
            self._streams.pop(event.stream_id or 0, None)
        elif isinstance(event, WindowUpdated):
            for number in list(self._streams):
                self._send_body(number)

    def _ended(self, number: int) -> None:
        stream = self._streams[number]
        plain = {name: value for name, value in stream.headers.items() if name[0] != ":"}
        app = self.app
        app.standins.note(
            Received(
                app.who,
                stream.headers.get(":method", ""),
                stream.headers.get(":path", ""),
                plain,
                stream.body,
                "http/2",
            )
        )
        trouble = app.standins.troubles.next(app.who)
        if trouble is not None and trouble.reset:
            self._machine.reset_stream(number)
            self._streams.pop(number, None)
            return
        later(trouble.delay_s if trouble else 0.0, lambda: self._answer(number, plain, trouble))

    def _answer(self, number: int, plain: dict[str, str], trouble: Trouble | None) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        grpc = plain.get("content-type", "").startswith("application/grpc")
        body = self.app.describe(
            method=stream.headers.get(":method", ""),
            path=stream.headers.get(":path", ""),
            host=stream.headers.get(":authority", ""),
            headers=plain,
            body="" if grpc else stream.body.decode(errors="replace"),
            protocol="grpc" if grpc else "http/2",
        )
        status = (trouble.status if trouble else 0) or 200
        extra = list((trouble.headers if trouble else {}).items())
        fields = [(":status", str(status))]
        if grpc:
            code = trouble.grpc_status if trouble else 0
            fields += [
                ("content-type", "application/grpc"),
                ("x-echo", json.dumps(body, separators=(",", ":"))),
            ]
            stream.trailers = [("grpc-status", str(code))]
            stream.waiting = stream.body if not code and status == 200 else b""
        else:
            stream.waiting = json_bytes(body)
            fields += [
                ("content-type", "application/json"),
                ("content-length", str(len(stream.waiting))),
            ]
        self._machine.send_headers(number, [*fields, *extra])
        self._send_body(number)
        self._flush()

    def _send_body(self, number: int) -> None:
        stream = self._streams[number]
        while stream.waiting:
            machine = self._machine
            room = min(machine.local_flow_control_window(number), machine.max_outbound_frame_size)
            if room <= 0:
                return
            part, stream.waiting = stream.waiting[:room], stream.waiting[room:]
            machine.send_data(number, part)
        if stream.trailers is not None:
            self._machine.send_headers(number, stream.trailers, end_stream=True)
        elif stream.headers:
            self._machine.end_stream(number)
        self._streams.pop(number, None)
