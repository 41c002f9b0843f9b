"""Gateways that select a proxy, their servers merged by the port that is really bound.

A server's port is the port of the gateway's Service; the proxy binds that Service's target port, or the port itself when
no Service has it. Servers of several Gateways share a port when they speak the same kind of protocol (plain HTTP, TLS,
bytes), and TLS servers when no host is given twice; the older one stays, and both are told (Istio's rules of merging).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meltemi.model.config import Config
from meltemi.model.origin import Origin
from meltemi.model.topology import Gateway, Server
from meltemi.translate.build import Build

GRPC_WEB = "GRPC-WEB"
_HTTP = frozenset({"HTTP", "HTTP2", "GRPC", GRPC_WEB, "HTTP_PROXY"})


@dataclass(frozen=True, eq=False)
class Bound:
    """One server of one Gateway, and the port that the proxy binds for it."""

    config: Config[Gateway]
    index: int
    server: Server
    port: int

    @property
    def number(self) -> int:
        """The port as the Gateway writes it."""
        return self.server.port.number if self.server.port is not None else 0

    @property
    def port_name(self) -> str:
        """The port's name."""
        return self.server.port.name if self.server.port is not None else ""

    @property
    def protocol(self) -> str:
        """The protocol, upper case."""
        return self.server.port.protocol.upper() if self.server.port is not None else ""

    @property
    def gateway(self) -> str:
        """``namespace/name``, as VirtualServices refer to it."""
        return f"{self.config.meta.namespace}/{self.config.meta.name}"

    @property
    def is_plain_http(self) -> bool:
        """HTTP without TLS."""
        return self.protocol in _HTTP and not self.is_tls

    @property
    def is_tls(self) -> bool:
        """Whether TLS is spoken (terminated or passed through): by protocol, or by settings on a port for bytes."""
        if self.protocol in ("HTTPS", "TLS"):
            return True
        tls = self.server.tls
        if tls is None or tls.https_redirect:
            return False
        return self.protocol not in _HTTP or tls.mode != "PASSTHROUGH"

    @property
    def kind(self) -> str:
        """What a port can be one of: ``HTTP``, ``TLS`` or bytes (``TCP``)."""
        if self.is_tls:
            return "TLS"
        return "HTTP" if self.is_plain_http else "TCP"

    @property
    def terminates(self) -> bool:
        """Whether the gateway itself ends the TLS."""
        tls = self.server.tls
        return tls is not None and tls.mode not in ("PASSTHROUGH", "AUTO_PASSTHROUGH")

    @property
    def is_https(self) -> bool:
        """HTTP behind TLS that is terminated here."""
        return self.is_tls and self.terminates and self.protocol in (*_HTTP, "HTTPS")

    @property
    def bind(self) -> str:
        """The address that is bound."""
        return self.server.bind or "0.0.0.0"

    @property
    def server_names(self) -> tuple[str, ...]:
        """SNI names of a TLS server; none when one of its hosts is ``*``."""
        names = tuple(dict.fromkeys(host for _, host in self.hosts))
        return () if "*" in names else names

    @property
    def stat_prefix(self) -> str:
        """What its statistics are called: by the server's name, else by address and port."""
        return self.server.name or f"outbound_{self.bind}_{self.port}"

    @property
    def hosts(self) -> tuple[tuple[str, str], ...]:
        """(namespace or '*', host) of every host."""
        found = []
        for entry in self.server.hosts:
            namespace, slash, host = entry.rpartition("/")
            if namespace == ".":
                namespace = self.config.meta.namespace
            found.append((namespace if slash and namespace else "*", host))
        return tuple(found)

    @property
    def route_name(self) -> str:
        """The route table: shared for plain HTTP on a port, one per server for HTTPS."""
        if self.is_https:
            meta = self.config.meta
            return f"https.{self.number}.{self.port_name}.{meta.name}.{meta.namespace}"
        suffix = f".{self.server.bind}" if self.server.bind else ""
        return f"http.{self.port}{suffix}"

    def origin(self) -> Origin:
        """Where the server was written."""
        return self.config.origin(f"spec.servers[{self.index}]")


def _bound_port(build: Build, number: int) -> int:
    """The target port behind a port of the gateway's own Services."""
    for target in build.proxy.targets:
        if target.port == number:
            return target.target_port
    return number


def bound_servers(build: Build, *, quiet: bool = False) -> list[Bound]:
    """The servers of all Gateways that select this class, oldest Gateway first. ``quiet``: others report what is wrong."""
    found: list[Bound] = []
    for config in build.context.gateways:
        if not build.proxy.matches(config.spec.selector):
            continue
        for index, server in enumerate(config.spec.servers):
            if server.port is None:
                continue
            port = _bound_port(build, server.port.number)
            bound = Bound(config, index, server, port)
            if not build.proxy.unprivileged or port >= 1024 or bound.bind.startswith("unix://"):
                found.append(bound)
            elif not quiet:
                build.report(
                    "MLT0103",
                    f"the gateway may not bind port {port}",
                    config.origin(f"spec.servers[{index}].port"),
                    "let the gateway's Service map the port to a target port of 1024 or more",
                )
    return found


def by_listener(servers: Iterable[Bound]) -> dict[tuple[str, int], list[Bound]]:
    """Servers by the address and port that they share."""
    found: dict[tuple[str, int], list[Bound]] = {}
    for server in servers:
        found.setdefault((server.bind, server.port), []).append(server)
    return found


def compatible(build: Build, servers: list[Bound]) -> list[Bound]:
    """Those servers of one listener that can share it; the others are reported, and so is what they clash with."""
    kept: list[Bound] = []
    owners: dict[str, Bound] = {}
    for server in servers:
        first = kept[0] if kept else server
        if server.kind != first.kind:
            _clash(
                build,
                "MLT0105",
                f"{server.gateway} wants {server.protocol} on port {server.number}, where {first.gateway} "
                f"has {first.protocol}; the older one stays",
                server,
                first,
                "use another port",
            )
            continue
        repeated = _repeated(server, owners) if server.is_tls else ()
        if repeated:
            owner = owners[repeated[0]]
            _clash(
                build,
                "MLT0104",
                f"{server.gateway} repeats {', '.join(repeated)} of {owner.gateway} on port {server.number}; "
                "the older server stays, the other is left out",
                server,
                owner,
                "give the servers different hosts, or merge them",
            )
            continue
        kept.append(server)
        for _, host in server.hosts:
            owners.setdefault(host, server)
    return kept


def _repeated(server: Bound, owners: Mapping[str, Bound]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(host for _, host in server.hosts if host in owners))


def _clash(build: Build, code: str, text: str, loser: Bound, winner: Bound, remedy: str) -> None:
    for server in (loser, winner):
        build.report(code, text, server.origin(), remedy)
