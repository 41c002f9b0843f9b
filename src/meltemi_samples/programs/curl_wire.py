"""How our curl speaks: connections, TLS, HTTP/1.1 by h11 and HTTP/2 by h2.

What goes wrong is a ``Failure`` with curl's exit code and a text like curl's.
"""

from __future__ import annotations

import os
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import SplitResult

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h11

if TYPE_CHECKING:
    from meltemi_samples.programs.curl_flags import Flags

CONNECT_TIMEOUT_S = 300.0
BLOCK = 1 << 16
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Failure(Exception):
    """The end of a transfer, with curl's exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Head:
    """Status line and headers of an answer."""

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str:
        """A header's first value, or nothing."""
        return next((value for known, value in self.headers if known.lower() == name), "")


@dataclass
class Request:
    """What is asked for."""

    method: str
    target: SplitResult
    headers: list[tuple[str, str]]
    body: bytes | None

    @property
    def path(self) -> str:
        """Path and query."""
        query = f"?{self.target.query}" if self.target.query else ""
        return (self.target.path or "/") + query


Begin = Callable[[Head], None]
Data = Callable[[bytes], None]
Note = Callable[[str, str], None]


def connect(place: tuple[str, int], flags: Flags, deadline: float | None) -> socket.socket:
    """A TCP connection that gives up at the deadline."""
    host, port = place
    family = {"4": socket.AF_INET, "6": socket.AF_INET6}.get(flags.family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
    except OSError as error:
        raise Failure(6, f"Could not resolve host: {host}") from error
    limit = flags.connect_timeout or CONNECT_TIMEOUT_S
    last: OSError | None = None
    for kind, _, _, _, address in found:
        connection = socket.socket(kind, socket.SOCK_STREAM)
        connection.settimeout(min(limit, _left(deadline)))
        try:
            connection.connect(address)
        except OSError as error:
            connection.close()
            last = error
            continue
        connection.settimeout(_left(deadline) if deadline else None)
        return connection
    if isinstance(last, TimeoutError):
        raise Failure(28, "Connection timed out") from last
    why = last.strerror if last else "no address"
    raise Failure(7, f"Failed to connect to {host} port {port}: {why}")


def _left(deadline: float | None) -> float:
    if deadline is None:
        return CONNECT_TIMEOUT_S
    return max(0.001, deadline - time.monotonic())


def secure(connection: socket.socket, host: str, flags: Flags) -> ssl.SSLSocket:
    """TLS as a client, checking the server's certificate unless ``-k`` says not to."""
    context = ssl.create_default_context()
    try:
        if flags.cacert:
            context = ssl.create_default_context(cafile=flags.cacert)
        if flags.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if flags.cert:
            context.load_cert_chain(flags.cert, flags.key or None)
    except (OSError, ssl.SSLError) as error:
        connection.close()
        which = 58 if flags.cert else 77
        raise Failure(which, f"could not use the given certificate files: {error}") from error
    if flags.min_tls:
        context.minimum_version = _VERSIONS[flags.min_tls]
    if flags.max_tls in _VERSIONS:
        context.maximum_version = _VERSIONS[flags.max_tls]
    context.set_alpn_protocols(["http/1.1"] if flags.http1 else ["h2", "http/1.1"])
    try:
        return context.wrap_socket(connection, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise Failure(60, f"SSL certificate problem: {error.verify_message}") from error
    except TimeoutError as error:
        connection.close()
        raise Failure(28, "SSL connection timeout") from error
    except OSError as error:
        connection.close()
        raise Failure(35, f"TLS connect error: {error}") from error


def describe_tls(connection: socket.socket) -> list[str]:
    """What ``-v`` tells about a TLS connection."""
    assert isinstance(connection, ssl.SSLSocket)
    version, cipher = connection.version(), connection.cipher()
    lines = [f"SSL connection using {version} / {cipher[0] if cipher else '?'}"]
    lines.append(f"ALPN: server accepted {connection.selected_alpn_protocol() or 'nothing'}")
    certificate = connection.getpeercert()
    if certificate:
        names = ", ".join(f"{kind}:{name}" for kind, name in certificate.get("subjectAltName", ()))
        lines += [f"Server certificate: {names}", "SSL certificate verify ok."]
    return lines


def speaks_http2(connection: socket.socket, flags: Flags) -> bool:
    """Whether the two sides agreed on HTTP/2, or the user said so."""
    if isinstance(connection, ssl.SSLSocket):
        return connection.selected_alpn_protocol() == "h2"
    return flags.prior_knowledge


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(BLOCK)
    except TimeoutError as error:
        raise Failure(28, "Operation timed out") from error
    except OSError as error:
        text = "Connection reset by peer" if isinstance(error, ConnectionError) else str(error)
        raise Failure(56, f"Recv failure: {text}") from error


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.sendall(data)
    except TimeoutError as error:
        raise Failure(28, "Operation timed out") from error
    except ConnectionError:
        return  # the answer, if the server gave one before it closed, is worth more


def http1(
    connection: socket.socket, request: Request, begin: Begin, data: Data, note: Note
) -> Head:
    """One exchange of HTTP/1.1."""
    session = h11.Connection(h11.CLIENT)
    note(">", f"{request.method} {request.path} HTTP/1.1")
    for name, value in request.headers:
        note(">", f"{name}: {value}")
    try:
        lines = session.send(
            h11.Request(method=request.method, target=request.path, headers=request.headers)
        )
        _send(connection, lines or b"")
        if request.body:
            _send(connection, session.send(h11.Data(data=request.body)) or b"")
        _send(connection, session.send(h11.EndOfMessage()) or b"")
    except h11.LocalProtocolError as error:
        raise Failure(3, f"the request cannot be sent: {error}") from error
    head: Head | None = None
    while True:
        try:
            event = session.next_event()
        except h11.RemoteProtocolError as error:
            if head is None and session.their_state is h11.ERROR and not session.trailing_data[0]:
                raise Failure(52, "Empty reply from server") from error
            raise Failure(18 if head else 1, f"transfer closed early: {error}") from error
        if event is h11.NEED_DATA:
            session.receive_data(_receive(connection))
        elif isinstance(event, h11.InformationalResponse):
            continue
        elif isinstance(event, h11.Response):
            headers = [(n.decode(), v.decode("latin-1")) for n, v in event.headers.raw_items()]
            head = Head(
                event.http_version.decode(), event.status_code, event.reason.decode(), headers
            )
            begin(head)
        elif isinstance(event, h11.Data):
            data(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and head:
            return head
        else:
            raise Failure(52, "Empty reply from server")


_CONNECTION_HEADERS = {"host", "connection", "keep-alive", "transfer-encoding", "upgrade"}


def http2(
    connection: socket.socket, request: Request, begin: Begin, data: Data, note: Note
) -> Head:
    """One exchange of HTTP/2."""
    session = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    session.initiate_connection()
    host = next((value for name, value in request.headers if name.lower() == "host"), "")
    lines = [(":method", request.method), (":scheme", request.target.scheme),
             (":authority", host), (":path", request.path)]  # fmt: skip
    lines += [(n.lower(), v) for n, v in request.headers if n.lower() not in _CONNECTION_HEADERS]
    note(">", f"{request.method} {request.path} HTTP/2")
    for name, value in lines:
        note(">", f"{name}: {value}")
    stream = session.get_next_available_stream_id()
    session.send_headers(stream, lines, end_stream=not request.body)
    rest = request.body or b""
    head: Head | None = None
    while True:
        while rest and (
            room := min(session.local_flow_control_window(stream), session.max_outbound_frame_size)
        ):
            session.send_data(stream, rest[:room], end_stream=len(rest) <= room)
            rest = rest[room:]
        _send(connection, session.data_to_send())
        received = _receive(connection)
        if not received:
            raise Failure(18 if head else 52, "Empty reply from server")
        try:
            events = session.receive_data(received)
        except h2.exceptions.ProtocolError as error:
            raise Failure(16, f"Error in the HTTP2 framing layer: {error}") from error
        for event in events:
            if isinstance(event, h2.events.ResponseReceived):
                fields = [(str(n), str(v)) for n, v in event.headers]
                status = next(value for name, value in fields if name == ":status")
                head = Head("2", int(status), "", [f for f in fields if f[0][0] != ":"])
                begin(head)
            elif isinstance(event, h2.events.DataReceived):
                data(event.data)
                session.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded) and head:
                return head
            elif isinstance(event, h2.events.StreamReset):
                raise Failure(
                    92, f"HTTP/2 stream {stream} was not closed cleanly: {event.error_code}"
                )
            elif isinstance(event, h2.events.ConnectionTerminated):
                raise Failure(16, "Error in the HTTP2 framing layer")


def telnet(connection: socket.socket, source: BinaryIO, sink: BinaryIO) -> None:
    """``telnet://``: standard input to the server, what it sends to the output, until it ends."""
    with selectors.DefaultSelector() as ready:
        ready.register(connection, selectors.EVENT_READ)
        try:
            ready.register(source, selectors.EVENT_READ)
        except PermissionError:  # a file: always readable
            _send(connection, source.read())
        while True:
            for key, _ in ready.select():
                if key.fileobj is source:
                    text = os.read(source.fileno(), BLOCK)
                    if not text:
                        ready.unregister(source)
                        connection.shutdown(socket.SHUT_WR)
                    _send(connection, text)
                    continue
                received = _receive(connection)
                if not received:
                    return
                sink.write(received)
                sink.flush()
