"""A pretend request, and what would become of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meltemi.ir.route import Route, WeightedCluster
from meltemi.model.origin import Origin


@dataclass(frozen=True, slots=True)
class Request:
    """What a client would send.

    ``address`` and ``port`` are where it connects to. ``host`` '' makes it a TCP connection. ``sni`` non-empty makes it
    TLS; ``alpn`` is what the client offers then. ``inbound`` asks the server's side. Header names are lower case.
    """

    port: int
    host: str = ""
    path: str = "/"
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    address: str = "0.0.0.0"
    sni: str = ""
    alpn: tuple[str, ...] = ()
    tls: bool = False
    http2: bool = False
    inbound: bool = False
    scheme: str = "http"


@dataclass(frozen=True, slots=True)
class Step:
    """One decision. ``kind``: listener, chain, route table, virtual host, route, action, cluster."""

    kind: str
    name: str
    why: str
    origins: tuple[Origin, ...] = ()

    def __str__(self) -> str:
        """Render for people, with the lines that caused it."""
        tail = "".join(f"\n      from {origin}" for origin in self.origins)
        return f"{self.kind}: {self.name or '(unnamed)'} - {self.why}{tail}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The steps in order, and the end: clusters with weights, or a status, or a refusal ('')."""

    steps: tuple[Step, ...]
    clusters: tuple[WeightedCluster, ...] = ()
    status: int = 0
    location: str = ""
    route: Route | None = None
    missing: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """The end in a few words."""
        if self.clusters:
            return ", ".join(
                f"{target.cluster} ({target.weight})" if len(self.clusters) > 1 else target.cluster
                for target in self.clusters
            )
        return f"{self.status} {self.location}".strip() if self.status else "connection closed"

    def step(self, kind: str) -> Step | None:
        """The first step of a kind."""
        return next((entry for entry in self.steps if entry.kind == kind), None)

    def __str__(self) -> str:
        """Render for people."""
        lines = [f"  {number}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join((*lines, f"  => {self.outcome}"))
