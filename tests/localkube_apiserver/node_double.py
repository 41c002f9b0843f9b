"""The node agent's side of the pod subresources, with real TLS and raw sockets.

It answers logs, and accepts upgrades by echoing every byte in upper case, which is enough to see
that bytes pass in both directions. It records each request's head and the caller's certificate.
"""

from __future__ import annotations

import socket
import ssl
import threading

from localkube.apiserver.pki import Pki


class NodeDouble:
    """Serves until closed; `heads` are the requests that came."""

    def __init__(self, pki: Pki) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.node.cert, pki.node.key)
        context.load_verify_locations(pki.ca.cert)
        context.verify_mode = ssl.CERT_REQUIRED
        self._listener = context.wrap_socket(
            socket.create_server(("127.0.0.1", 0)), server_side=True
        )
        self.port = self._listener.getsockname()[1]
        self.heads: list[str] = []
        self.callers: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: ssl.SSLSocket) -> None:
        with connection:
            certificate = connection.getpeercert() or {}
            subject = dict(pair[0] for pair in certificate["subject"])
            self.callers.append(subject["commonName"])
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(4096)
            text = head.decode()
            self.heads.append(text)
            if "/containerLogs/" in text:
                body = b"line 1\nline 2\n"
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                connection.sendall(body)
            elif "command=refuse" in text:
                body = b"container is not running"
                connection.sendall(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(body))
                connection.sendall(body)
            else:
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
                )
                while data := connection.recv(65536):
                    connection.sendall(data.upper())
                    if b"bye" in data:
                        return

    def close(self) -> None:
        self._listener.close()
