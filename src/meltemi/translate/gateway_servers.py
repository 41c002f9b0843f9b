"""Gateways that select a proxy, their servers merged by the port that is really bound.

A server's port is the port of the gateway's Service; the proxy binds that Service's target port, or the port itself when
no Service has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meltemi.model.config import Config
from meltemi.model.origin import Origin
from meltemi.model.topology import Gateway, Server
from meltemi.translate.build import Build

_HTTP = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"})


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
        """Whether TLS is spoken (terminated or passed through)."""
        if self.protocol in ("HTTPS", "TLS"):
            return True
        tls = self.server.tls
        return tls is not None and not tls.https_redirect and tls.mode not in ("PASSTHROUGH",)

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
            name = self.server.port.name if self.server.port is not None else ""
            meta = self.config.meta
            return f"https.{self.number}.{name}.{meta.name}.{meta.namespace}"
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
            if build.proxy.unprivileged and port < 1024:
                if quiet:
                    continue
                build.report(
                    "MLT0103",
                    f"the gateway may not bind port {port}",
                    config.origin(f"spec.servers[{index}].port"),
                    "let the gateway's Service map the port to a target port of 1024 or more",
                )
                continue
            found.append(Bound(config, index, server, port))
    return found


def by_listener(servers: Iterable[Bound]) -> dict[tuple[str, int], list[Bound]]:
    """Servers by the address and port that they share."""
    found: dict[tuple[str, int], list[Bound]] = {}
    for server in servers:
        found.setdefault((server.bind, server.port), []).append(server)
    return found
