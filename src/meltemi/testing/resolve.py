"""Where a client's connection goes: what DNS, and the kernel's capture, do in a pod.

In: a rig, the client's workload (None: a client outside the mesh), a host and a port. Out: ``Target``. Unknown hosts are
stand-ins outside the mesh; nothing is looked up in real DNS.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from meltemi.install.profiles import INGRESS_PORTS
from meltemi.model.service import Service
from meltemi.registry.offline import OfflineProxy
from meltemi.testing.rewire import PLACE_TLV
from meltemi.testing.rig import Rig

_PORTS = itertools.cycle(range(2_000, 60_000))
_DEFAULTS = {"http": 80, "ws": 80, "grpc": 80, "https": 443, "wss": 443, "grpcs": 443, "tls": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Connect to ``address``; with ``header``, state the original destination first.

    ``source`` is the client's own address as its proxy sees it ('' without a proxy).
    """

    address: tuple[str, int]
    header: bytes = b""
    destination: tuple[str, int] = ("", 0)
    source: tuple[str, int] = ("", 0)


def default_port(scheme: str) -> int:
    """The port of a URL without one; 0 when the scheme has none."""
    return _DEFAULTS.get(scheme, 0)


def find_service(rig: Rig, host: str, namespace: str) -> Service | None:
    """The service that a name means in a namespace: a short name, a longer one, or a ServiceEntry's host."""
    world = rig.control.world
    domain = world.settings.domain
    registry = world.registry.snapshot()
    host = host.rstrip(".").lower()
    candidates = (
        f"{host}.{namespace}.svc.{domain}",
        f"{host}.svc.{domain}",
        f"{host}.{domain}",
        host,
    )
    for candidate in candidates:
        found = registry.services.get(candidate, ())
        own = [service for service in found if service.namespace == namespace]
        if own or found:
            return (own or list(found))[0]
    return None


def _literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def name_address(rig: Rig, host: str, port: int, namespace: str, *, capture: bool) -> str:
    """What a resolver in the pod answers. ``capture``: DNS capture is on, so automatic addresses count."""
    if _literal(host):
        return host
    if host == "localhost":
        return "127.0.0.1"
    service = find_service(rig, host, namespace)
    if service is None:
        return _pod_address(rig, host, namespace) or rig.outside(host, port)[0]
    if service.external_name:
        return name_address(rig, service.external_name, port, namespace, capture=capture)
    single = [address for address in service.addresses if _literal(address)]
    if single:
        return single[0]
    if service.headless:
        index = rig.control.world.registry.endpoints
        found = [e.address for e in index.endpoints(service.hostname, service.namespace)]
        if found:
            return found[0]
    if capture and service.auto_allocated:
        return service.auto_allocated[0]
    return rig.outside(host, port)[0]


def _pod_address(rig: Rig, host: str, namespace: str) -> str:
    """The address of ``db-0.db``: a pod of a StatefulSet under its headless Service's name; '' for other names."""
    pod, _, rest = host.partition(".")
    service = find_service(rig, rest, namespace) if rest else None
    if service is None or not service.headless:
        return ""
    index = rig.control.world.registry.endpoints
    known = index.endpoints(service.hostname, service.namespace)
    return next((endpoint.address for endpoint in known if endpoint.hostname == pod), "")


def from_workload(rig: Rig, proxy: OfflineProxy, host: str, port: int) -> Target:
    """A connection that a pod's application makes."""
    place = rig.place(proxy.id)
    assert place is not None
    if not proxy.injected:
        return from_outside(rig, host, port, proxy.namespace)
    if host in ("localhost", "127.0.0.1"):
        return Target((place.address, rig.port(port)))
    capture = rig.captures_dns(proxy)
    address = name_address(rig, host, port, proxy.namespace, capture=capture)
    source = (place.address, next(_PORTS))
    header = _proxy_header(source, (address, port), rig.endpoint(address, port))
    if rig.hands_over(proxy.id, address, port):
        # What the first listener has read is not known to the one that the connection is handed to.
        header *= 2
    listen = rig.control.world.mesh.proxy_listen_port
    return Target((place.address, rig.port(listen)), header, (address, port), source)


def _proxy_header(
    source: tuple[str, int], stated: tuple[str, int], place: tuple[str, int]
) -> bytes:
    """A PROXY protocol header (version 2): the original destination, and where that is on this machine.

    See HAProxy's proxy-protocol.txt, section 2.2.
    """
    ours, theirs = ip_address(source[0]), ip_address(stated[0])
    addresses = ours.packed + theirs.packed
    family = 0x11
    if theirs.version == 6:
        addresses = b"\0" * 10 + b"\xff" * 2 + ours.packed + theirs.packed
        family = 0x21
    text = f"{place[0]}:{place[1]}".encode()
    rest = struct.pack("!BH", PLACE_TLV, len(text)) + text
    body = addresses + struct.pack("!HH", source[1], stated[1]) + rest
    return b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, family, len(body)) + body


def from_outside(rig: Rig, host: str, port: int, namespace: str = "default") -> Target:
    """A connection without a proxy: to a pod of the Service, as kube-proxy sends it."""
    if not _literal(host):
        service = find_service(rig, host, namespace)
        if service is not None and not service.mesh_external and not service.external_name:
            return Target(rig.first_endpoint(service, port))
        if service is not None and service.external_name:
            return from_outside(rig, service.external_name, port, namespace)
    return Target(rig.endpoint(host, port))


# The Service of an installed gateway: its ports, and its pods' behind them.
INSTALLED_PORTS = {int(entry["port"]): int(entry["targetPort"]) for entry in INGRESS_PORTS}


def to_gateway(rig: Rig, proxy: OfflineProxy, host: str, port: int) -> Target:
    """A connection from outside to a gateway: its Service's port, or the gateway's own.

    Without a Service that selects it, ports 80 and 443 lead where those of an installed gateway do, unless it listens at them itself.
    A host that is an address is the gateway's address ``host``, which only servers with this ``bind`` listen at.
    """
    place = rig.place(proxy.id)
    assert place is not None
    ir = rig.ir_of(proxy.id)
    listeners = ir.listeners if ir is not None else ()
    own = {listener.port for listener in listeners}
    number = port if port in own else INSTALLED_PORTS.get(port, port)
    for service in rig.control.world.registry.snapshot().all_services:
        selected = service.selector_labels and service.namespace == proxy.namespace
        if selected and all(proxy.labels.get(k) == v for k, v in service.selector_labels.items()):
            entry = service.port(port)
            if entry is not None:
                number = entry.target_port or port
    binds = {listener.address for listener in listeners}
    address = rig.bound(place, host) if host in binds else place.address
    return Target((address, rig.port(number)))
