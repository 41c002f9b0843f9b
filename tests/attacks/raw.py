"""An application that keeps every byte it is sent, and a client that sends any byte.

What reaches the application is what matters about request smuggling: ``is_canonical`` says whether an application could read
anything else into it than the proxy did.
"""

from __future__ import annotations

import re
import socket
import socketserver
import threading

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_HEAD = re.compile(rb"[A-Z]+ [!-~]+ HTTP/1\.1\r\n(?:[!-9;-~]+: ?[^\r\n\0]*\r\n)+\Z")


class RawApp:
    """Answers 200 to every head that it sees. ``received`` is all of it."""

    def __init__(self, port: int, address: str = "127.0.0.1") -> None:
        outer = self
        self.received = b""

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                waiting = b""
                while piece := self.request.recv(65536):
                    outer.received += piece
                    waiting += piece
                    while b"\r\n\r\n" in waiting:
                        waiting = waiting.partition(b"\r\n\r\n")[2]
                        self.request.sendall(_ANSWER)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A proxy that goes away is part of the tests."""

        self._server = Server((address, port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def is_canonical(received: bytes) -> bool:
    """Messages of one reading: CRLF alone ends lines, and a length is given once and in one way. The last may be cut off."""
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        head += b"\r\n"
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:-1]]
        lengths = names.count(b"content-length") + names.count(b"transfer-encoding")
        if not end or not _HEAD.match(head) or lengths > 1 or names.count(b"host") != 1:
            return False
        if b"content-length" in names:
            given = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head)
            if given is None:
                return False
            rest = rest[int(given[1]) :]
        elif b"transfer-encoding" in names:
            rest = rest.partition(b"0\r\n\r\n")[2]
        received = rest
    return True


def talk(address: str, port: int, data: bytes, source: str = "", quiet_s: float = 0.3) -> bytes:
    """Send and read until the connection ends or is quiet."""
    with socket.create_connection((address, port), 10, (source, 0)) as connection:
        heard = b""
        try:
            connection.sendall(data)
            while piece := _next(connection, heard, quiet_s):
                heard += piece
        except ConnectionError:
            pass
        return heard


def _next(connection: socket.socket, heard: bytes, quiet_s: float) -> bytes:
    """More bytes. The first answer may take its time on a busy machine; after it, silence is the end."""
    connection.settimeout(quiet_s if heard else 10)
    try:
        return connection.recv(65536)
    except TimeoutError:
        return b""


def statuses(heard: bytes) -> list[int]:
    """Of all answers on a connection."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard)]
