"""LoadBalancer Services: their addresses answer on the host and lead to the Service.

In: Services of type LoadBalancer with an address in status. Out: listeners on the host, and for
ports that cannot be opened: status, an annotation, an Event and a high port that works.
Promises: each connection is relayed to ClusterIP:port, so it reaches whatever endpoint is ready at
that moment; both directions end on their own (half-close) and a slow reader slows its sender.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError
from localkube.client.resources import SERVICES
from localkube.kit.hostsockets import HostSockets
from localkube.kit.tasks import Tasks
from localkube.node.events import EventRecorder
from localkube.node.relay import Downstream, Upstream

ANNOTATION: Final = "localkube/forwarded-ports"
_HIGH_PORTS: Final = 8000  # 80 -> 8080, 443 -> 8443
_SEARCHED: Final = 200
_CONNECT_S: Final = 5.0

_WHY: Final[Mapping[int, tuple[str, str]]] = {
    errno.EACCES: (
        "PermissionDenied",
        "this user may not open port {port}; port {high} works instead. To allow it: "
        "sudo sysctl net.ipv4.ip_unprivileged_port_start={port}",
    ),
    errno.EADDRINUSE: (
        "AddressInUse",
        "another program on this machine already listens on {address}:{port}; "
        "port {high} works instead",
    ),
}


@dataclass(slots=True)
class Listener:
    """One open port: what was wanted and what was got."""

    address: str
    wanted: int
    opened: int
    server: asyncio.Server
    target: tuple[str, int]
    error: str = ""
    message: str = ""


def high_port(port: int) -> int:
    """Return the port to try first for one that may not be opened."""
    return port + _HIGH_PORTS if port + _HIGH_PORTS < 65536 else port


class Forwarder:
    """Keeps the host's listeners in step with the Services."""

    def __init__(
        self, client: ApiClient, sockets: HostSockets | None, events: EventRecorder
    ) -> None:
        self._client = client
        self._sockets = sockets
        self._events = events
        self._listeners: dict[tuple[str, int], Listener] = {}
        # Ports that stood in for a taken one: whoever was told of them is served as long as the Service lives.
        self._stand_ins: dict[tuple[str, int], Listener] = {}
        self._connections = Tasks("load balancer connections")
        self._lock = asyncio.Lock()
        self._reported: dict[str, Any] = {}
        self._log = structlog.get_logger("localkube.node.forwarder")

    @property
    def incomplete(self) -> bool:
        """Whether a port is not open where its Service wants it."""
        return any(row.error for row in self._listeners.values())

    async def sync(self, services: Sequence[Mapping[str, Any]], retry: bool = False) -> None:
        """Open and close listeners so that they are those of ``services``.

        With ``retry`` ports that could not be opened before are tried again.
        """
        async with self._lock:
            if retry:
                await self._move_back()
            wanted = {
                (address, port): (cluster_ip, service)
                for service in services
                for address, port, cluster_ip in _forwarded(service)
            }
            for key in [key for key in self._listeners if key not in wanted]:
                self._close(self._listeners.pop(key))
                if key in self._stand_ins:
                    self._close(self._stand_ins.pop(key))
            for (address, port), (cluster_ip, _) in wanted.items():
                known = self._listeners.get((address, port))
                if known is None:
                    await self._open(address, port, (cluster_ip, port))
                else:
                    known.target = (cluster_ip, port)
            alive = set()
            for service in services:
                alive.add(service["metadata"].get("uid"))
                await self._report(service)
            self._reported = {uid: v for uid, v in self._reported.items() if uid in alive}

    async def close(self) -> None:
        """Close all listeners and connections."""
        for listener in (*self._listeners.values(), *self._stand_ins.values()):
            self._close(listener)
        self._listeners.clear()
        self._stand_ins.clear()
        await self._connections.close()

    # -- listeners ---------------------------------------------------------------------------

    async def _open(self, address: str, port: int, target: tuple[str, int]) -> None:
        error = message = ""
        opened = port
        sock: socket.socket | None = None
        try:
            sock = await self._listen(address, port)
        except OSError as problem:
            number = problem.errno or 0
            opened, sock = await self._listen_high(address, port)
            error, text = _WHY.get(number, (errno.errorcode.get(number, "Error"), str(problem)))
            message = text.format(address=address, port=port, high=opened or "none")
        if sock is None:
            self._log.warning("port not opened", address=address, port=port, error=message)
            return
        await self._serve(sock, (address, port), opened, target, error, message)

    async def _serve(
        self,
        sock: socket.socket,
        key: tuple[str, int],
        opened: int,
        target: tuple[str, int],
        error: str = "",
        message: str = "",
    ) -> None:
        # Each connection reads the target anew, so a changed ClusterIP needs no new listener.
        server = await asyncio.get_running_loop().create_server(
            lambda: Downstream(lambda downstream: self._connect_later(downstream, key)), sock=sock
        )
        self._listeners[key] = Listener(*key, opened, server, target, error, message)

    async def _move_back(self) -> None:
        """Give each moved port its wanted place, if that has become free."""
        for key, row in list(self._listeners.items()):
            if not row.error:
                continue
            try:
                sock = await self._listen(row.address, row.wanted)
            except OSError:
                continue
            self._stand_ins[key] = row
            await self._serve(sock, key, row.wanted, row.target)

    async def _listen_high(self, address: str, port: int) -> tuple[int, socket.socket | None]:
        first = high_port(port)
        for candidate in range(first, min(first + _SEARCHED, 65536)):
            try:
                return candidate, await self._listen(address, candidate)
            except OSError:
                continue
        return 0, None

    async def _listen(self, address: str, port: int) -> socket.socket:
        if self._sockets is not None:
            return await asyncio.to_thread(self._sockets.listen, address, port)
        sock = socket.socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(512)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock

    def _close(self, listener: Listener) -> None:
        listener.server.close()
        if self._sockets is not None:
            try:
                self._sockets.close(listener.address, listener.opened)
            except OSError as error:
                self._log.warning("host listener not closed", error=str(error))

    # -- relaying ----------------------------------------------------------------------------

    def _connect_later(self, downstream: Downstream, key: tuple[str, int]) -> None:
        """Connect to the Service in the background and join the two connections."""

        async def work() -> None:
            listener = self._listeners.get(key)
            try:
                if listener is None:
                    raise ConnectionRefusedError
                async with asyncio.timeout(_CONNECT_S):
                    loop = asyncio.get_running_loop()
                    await loop.create_connection(lambda: Upstream(downstream), *listener.target)
            except (OSError, TimeoutError):
                downstream.abort()  # nobody answers behind the Service: as a refused connection

        self._connections.spawn("connect", work)

    # -- telling -----------------------------------------------------------------------------

    async def _report(self, service: Mapping[str, Any]) -> None:
        """Write which ports are open into the Service, once per change."""
        meta = service["metadata"]
        rows = [
            (listener, protocol)
            for address, port, _ in _forwarded(service)
            for protocol in ("TCP",)
            if (listener := self._listeners.get((address, port))) is not None
        ]
        moved = [(row, p) for row, p in rows if row.error]
        text = ",".join(f"{row.wanted}={row.opened}" for row, _ in moved)
        annotation = (meta.get("annotations") or {}).get(ANNOTATION, "")
        ports = []
        for row, protocol in rows:
            entry = {"port": row.wanted, "protocol": protocol}
            ports.append(entry | ({"error": row.error} if row.error else {}))
        report = (text, ports)
        if self._reported.get(meta.get("uid")) == report and annotation == text:
            return
        try:
            await self._write(service, text, annotation, ports if moved else None)
        except (ApiStatusError, ApiConnectionError) as error:
            self._log.info("service status not written", service=meta["name"], error=str(error))
            return
        if self._reported.get(meta.get("uid")) != report:
            for row, _ in moved:
                self._events.record(
                    {**service, "kind": "Service"}, "Warning", f"Port{row.error}", row.message
                )
        self._reported[meta.get("uid")] = report

    async def _write(
        self,
        service: Mapping[str, Any],
        text: str,
        annotation: str,
        ports: list[dict[str, Any]] | None,
    ) -> None:
        meta = service["metadata"]
        name, namespace = meta["name"], meta["namespace"]
        if text != annotation:
            patch = {"metadata": {"annotations": {ANNOTATION: text or None}}}
            await self._client.patch(SERVICES, name, patch, namespace)
        ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        wanted = [{**{k: v for k, v in i.items() if k != "ports"}} for i in ingress]
        if ports:
            wanted = [{**item, "ports": ports} for item in wanted]
        if wanted != ingress:
            status = {"status": {"loadBalancer": {"ingress": wanted}}}
            await self._client.patch(SERVICES, name, status, namespace, subresource="status")


def _forwarded(service: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Return (host address, port, cluster IP) of each TCP port of a LoadBalancer Service."""
    spec = service.get("spec") or {}
    cluster_ip = spec.get("clusterIP")
    if spec.get("type") != "LoadBalancer" or not cluster_ip or cluster_ip == "None":
        return []
    if service["metadata"].get("deletionTimestamp"):
        return []
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return [
        (item["ip"], int(port["port"]), cluster_ip)
        for item in ingress
        if str(item.get("ip") or "").startswith("127.")
        for port in spec.get("ports") or []
        if (port.get("protocol") or "TCP") == "TCP"
    ]
