"""Connections that stay open: bytes and WebSocket, blocking, with the deadline of their socket."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from meltemi.testing import http1
from meltemi.testing.identities import names_of_der
from meltemi.testing.response import Exchange, Response
from meltemi.testing.websocket import CLOSE, PING, PONG, TEXT, Frames, frame


def peer_names(connection: socket.socket) -> tuple[str, ...]:
    """Names in the certificate that a server showed."""
    if not isinstance(connection, ssl.SSLSocket):
        return ()
    shown = connection.getpeercert(binary_form=True)
    return tuple(names_of_der(shown)) if shown else ()


def negotiated(connection: socket.socket) -> tuple[str, str]:
    """(TLS version, cipher) of a connection; empty without TLS."""
    if not isinstance(connection, ssl.SSLSocket):
        return "", ""
    chosen = connection.cipher()
    return connection.version() or "", chosen[0] if chosen else ""


class TcpConnection:
    """Bytes to and from a server."""

    def __init__(self, connection: socket.socket, find: Callable[[float], Exchange]) -> None:
        self.socket = connection
        self.certificate = peer_names(connection)
        self._find = find
        self._rest = b""
        self._exchange: Exchange | None = None

    def __enter__(self) -> TcpConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Send."""
        self.socket.sendall(data)

    def read_line(self) -> bytes:
        """One line; what came before the end when the server closes."""
        while b"\n" not in self._rest:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                line, self._rest = self._rest, b""
                return line
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line + b"\n"

    def ask(self, text: str) -> Any:
        """Send one line; the stand-in's JSON answer, or None when the connection was closed instead."""
        try:
            self.write(text.encode() + b"\n")
        except ConnectionError:
            return None
        line = self.read_line()
        return json.loads(line) if line else None

    @property
    def exchange(self) -> Exchange:
        """What the proxies logged; asked for once."""
        if self._exchange is None:
            self._exchange = self._find(5.0)
        return self._exchange

    @property
    def mtls(self) -> bool:
        """Whether the server's proxy was reached with mutual TLS."""
        return self.exchange.mtls

    @property
    def peer_identity(self) -> str:
        """SPIFFE id that the client proved to the server's proxy."""
        return self.exchange.peer_identity

    @property
    def destination(self) -> Any:
        """Whom the client's proxy sent the connection to."""
        return self.exchange.destination

    def close(self) -> None:
        """End it."""
        self.socket.close()


class WebSocket:
    """Messages to and from a server."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._frames = Frames()
        self._waiting: list[tuple[int, bytes]] = []
        self.response: Response | None = None

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, text: str) -> None:
        """One text message."""
        self._socket.sendall(frame(text.encode(), TEXT, os.urandom(4)))

    def receive(self) -> str:
        """One message. Raises ConnectionError when the server has closed."""
        while True:
            while self._waiting:
                opcode, payload = self._waiting.pop(0)
                if opcode == CLOSE:
                    raise ConnectionError("the server closed the WebSocket")
                if opcode == PING:
                    self._socket.sendall(frame(payload, PONG, os.urandom(4)))
                elif opcode != PONG:
                    return payload.decode()
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the connection was closed")
            self._waiting += self._frames.feed(data)

    def ask(self, text: str) -> Any:
        """Send a message; the stand-in's JSON answer."""
        self.send(text)
        return json.loads(self.receive())

    def close(self) -> None:
        """End it."""
        try:
            self._socket.sendall(frame(b"\x03\xe8", CLOSE, os.urandom(4)))
        except OSError:
            pass
        self._socket.close()


def open_websocket(
    connection: socket.socket, path: str, host: str, headers: Mapping[str, str]
) -> tuple[WebSocket, http1.Answer]:
    """The handshake. Raises ``http1.Broken`` when the answer is not 101."""
    fields = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(),
        "sec-websocket-version": "13",
        **headers,
    }
    try:
        connection.sendall(http1.encode_request("GET", path, host, fields, b""))
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                raise http1.Broken("the connection was closed during the handshake")
            data += more
    except TimeoutError:
        raise
    except OSError as error:
        raise error if isinstance(error, http1.Broken) else http1.Broken(str(error)) from error
    head, _, rest = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split(" ", 2)[1])
    pairs = [
        (name.strip(), value.strip()) for name, _, value in (ln.partition(":") for ln in lines)
    ]
    if status != 101:
        raise http1.Broken(f"the WebSocket was refused with status {status}")
    opened = WebSocket(connection)
    opened._waiting = opened._frames.feed(rest)
    return opened, http1.Answer(status, pairs, b"")
