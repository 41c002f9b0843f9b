"""The outbound side by egress listener of a Sidecar: which services each offers, on which port and address.

A listener with a port takes that port for itself; the last one may be without, and offers everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meltemi.model.service import Port, Protocol, Service
from meltemi.model.topology import IstioEgressListener
from meltemi.registry.protocol import parse_protocol
from meltemi.translate.build import Build
from meltemi.translate.scope import Scope, egress_scope

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, eq=False)
class View:
    """Part of the outbound side. ``port`` 0 is every port but ``taken``.

    ``address`` is where its listeners are bound; empty: each at its service's own address, reached by capture.
    """

    build: Build
    port: int = 0
    address: str = ""
    bound: bool = False
    taken: frozenset[int] = frozenset()

    def table(self, number: int) -> str:
        """The name of a route table."""
        if self.address.startswith("unix://"):
            return self.address
        return f"{self.address}_{number}" if self.address else str(number)


def egress_views(build: Build) -> list[View]:
    """One view per egress listener; a single one without a Sidecar, or with one that does not restrict."""
    sidecar = build.scope.sidecar
    direct = build.proxy.interception == "NONE"
    address = LOOPBACK if direct else ""
    if sidecar is None or not sidecar.spec.egress:
        return [View(build, address=address, bound=direct)]
    taken = frozenset(
        entry.port.number
        for entry in sidecar.spec.egress
        if entry.port is not None and entry.port.number
    )
    views = []
    for index, entry in enumerate(sidecar.spec.egress):
        scope = egress_scope(build.context, build.proxy, index)
        bound = direct or entry.capture_mode == "NONE" or entry.bind.startswith("unix:")
        address = entry.bind or (LOOPBACK if bound else "")
        if entry.port is None:
            views.append(
                View(replace(build, scope=scope), address=address, bound=bound, taken=taken)
            )
            continue
        views.append(
            View(
                replace(build, scope=_on_port(scope, entry)),
                port=entry.port.number,
                address=address,
                bound=bound,
            )
        )
    return views


def _on_port(scope: Scope, listener: IstioEgressListener) -> Scope:
    """The services as one listener offers them: at its port, with its protocol.

    A Unix socket and an HTTP proxy port have no number in common with services: there each service shows its first
    HTTP port (or its first one).
    """
    spec = listener.port
    if spec is None:
        return scope
    protocol = parse_protocol(spec.protocol) if spec.protocol else None
    anywhere = not spec.number or protocol is Protocol.HTTP_PROXY
    found: dict[str, Service] = {}
    for service in scope.services:
        port = _representative(service, protocol) if anywhere else service.port(spec.number)
        if port is None:
            continue
        spoken = protocol if protocol is not None else port.protocol
        found[service.hostname] = replace(service, ports=(replace(port, protocol=spoken),))
    return replace(scope, services=tuple(found.values()), by_host=scope.by_host)


def _representative(service: Service, protocol: Protocol | None) -> Port | None:
    wants_http = protocol is None or protocol.is_http
    first = next((p for p in service.ports if p.protocol.is_http == wants_http), None)
    return first if first is not None else next(iter(service.ports), None)
