"""HTTP/1.1 and WebSocket for stand-ins: small and quick, for requests that a proxy has already checked.

In: bytes of one connection. Out: a JSON answer per request, in order.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from meltemi.testing.standins import Application, Received, Session, Trouble, json_bytes, later
from meltemi.testing.websocket import TEXT, Frames, frame

_REASONS = {200: "OK", 204: "No Content", 404: "Not Found", 503: "Service Unavailable"}
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


@dataclass(slots=True)
class _Request:
    method: str
    path: str
    version: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = 0  # None: chunked


class Http1(Session):
    """One connection."""

    def __init__(self, app: Application) -> None:
        super().__init__(app)
        self._buffer = b""
        self._current: _Request | None = None
        self._frames: Frames | None = None

    def received(self, data: bytes) -> None:
        """Parse as far as possible."""
        self._buffer += data
        while self._buffer:
            if self._frames is not None:
                self._websocket()
                return
            if self._current is None:
                head, end, rest = self._buffer.partition(b"\r\n\r\n")
                if not end:
                    return
                self._buffer = rest
                self._current = _parse_head(head)
            if not self._body(self._current):
                return
            request, self._current = self._current, None
            self._answer(request)

    def _body(self, request: _Request) -> bool:
        """Take the body; True when it is whole."""
        if request.length is None:
            while True:
                line, end, rest = self._buffer.partition(b"\r\n")
                if not end:
                    return False
                size = int(line.partition(b";")[0] or b"0", 16)
                if size == 0:
                    trailers, end, after = rest.partition(b"\r\n")
                    if not end:
                        return False
                    self._buffer = after if not trailers else after.partition(b"\r\n")[2]
                    return True
                if len(rest) < size + 2:
                    return False
                request.body += rest[:size]
                self._buffer = rest[size + 2 :]
        if len(self._buffer) < request.length:
            return False
        request.body, self._buffer = self._buffer[: request.length], self._buffer[request.length :]
        return True

    def _answer(self, request: _Request) -> None:
        app = self.app
        app.standins.note(
            Received(
                app.who, request.method, request.path, request.headers, request.body, "http/1.1"
            )
        )
        trouble = app.standins.troubles.next(app.who)
        if trouble is not None and trouble.reset:
            app.channel.reset()
            return
        if request.headers.get("upgrade", "").lower() == "websocket" and trouble is None:
            self._upgrade(request)
            return
        later(trouble.delay_s if trouble else 0.0, lambda: self._send(request, trouble))

    def _send(self, request: _Request, trouble: Trouble | None) -> None:
        status = (trouble.status if trouble else 0) or 200
        body = json_bytes(
            self.app.describe(
                method=request.method,
                path=request.path,
                host=request.headers.get("host", ""),
                headers=request.headers,
                body=request.body.decode(errors="replace"),
                protocol=f"http/{request.version}",
            )
        )
        extra = "".join(f"{k}: {v}\r\n" for k, v in (trouble.headers if trouble else {}).items())
        closing = request.headers.get("connection", "").lower() == "close"
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{extra}{'connection: close' + chr(13) + chr(10) if closing else ''}\r\n"
        )
        sent = b"" if request.method == "HEAD" else body
        self.app.channel.write(head.encode("latin-1") + sent)
        if closing:
            self.app.channel.close()

    def _upgrade(self, request: _Request) -> None:
        key = request.headers.get("sec-websocket-key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()  # noqa: S324 - RFC 6455
        self.app.channel.write(
            (
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
                f"sec-websocket-accept: {accept}\r\n\r\n"
            ).encode()
        )
        self._frames = Frames()

    def _websocket(self) -> None:
        assert self._frames is not None
        data, self._buffer = self._buffer, b""
        for opcode, payload in self._frames.feed(data):
            if opcode == 8:
                self.app.channel.write(frame(payload, 8))
                self.app.channel.close()
            elif opcode == 9:
                self.app.channel.write(frame(payload, 10))
            elif opcode in (1, 2):
                text = payload.decode(errors="replace")
                answer = json_bytes(self.app.describe(received=text, protocol="websocket"))
                self.app.channel.write(frame(answer, TEXT))


def _parse_head(head: bytes) -> _Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    path, _, version = rest.rpartition(" ")
    request = _Request(method, path, version.removeprefix("HTTP/"))
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        known = request.headers.get(name)
        request.headers[name] = f"{known}, {value}" if known is not None else value
    if "chunked" in request.headers.get("transfer-encoding", "").lower():
        request.length = None
    else:
        length = request.headers.get("content-length", "0")
        request.length = int(length) if length.isdecimal() else 0
    return request
