"""What came back, and what the proxies say about the way there.

Values only, but for ``explain``, which asks the rig. A test asserts on their attributes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from meltemi.model.names import parse_cluster
from meltemi.testing.hops import Hop


class Explainer(Protocol):
    """Tells why an exchange went as it did."""

    def explain(self, exchange: Exchange) -> str:
        """Text for people."""
        ...

    def destination(self, hop: Hop) -> Destination:
        """Whom a proxy sent to."""
        ...


class Headers(Mapping[str, str]):
    """Header fields; names in any case, several values joined by commas."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = [(name.lower(), value) for name, value in pairs]
        self._joined: dict[str, str] = {}
        for name, value in self.pairs:
            known = self._joined.get(name)
            self._joined[name] = value if known is None else f"{known}, {value}"

    def __getitem__(self, name: str) -> str:
        return self._joined[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._joined)

    def __len__(self) -> int:
        return len(self._joined)

    def __repr__(self) -> str:
        return repr(self._joined)

    def all(self, name: str) -> list[str]:
        """Every value of a name."""
        return [value for known, value in self.pairs if known == name.lower()]


@dataclass(frozen=True, slots=True)
class Destination:
    """Whom the client's proxy sent a request to. Empty texts: nobody, or not known."""

    service: str = ""  # host name
    subset: str = ""
    port: int = 0
    workload: str = ""
    pod: str = ""
    address: str = ""
    cluster: str = ""

    def __str__(self) -> str:
        where = f"{self.service}:{self.port}" if self.service else self.cluster or "nobody"
        subset = f" subset {self.subset}" if self.subset else ""
        return where + subset + (f" ({self.pod})" if self.pod else "")


def destination_of(cluster: str) -> Destination:
    """The parts that the cluster's name tells."""
    parts = parse_cluster(cluster)
    if parts is None:
        return Destination(cluster=cluster)
    return Destination(parts.hostname, parts.subset, parts.port, cluster=cluster)


@dataclass(frozen=True, slots=True)
class Sent:
    """What a client sent."""

    client: str  # pod.namespace of the sending proxy, '' outside the mesh
    method: str
    url: str
    scheme: str
    host: str  # as in the Host header
    port: int
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    address: str = ""  # the destination's address
    sni: str = ""
    http2: bool = False
    gateway: bool = False
    proxied_for: str = ""  # the address that a PROXY protocol header states


@dataclass(eq=False)
class Exchange:
    """A request or connection, and the proxies on its way."""

    sent: Sent
    hops: tuple[Hop, ...] = ()
    explainer: Explainer | None = field(default=None, repr=False)
    failure: str = ""

    @property
    def first(self) -> Hop | None:
        """The client's own proxy, or the gateway."""
        return next((hop for hop in self.hops if hop.direction != "inbound"), None)

    @property
    def last(self) -> Hop | None:
        """The server's proxy."""
        found = [hop for hop in self.hops if hop.direction == "inbound"]
        return found[-1] if found else None

    @property
    def route(self) -> str:
        """Name of the route that the first proxy chose ('' for a route without a name)."""
        return self.first.route if self.first else ""

    @property
    def destination(self) -> Destination:
        """Whom the first proxy sent it to."""
        if self.first is None or self.explainer is None:
            return Destination()
        return self.explainer.destination(self.first)

    @property
    def peer_identity(self) -> str:
        """SPIFFE id that the client proved to the server's proxy; '' when it proved none."""
        return self.last.peer if self.last else ""

    @property
    def mtls(self) -> bool:
        """Whether the server's proxy was reached with mutual TLS."""
        return bool(self.last and self.last.tls and self.last.peer)

    @property
    def attempts(self) -> int:
        """How often the first proxy tried."""
        return self.first.attempts if self.first else 0

    @property
    def flags(self) -> str:
        """Envoy's response flags at the first proxy: UF, UH, URX, DI, FI, ...; '' when all went well."""
        return self.first.flags if self.first else ""

    def explain(self) -> str:
        """The way that it took, with the lines that decided it."""
        return self.explainer.explain(self) if self.explainer is not None else ""


@dataclass(eq=False)
class Response(Exchange):
    """An HTTP answer."""

    status: int = 0
    headers: Headers = field(default_factory=lambda: Headers([]))
    body: bytes = b""
    elapsed_s: float = 0.0
    http_version: str = "1.1"
    trailers: Headers = field(default_factory=lambda: Headers([]))
    certificate: tuple[str, ...] = ()  # names in the certificate that the server showed
    tls_version: str = ""  # as TLSv1.3; '' without TLS
    cipher: str = ""

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON. Raises ValueError with the body when it is none."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ValueError(f"{self!r} has no JSON body but {self.text[:200]!r}") from error

    @property
    def ok(self) -> bool:
        """Status below 400."""
        return 0 < self.status < 400

    @property
    def workload(self) -> str:
        """Who answered, when it was a stand-in; else the workload that the first proxy chose; '' when nobody did."""
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("workload"), str):
            return str(found["workload"])
        return self.destination.workload if self.last is not None else ""

    @property
    def path_seen(self) -> str:
        """The path that reached the application, or the last proxy."""
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if isinstance(found, dict) and isinstance(found.get("path"), str):
            return str(found["path"])
        return self.hops[-1].path if self.hops else ""

    def __repr__(self) -> str:
        parts = [f"{self.status} {self.sent.method} {self.sent.url}"]
        if self.workload:
            parts.append(f"from {self.workload}")
        if self.route:
            parts.append(f"route {self.route!r}")
        if self.flags:
            parts.append(f"flags {self.flags}")
        return f"<{', '.join(parts)}>"


class NoAnswer(ConnectionError):
    """The connection was refused, reset or closed before an answer came; ``exchange.explain()`` tells why."""

    def __init__(self, text: str, exchange: Exchange) -> None:
        super().__init__(text)
        self.exchange = exchange
