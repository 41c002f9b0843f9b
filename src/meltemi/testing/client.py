"""A test's view of one workload as a client: HTTP, gRPC, WebSocket, TLS and bytes through its real sidecar.

In: URLs as the application would use them. Out: ``Response``s and connections. Promises: a new connection per request
unless ``send`` says otherwise, so that the latest configuration holds; every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from meltemi.registry.offline import OfflineProxy
from meltemi.testing import http1
from meltemi.testing.connections import (
    TcpConnection,
    WebSocket,
    negotiated,
    open_websocket,
    peer_names,
)
from meltemi.testing.distribution import Distribution
from meltemi.testing.hops import HOP_HEADER, Hop, parse_hops
from meltemi.testing.resolve import (
    Target,
    default_port,
    from_outside,
    from_workload,
    to_gateway,
)
from meltemi.testing.response import Exchange, Explainer, Headers, NoAnswer, Response, Sent
from meltemi.testing.rig import Rig

TIMEOUT_S = 30.0
_SECURE = frozenset({"https", "wss", "grpcs", "tls"})
_HTTP2 = frozenset({"grpc", "grpcs"})


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How a client speaks TLS. ``cert``: (chain, key) in PEM. ``ca``: PEM to verify the server with, or not at all."""

    ca: str = ""
    cert: tuple[str, str] | None = None
    alpn: tuple[str, ...] = ()
    minimum: ssl.TLSVersion | None = None
    maximum: ssl.TLSVersion | None = None
    ciphers: str = ""
    curve: str = ""  # as OpenSSL calls it: prime256v1


class Client:
    """One client: a workload with its sidecar, a gateway's visitor, or something outside the mesh."""

    def __init__(
        self,
        rig: Rig,
        explainer: Explainer,
        note: Callable[[Exchange], None],
        proxy: OfflineProxy | None,
        *,
        gateway: bool = False,
    ) -> None:
        self._rig = rig
        self._explainer = explainer
        self._note = note
        self._proxy = proxy
        self._gateway = gateway

    def __repr__(self) -> str:
        who = self._proxy.id if self._proxy else "outside"
        return f"<{'gateway' if self._gateway else 'client'} {who}>"

    # --- HTTP ---------------------------------------------------------------------------------------

    def get(self, url: str, **more: Any) -> Response:
        """``request("GET", url, ...)``."""
        return self.request("GET", url, **more)

    def post(self, url: str, **more: Any) -> Response:
        """``request("POST", url, ...)``."""
        return self.request("POST", url, **more)

    def options(self, url: str, **more: Any) -> Response:
        """``request("OPTIONS", url, ...)``."""
        return self.request("OPTIONS", url, **more)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | str = b"",
        http2: bool = False,
        timeout: float = TIMEOUT_S,
        host: str = "",
        sni: str = "",
        tls: TlsOptions | None = None,
        proxied_for: str = "",
    ) -> Response:
        """One request on a connection of its own.

        ``host`` and ``sni`` replace what follows from the URL. ``proxied_for``: a PROXY protocol header states this IPv4
        address as the client's, as a load balancer in front of a gateway would. Raises NoAnswer when the connection is refused or ends
        before the answer, TimeoutError.
        """
        sent = self._describe(
            method, url, headers or {}, http2=http2, host=host, sni=sni, proxied_for=proxied_for
        )
        started = time.monotonic()
        with self._connected(sent, timeout, tls) as (connection, target):
            answer = self._exchange(connection, target, sent, _bytes(body))
            names, version, cipher = peer_names(connection), *negotiated(connection)
        response = self._response(sent, answer, time.monotonic() - started)
        response.certificate, response.tls_version, response.cipher = names, version, cipher
        if target.source[1] and response.first is None:
            # Its own proxy saw bytes, not HTTP: what it did is in its log of the connection, which ended just now.
            alone = response.last is None
            seen = self._rig.tcp_logs.hops(
                target.source, self._rig.is_last if alone else lambda hop: True
            )
            response.hops = (*seen, *response.hops)
        self._note(response)
        return response

    def send(
        self,
        url: str,
        n: int = 1000,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | str = b"",
        concurrency: int = 1,
        new_connections: bool = False,
        timeout: float = TIMEOUT_S,
        host: str = "",
        vary: Callable[[int], Mapping[str, str]] | None = None,
    ) -> Distribution:
        """``n`` requests, over ``concurrency`` connections at a time; each is reused unless ``new_connections``.

        ``vary(i)`` gives further headers for request ``i``.
        """
        result = Distribution(url)
        sent = self._describe(method, url, headers or {}, host=host)
        content = _bytes(body)

        def run(numbers: range) -> list[Response]:
            return self._series(sent, numbers, content, new_connections, timeout, vary)

        if concurrency <= 1:
            result.responses = run(range(n))
        else:
            parts = [range(start, n, concurrency) for start in range(concurrency)]
            with ThreadPoolExecutor(concurrency) as pool:
                for found in pool.map(run, parts):
                    result.responses += found
        for response in result.responses[-3:]:
            self._note(response)
        return result

    def _series(
        self,
        sent: Sent,
        numbers: range,
        body: bytes,
        new_connections: bool,
        timeout: float,
        vary: Callable[[int], Mapping[str, str]] | None,
    ) -> list[Response]:
        found: list[Response] = []
        connection: socket.socket | None = None
        target = Target(("", 0))
        try:
            for number in numbers:
                if connection is None:
                    connection, target = self._connect(sent, timeout, None)
                each = _with_headers(sent, vary(number)) if vary is not None else sent
                started = time.monotonic()
                answer = self._exchange(connection, target, each, body)
                found.append(self._response(each, answer, time.monotonic() - started))
                if new_connections or not answer.reusable:
                    connection.close()
                    connection = None
        finally:
            if connection is not None:
                connection.close()
        return found

    def grpc(
        self,
        url: str,
        message: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
        tls: TlsOptions | None = None,
    ) -> Response:
        """A unary call: ``grpc://service:port/package.Service/Method``. ``.grpc_status`` is in the trailers or headers."""
        from meltemi.testing.http2 import grpc_frame

        fields = {"content-type": "application/grpc", "te": "trailers", **(headers or {})}
        return self.request(
            "POST",
            url,
            headers=fields,
            body=grpc_frame(message),
            http2=True,
            timeout=timeout,
            tls=tls,
        )

    # --- connections --------------------------------------------------------------------------------

    def tcp(self, url: str, *, timeout: float = TIMEOUT_S, proxied_for: str = "") -> TcpConnection:
        """A connection to ``host:port`` (or ``tcp://host:port``). Use it in a ``with`` block. ``proxied_for``: see ``request``."""
        where = url if "://" in url else f"tcp://{url}"
        sent = self._describe("TCP", where, {}, proxied_for=proxied_for)
        connection, target = self._connect(sent, timeout, None)
        return TcpConnection(connection, self._tcp_exchange(sent, target))

    def tls(
        self, url: str, *, sni: str = "", timeout: float = TIMEOUT_S, tls: TlsOptions | None = None
    ) -> TcpConnection:
        """A TLS connection of the application itself, to ``host:port``."""
        sent = self._describe("TLS", url if "://" in url else f"tls://{url}", {}, sni=sni)
        connection, target = self._connect(sent, timeout, tls)
        return TcpConnection(connection, self._tcp_exchange(sent, target))

    def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT_S
    ) -> WebSocket:
        """A WebSocket to ``ws://host:port/path``."""
        sent = self._describe("GET", url, headers or {})
        connection, target = self._connect(sent, timeout, None)
        try:
            opened, answer = open_websocket(connection, sent.path, sent.host, sent.headers)
        except http1.Broken as error:
            connection.close()
            raise self._no_answer(sent, target, error) from error
        exchange = self._response(sent, answer, 0.0)
        self._note(exchange)
        opened.response = exchange
        return opened

    @contextlib.contextmanager
    def forward(self, host: str, port: int) -> Iterator[tuple[str, int]]:
        """An address of this machine whose connections go to ``host:port`` as this workload's do: for any client library."""
        sent = self._describe("TCP", f"tcp://{host}:{port}", {})
        with self._rig.forwarder(lambda: self._target(sent)) as address:
            yield address

    # --- how ----------------------------------------------------------------------------------------

    def _describe(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        http2: bool = False,
        host: str = "",
        sni: str = "",
        proxied_for: str = "",
    ) -> Sent:
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"{url!r} names no host; write it as http://reviews:9080/path")
        port = parts.port or default_port(parts.scheme)
        if not port:
            raise ValueError(f"{url!r} names no port")
        named = {name.lower(): value for name, value in headers.items()}
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Sent(
            client=self._proxy.id if self._proxy is not None else "",
            method=method,
            url=url,
            scheme=parts.scheme,
            host=host or named.get("host") or parts.netloc.rpartition("@")[2],
            port=port,
            path=path,
            headers=dict(headers),
            sni=sni or (parts.hostname if parts.scheme in _SECURE else ""),
            http2=http2 or parts.scheme in _HTTP2,
            gateway=self._gateway,
            proxied_for=proxied_for,
        )

    def _target(self, sent: Sent) -> Target:
        host = urlsplit(sent.url).hostname or ""
        if self._proxy is None:
            return from_outside(self._rig, host, sent.port)
        if self._gateway:
            return to_gateway(self._rig, self._proxy, host, sent.port)
        return from_workload(self._rig, self._proxy, host, sent.port)

    def _connect(
        self, sent: Sent, timeout: float, tls: TlsOptions | None
    ) -> tuple[socket.socket, Target]:
        # In the rig's own thread: to resolve a name may mean to begin answering for it.
        target = self._rig.on_loop(lambda: self._target(sent))
        try:
            connection = socket.create_connection(target.address, timeout)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if target.header:
                connection.sendall(target.header)
            if sent.proxied_for:
                connection.sendall(_proxy_header(sent, target))
            if sent.scheme in _SECURE:
                connection = secure(connection, sent, tls or TlsOptions())
        except TimeoutError:
            raise
        except OSError as error:
            raise self._no_answer(sent, target, error) from error
        return connection, target

    @contextlib.contextmanager
    def _connected(
        self, sent: Sent, timeout: float, tls: TlsOptions | None
    ) -> Iterator[tuple[socket.socket, Target]]:
        connection, target = self._connect(sent, timeout, tls)
        with connection:
            yield connection, target

    def _exchange(
        self, connection: socket.socket, target: Target, sent: Sent, body: bytes
    ) -> http1.Answer:
        try:
            if sent.http2 or _negotiated(connection) == "h2":
                from meltemi.testing import http2

                scheme = "https" if sent.scheme in _SECURE else "http"
                return http2.exchange(
                    connection, sent.method, scheme, sent.path, sent.host, sent.headers, body
                )
            return http1.exchange(connection, sent.method, sent.path, sent.host, sent.headers, body)
        except http1.Broken as error:
            raise self._no_answer(sent, target, error) from error

    def _response(self, sent: Sent, answer: http1.Answer, elapsed_s: float) -> Response:
        hops = [value for name, value in answer.headers if name.lower() == HOP_HEADER]
        kept = [(name, value) for name, value in answer.headers if name.lower() != HOP_HEADER]
        return Response(
            sent,
            parse_hops(hops),
            self._explainer,
            status=answer.status,
            headers=Headers(kept),
            body=answer.body,
            elapsed_s=elapsed_s,
            http_version=answer.version,
            trailers=Headers(answer.trailers),
        )

    def _no_answer(self, sent: Sent, target: Target, error: OSError) -> NoAnswer:
        exchange = self._tcp_exchange(sent, target)(0.3)
        exchange.failure = str(error) or type(error).__name__
        return NoAnswer(f"{sent.method} {sent.url}: {exchange.failure}", exchange)

    def _tcp_exchange(self, sent: Sent, target: Target) -> Callable[[float], Exchange]:
        """A function that waits for what the proxies log of the connection."""

        def find(deadline_s: float) -> Exchange:
            hops: tuple[Hop, ...] = ()
            if target.source[1]:
                hops = self._rig.tcp_logs.hops(
                    target.source, self._rig.is_last, deadline_s=deadline_s
                )
            exchange = Exchange(sent, hops, self._explainer)
            self._note(exchange)
            return exchange

        return find


def secure(connection: socket.socket, sent: Sent, options: TlsOptions) -> ssl.SSLSocket:
    """TLS on a connection."""
    import tempfile

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if options.ca:
        context.load_verify_locations(cadata=options.ca)
        context.check_hostname = True
        context.verify_mode = ssl.CERT_REQUIRED
    if options.cert is not None:
        # The ssl module reads a client's certificate from a file only; this one is this user's alone.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write("\n".join(options.cert))
            file.flush()
            context.load_cert_chain(file.name)
    if options.minimum is not None:
        context.minimum_version = options.minimum
    if options.maximum is not None:
        context.maximum_version = options.maximum
    if options.ciphers:
        context.set_ciphers(options.ciphers)
    if options.curve:
        context.set_ecdh_curve(options.curve)
    alpn = options.alpn or (("h2",) if sent.http2 else ("http/1.1",))
    if sent.scheme != "tls" or options.alpn:
        context.set_alpn_protocols(list(alpn))
    return context.wrap_socket(connection, server_hostname=sent.sni or None)


def _proxy_header(sent: Sent, target: Target) -> bytes:
    address, port = target.address
    return f"PROXY TCP4 {sent.proxied_for} {address} 40000 {port}\r\n".encode()


def _negotiated(connection: socket.socket) -> str:
    if isinstance(connection, ssl.SSLSocket):
        return connection.selected_alpn_protocol() or ""
    return ""


def _bytes(body: bytes | str) -> bytes:
    return body.encode() if isinstance(body, str) else body


def _with_headers(sent: Sent, more: Mapping[str, str]) -> Sent:
    from dataclasses import replace

    return replace(sent, headers={**sent.headers, **more})
