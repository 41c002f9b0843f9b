"""A server outside the mesh that shows one certificate whatever it is asked for, and keeps what it was told."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

from meltemi.testing.identities import names_of_der
from pki import Authority


class FarServer:
    """Answers HTTP/1.1 requests, or lines, over TLS (or without) with what it saw, as JSON."""

    def __init__(
        self,
        folder: Path,
        certificate: tuple[bytes, bytes] | None,
        clients: Authority | None = None,
        revoked: bytes = b"",
    ) -> None:
        self._context = None
        if certificate is not None:
            file = folder / "server.pem"
            file.write_bytes(b"\n".join(certificate))
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(file)
            self._context.set_alpn_protocols(["http/1.1"])
            self._context.sni_callback = self._note_sni
            if clients is not None:
                self._context.load_verify_locations(cadata=clients.root.decode())
                self._context.verify_mode = ssl.CERT_REQUIRED
        self._sni: dict[int, str] = {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _note_sni(self, secure: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        self._sni[id(secure)] = name or ""

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(20)
        seen: dict[str, Any] = {"workload": "far"}
        try:
            seen["proxy"] = self._proxy_header(raw)
            connection = raw
            if self._context is not None:
                connection = self._context.wrap_socket(raw, server_side=True)
                shown = connection.getpeercert(binary_form=True)
                seen["client"] = names_of_der(shown) if shown else []
                seen["sni"] = self._sni.pop(id(connection), "")
                seen["alpn"] = connection.selected_alpn_protocol() or ""
            with connection:
                while self._answer(connection, seen):
                    pass
        except OSError:
            raw.close()

    @staticmethod
    def _proxy_header(raw: socket.socket) -> str:
        """The PROXY protocol header in front of a connection, '' when there is none."""
        start = raw.recv(12, socket.MSG_PEEK)
        if start.startswith(b"PROXY "):
            head = b""
            while not head.endswith(b"\r\n"):
                head += raw.recv(1)
            return head.decode().strip()
        if start == b"\r\n\r\n\x00\r\nQUIT\n":
            head = raw.recv(16, socket.MSG_WAITALL)
            rest = raw.recv(int.from_bytes(head[14:16]), socket.MSG_WAITALL)
            return f"v2 {socket.inet_ntoa(rest[:4])}"
        return ""

    @staticmethod
    def _answer(connection: socket.socket, seen: dict[str, Any]) -> bool:
        data = connection.recv(65536)
        if not data:
            return False
        word = data.split(b" ", 1)[0]
        if word == b"CONNECT" or (data.startswith(b"POST ") and b"hello" not in data):
            seen["tunnel"] = data.split(b"\r\n", 1)[0].decode()
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            return True
        body = json.dumps(seen).encode()
        if b" HTTP/1.1\r\n" in data:
            head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body)
        else:
            connection.sendall(body + b"\n")
        return True

    def close(self) -> None:
        """Refuse from now on."""
        self._socket.close()
