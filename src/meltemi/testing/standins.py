"""Stand-ins for applications: one asyncio server that answers, at every workload's address, what it received.

In: (address, port) -> ``Who`` answers there. Out: HTTP/1.1, HTTP/2, gRPC, WebSocket, TLS and bytes, told apart by
their first bytes. Promises: an answer names the workload that gave it; what was received is kept (bounded) for assertions
such as mirroring; ``Trouble`` makes a workload fail as a test wants.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meltemi.testing.identities import Identities

RECEIVED_MAX = 20_000
SERVER_FIRST = frozenset({"mysql"})


@dataclass(frozen=True, slots=True)
class Who:
    """Which application answers at an address."""

    workload: str
    namespace: str = ""
    version: str = ""
    pod: str = ""
    service: str = ""  # the host name, for what is outside the mesh
    port: int = 0
    protocol: str = ""  # of the port, by its name


@dataclass(frozen=True, slots=True)
class Trouble:
    """How a workload fails. ``share`` of its requests, or the first ``times`` of them."""

    status: int = 0
    delay_s: float = 0.0
    reset: bool = False
    grpc_status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    share: float = 1.0
    times: int = 0


@dataclass(frozen=True, slots=True)
class Received:
    """One request, or one connection, that reached an application."""

    who: Who
    method: str = ""
    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    protocol: str = ""


class Troubles:
    """What goes wrong where."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Trouble, list[int]]] = {}
        self._random = random.Random(7)  # noqa: S311 - chance for tests, the same each time

    def set(self, workload: str, trouble: Trouble | None) -> None:
        """From now on; None ends it."""
        if trouble is None:
            self._known.pop(workload, None)
        else:
            self._known[workload] = (trouble, [0])

    def clear(self) -> None:
        """All is well again."""
        self._known.clear()

    def next(self, who: Who) -> Trouble | None:
        """What this request shall suffer."""
        for name in (f"{who.workload}.{who.namespace}", who.workload, who.pod, who.service):
            found = self._known.get(name) if name else None
            if found is None:
                continue
            trouble, count = found
            count[0] += 1
            if trouble.times and count[0] > trouble.times:
                continue
            if trouble.share < 1.0 and self._random.random() >= trouble.share:
                continue
            return trouble
        return None


class Standins:
    """All listening sockets. Lives in one event loop; methods are called there."""

    def __init__(self, identities: Identities) -> None:
        self.identities = identities
        self.troubles = Troubles()
        self.received: deque[Received] = deque(maxlen=RECEIVED_MAX)
        self._servers: dict[
            tuple[str, int], tuple[socket.socket, asyncio.Server | None, list[Who]]
        ] = {}

    def rename(self, address: str, port: int, who: Who) -> bool:
        """Change who answers; False when nothing listens there."""
        known = self._servers.get((address, port))
        if known is not None:
            known[2][0] = who
        return known is not None

    @staticmethod
    def bind(address: str, port: int) -> socket.socket:
        """A listening socket; from now on connections wait instead of being refused."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        try:
            made.bind((address, port))
            made.listen(512)
        except OSError:
            made.close()
            raise
        return made

    def reserve(self, bound: socket.socket, address: str, port: int, who: Who) -> None:
        """Connections to this bound socket are for ``who``; ``open`` answers them."""
        self._servers[address, port] = (bound, None, [who])

    async def open(self, address: str, port: int) -> None:
        """Answer."""
        bound, server, holder = self._servers[address, port]
        if server is None:
            loop = asyncio.get_running_loop()
            made = await loop.create_server(lambda: Sniffer(self, holder), sock=bound)
            self._servers[address, port] = (bound, made, holder)

    def who(self, address: str, port: int) -> Who | None:
        """Who answers there."""
        known = self._servers.get((address, port))
        return known[2][0] if known else None

    def listens(self, address: str, port: int) -> bool:
        """Whether something answers there."""
        return (address, port) in self._servers

    def close_at(self, address: str, port: int) -> None:
        """Refuse connections from now on."""
        found = self._servers.pop((address, port), None)
        if found is not None:
            if found[1] is not None:
                found[1].close()
            found[0].close()

    def leave(self, address: str) -> None:
        """Refuse connections to any port of an address: a proxy takes its place."""
        for where in [known for known in self._servers if known[0] == address]:
            self.close_at(*where)

    def close(self) -> None:
        """Stop answering."""
        for where in list(self._servers):
            self.close_at(*where)

    def note(self, received: Received) -> None:
        """Keep it for assertions."""
        self.received.append(received)


class Channel:
    """Where an application's bytes go: a transport, or TLS over one."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.tls: dict[str, Any] = {}

    @property
    def peer(self) -> str:
        """Address of the other side."""
        name = self.transport.get_extra_info("peername")
        return f"{name[0]}:{name[1]}" if name else ""

    def write(self, data: bytes) -> None:
        """Send."""
        self.transport.write(data)

    def close(self) -> None:
        """End after what was written."""
        self.transport.close()

    def reset(self) -> None:
        """End with a reset."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.transport.abort()


class Session:
    """An application protocol on one connection."""

    def __init__(self, app: Application) -> None:
        self.app = app

    def opened(self) -> None:
        """The connection is there."""

    def received(self, data: bytes) -> None:
        """Bytes came."""

    def ended(self) -> None:
        """The other side sends no more."""


@dataclass(eq=False, slots=True)
class Application:
    """One connection's view of the application that answers."""

    standins: Standins
    holder: list[Who]
    channel: Channel

    @property
    def who(self) -> Who:
        """Who answers now."""
        return self.holder[0]

    def describe(self, **more: Any) -> dict[str, Any]:
        """The answer's body."""
        who = self.who
        found = {
            "workload": who.workload,
            "version": who.version,
            "namespace": who.namespace,
            "pod": who.pod,
            "service": who.service,
            "port": who.port,
            "peer": self.channel.peer,
            **more,
        }
        if self.channel.tls:
            found["tls"] = self.channel.tls
        return found


def json_bytes(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


class Sniffer(asyncio.Protocol):
    """Finds out what a connection speaks."""

    def __init__(self, standins: Standins, holder: list[Who]) -> None:
        self._standins = standins
        self._holder = holder
        self._session: Session | None = None
        self._tls: TlsLayer | None = None
        self._app: Application | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A connection; protocols in which the server speaks first cannot be sniffed."""
        assert isinstance(transport, asyncio.Transport)
        self._app = Application(self._standins, self._holder, Channel(transport))
        if self._holder[0].protocol in SERVER_FIRST:
            self._session = Lines(self._app)
            self._session.opened()
            self._app.channel.write(json_bytes(self._app.describe(greeting=True)) + b"\n")

    def data_received(self, data: bytes) -> None:
        """Bytes of the connection."""
        if self._tls is None and self._session is None and data[:1] == b"\x16":
            assert self._app is not None
            self._tls = TlsLayer(self._app, self._standins.identities)
        if self._tls is not None:
            data = self._tls.feed(data)
            if not data:
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        if self._session is None:
            assert self._app is not None
            self._session = _session_for(data, self._app)
            self._session.opened()
        self._session.received(data)

    def eof_received(self) -> bool:
        """The other side has finished sending."""
        if self._session is not None:
            self._session.ended()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to keep."""


def _session_for(data: bytes, app: Application) -> Session:
    from meltemi.testing.standin_http import Http1

    if data.startswith(b"PRI * HTTP/2.0"[: len(data)]) and len(data) >= 4:
        from meltemi.testing.standin_h2 import Http2

        return Http2(app)
    word, space, _ = data[:16].partition(b" ")
    if space and word.isalpha() and word.isupper() and (b" HTTP/1." in data or len(data) > 1000):
        return Http1(app)
    return Lines(app)


class Lines(Session):
    """Bytes: every line is answered with one line of JSON."""

    _rest = b""

    def opened(self) -> None:
        """Note the connection."""
        self.app.standins.note(Received(self.app.who, protocol="tcp"))

    def received(self, data: bytes) -> None:
        """Answer whole lines; the last one needs no end."""
        trouble = self.app.standins.troubles.next(self.app.who)
        if trouble is not None and trouble.reset:
            self.app.channel.reset()
            return
        delay = trouble.delay_s if trouble else 0.0
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            answer = json_bytes(
                self.app.describe(received=line.decode(errors="replace"), protocol="tcp")
            )
            later(delay, functools.partial(self.app.channel.write, answer + b"\n"))


def later(delay_s: float, action: Callable[[], None]) -> None:
    """Now, or after a delay."""
    if delay_s > 0:
        asyncio.get_running_loop().call_later(delay_s, action)
    else:
        action()


class TlsLayer(Channel):
    """TLS of the application itself; takes the place of the connection's channel."""

    def __init__(self, app: Application, identities: Identities) -> None:
        super().__init__(app.channel.transport)
        self._app = app
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._open = False
        fallback = app.who.service or f"{app.who.workload}.{app.who.namespace}"
        context = identities.server_context(fallback, ("h2", "http/1.1"))
        self._object = context.wrap_bio(self._in, self._out, server_side=True)

        def by_name(wrapped: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            if name:
                self.tls["sni"] = name
                wrapped.context = identities.server_context(name, ("h2", "http/1.1"))

        context.sni_callback = by_name
        app.channel = self

    def feed(self, data: bytes) -> bytes:
        """Ciphertext in, plaintext out."""
        self._in.write(data)
        plain = []
        try:
            if not self._open:
                self._object.do_handshake()
                self._open = True
                self.tls |= {
                    "version": self._object.version(),
                    "alpn": self._object.selected_alpn_protocol() or "",
                }
                shown = self._object.getpeercert(binary_form=True)
                if shown:
                    from meltemi.testing.identities import names_of_der

                    self.tls["client"] = names_of_der(shown)
            while chunk := self._object.read(65536):
                plain.append(chunk)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError:
            self._flush()
            self.transport.close()
            return b""
        self._flush()
        return b"".join(plain)

    def _flush(self) -> None:
        if waiting := self._out.read():
            self.transport.write(waiting)

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        self._object.write(data)
        self._flush()

    def close(self) -> None:
        """Say goodbye, then end."""
        try:
            self._object.unwrap()
        except ssl.SSLError:
            pass
        self._flush()
        self.transport.close()
