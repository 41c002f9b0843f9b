"""Sockets of the host network, for processes that live in other network namespaces.

In: requests over one inherited socketpair (its descriptor number is in the environment variable
`LOCALKUBE_HOST_SOCKETS`). Out: sockets that were created in the host's namespaces, sent as file
descriptors (SCM_RIGHTS). A socket belongs to the network namespace of the process that made it,
whoever uses it later; that is the whole trick.

Promises: any number of processes and threads may use the same descriptor at once (every request
brings its own reply channel, so answers cannot be mixed up); a listener stays open in the host
until `close`, so it survives a restart of its user and connections wait in its backlog meanwhile;
when the server dies every call fails with an OSError instead of hanging.
"""

import errno
import json
import os
import socket
import threading
from typing import Any, Final

ENVIRONMENT_VARIABLE: Final = "LOCALKUBE_HOST_SOCKETS"
_MESSAGE_BYTES: Final = 4096
_REPLY_DEADLINE: Final = 15.0  # seconds; covers a slow DNS server, bounds everything else
_BACKLOG: Final = 512

_KINDS: Final = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}


class HostSockets:
    """The client side: ask for sockets of the host's network namespace."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    @classmethod
    def from_environment(cls) -> "HostSockets | None":
        """The service this process inherited, or None when it runs in the host's namespaces."""
        text = os.environ.get(ENVIRONMENT_VARIABLE)
        if not text:
            return None
        return cls(socket.socket(fileno=os.dup(int(text))))

    def listen(
        self, address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """A socket bound to `address:port` on the host, listening if it is a stream socket.

        Asking again for an address that is already open returns the same listener. Raises OSError
        with the host's errno: EACCES (port not allowed to this user), EADDRINUSE, ...
        """
        kind_name = "stream" if kind == socket.SOCK_STREAM else "datagram"
        _, sock = self._call({"do": "listen", "address": address, "port": port, "kind": kind_name})
        return _received(sock)

    def new(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        proto: int = 0,
    ) -> socket.socket:
        """An unconnected socket of the host's network namespace."""
        _, sock = self._call(
            {"do": "new", "family": int(family), "kind": int(kind), "proto": proto}
        )
        return _received(sock)

    def close(self, address: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
        """Stop listening on `address:port`; close your own copy of the socket as well."""
        kind_name = "stream" if kind == socket.SOCK_STREAM else "datagram"
        self._call({"do": "close", "address": address, "port": port, "kind": kind_name})

    def close_all(self) -> None:
        """Stop every listener; the supervisor calls this before it restarts a node from nothing."""
        self._call({"do": "close_all"})

    def resolve(self, host: str, port: int, family: int = 0) -> list[tuple[int, str, int]]:
        """Host name -> (family, IP address, port) as the host resolves it."""
        reply, _ = self._call({"do": "resolve", "host": host, "port": port, "family": family})
        return [(int(f), str(ip), int(p)) for f, ip, p in reply["addresses"]]

    def _call(self, request: dict[str, Any]) -> tuple[dict[str, Any], socket.socket | None]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                socket.send_fds(self._channel, [json.dumps(request).encode()], [theirs.fileno()])
            ours.settimeout(_REPLY_DEADLINE)
            data, descriptors, _, _ = socket.recv_fds(ours, _MESSAGE_BYTES, 1)
        received = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if not data:
            raise OSError(errno.EPIPE, "the host socket service has ended")
        reply: dict[str, Any] = json.loads(data)
        if reply.get("errno"):
            raise OSError(reply["errno"], reply.get("message") or os.strerror(reply["errno"]))
        return reply, received[0] if received else None


def _received(sock: socket.socket | None) -> socket.socket:
    if sock is None:
        raise OSError(errno.EPROTO, "the host socket service sent no socket")
    sock.setblocking(False)
    return sock


class HostSocketServer:
    """The server side, kept by the supervisor in the host's namespaces, on its own thread."""

    def __init__(self) -> None:
        self._server, self._client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listeners: dict[tuple[str, int, str], socket.socket] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="host-sockets", daemon=True)

    @property
    def client_descriptor(self) -> int:
        """The descriptor to hand to child processes (pass_fds, and its number in the environment)."""
        return self._client.fileno()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the service and every listener it opened."""
        for sock in (self._client, self._server):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        self._client.close()
        self._server.close()
        self.close_all()

    def close_all(self) -> None:
        """Close every listener that was opened on request."""
        with self._lock:
            for sock in self._listeners.values():
                sock.close()
            self._listeners.clear()

    def _serve(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._server, _MESSAGE_BYTES, 1)
            except OSError:
                return
            if not data:
                return
            for descriptor in descriptors[:1]:
                self._answer_one(data, socket.socket(fileno=descriptor))

    def _answer_one(self, data: bytes, reply_channel: socket.socket) -> None:
        request = json.loads(data)
        if request["do"] == "resolve":
            # The only request that can block for long: it must not hold up the others.
            threading.Thread(
                target=self._reply, args=(request, reply_channel), name="resolve", daemon=True
            ).start()
        else:
            self._reply(request, reply_channel)

    def _reply(self, request: dict[str, Any], channel: socket.socket) -> None:
        sock: socket.socket | None = None
        keep = False
        reply: dict[str, Any] = {}
        try:
            reply, sock, keep = self._perform(request)
        except OSError as error:
            # getaddrinfo's error numbers are negative and not errnos
            number = error.errno if error.errno and error.errno > 0 else errno.EHOSTUNREACH
            reply = {"errno": number, "message": error.strerror or str(error)}
        try:
            socket.send_fds(channel, [json.dumps(reply).encode()], [sock.fileno()] if sock else [])
        except OSError:
            pass  # the asker is gone; nothing to tell it
        finally:
            channel.close()
            if sock is not None and not keep:
                sock.close()

    def _perform(
        self, request: dict[str, Any]
    ) -> tuple[dict[str, Any], socket.socket | None, bool]:
        """One request -> (reply, socket to send, whether the server keeps the socket)."""
        match request["do"]:
            case "new":
                return (
                    {},
                    socket.socket(request["family"], request["kind"], request["proto"]),
                    False,
                )
            case "listen":
                return (
                    {},
                    self._listener(request["address"], request["port"], request["kind"]),
                    True,
                )
            case "close":
                with self._lock:
                    key = (request["address"], request["port"], request["kind"])
                    sock = self._listeners.pop(key, None)
                if sock is not None:
                    sock.close()
                return {}, None, False
            case "close_all":
                self.close_all()
                return {}, None, False
            case "resolve":
                found = socket.getaddrinfo(
                    request["host"],
                    request["port"],
                    family=request["family"],
                    type=socket.SOCK_STREAM,
                )
                return {"addresses": [(f, a[0], a[1]) for f, _, _, _, a in found]}, None, False
        return {"errno": errno.EINVAL, "message": f"unknown request {request['do']!r}"}, None, False

    def _listener(self, address: str, port: int, kind: str) -> socket.socket:
        with self._lock:
            known = self._listeners.get((address, port, kind))
            if known is not None:
                return known
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, _KINDS[kind])
            try:
                if kind == "stream":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, port))
                if kind == "stream":
                    sock.listen(_BACKLOG)
            except OSError:
                sock.close()
                raise
            self._listeners[(address, port, kind)] = sock
            return sock
