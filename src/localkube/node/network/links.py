"""Interfaces and routes: the node's own, and one veth pair for each pod.

In: addresses and a sandbox's process id. Out: a pod whose every packet goes through the node's
network namespace, where Service addresses are translated. Promises: blocking work happens on one
thread of its own, which alone may visit other network namespaces; when a pod's namespace ends, the
kernel removes its links and routes.

Each pod has a /32 address and one route, to the node's address: no bridge, so every packet is
routed and thus seen by nftables, also between two pods.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from localkube.kit import namespaces as ns
from localkube.node.network import nftables as nf
from localkube.node.network.service_rules import TABLE, ServicePort, build_changes, build_table

_T = TypeVar("_T")

# veth has no medium that would limit it; large packets save most of the per-packet work.
_MTU = 65520
_NODE_LINK = "node0"
_NODE_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    # A pod that reaches another through the node is not told a shorter way: there is none.
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
# Kinds of interface that can carry an address without a cable; not every kernel has dummy.
_ADDRESS_HOLDERS = ("dummy", "bridge")


class PodNetwork:
    """The node's network namespace: set it up once, then attach pods and follow the Services."""

    def __init__(self, node_ip: str, service_cidr: str, dns_ip: str) -> None:
        self.node_ip = node_ip
        self._service_cidr = service_cidr
        self._dns_ip = dns_ip
        self._thread = ThreadPoolExecutor(1, "netlink")
        self._routes: IPRoute | None = None
        self._rules: nf.Connection | None = None
        self._home = -1
        self._services: dict[str, ServicePort] = {}

    async def start(self) -> None:
        """Bring up lo, the node's address, the Service route and an empty table."""
        await self._do(self._start)

    async def stop(self) -> None:
        """Remove our table and close the sockets."""
        await self._do(self._stop)
        self._thread.shutdown()

    async def attach(self, sandbox_pid: int, address: str, number: int) -> None:
        """Connect the sandbox of process ``sandbox_pid`` and give it ``address``."""
        await self._do(self._attach, sandbox_pid, address, f"pod{number}")

    async def detach(self, address: str) -> None:
        """Forget ``address``; the links went with the sandbox."""
        await self._do(self._detach, address)

    async def apply_services(self, services: dict[str, ServicePort]) -> None:
        """Make the kernel's rules those of ``services``."""
        await self._do(self._apply, services)

    async def connect(
        self, sandbox_pid: int, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port of a sandbox's own loopback, as programs inside do. Raises OSError."""
        loop = asyncio.get_running_loop()
        error: OSError | None = None
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                inside = await self._do(self._socket_inside, sandbox_pid, family)
            except OSError as failure:
                error = error or failure
                continue
            try:
                await loop.sock_connect(inside, (host, port))
                return await asyncio.open_connection(sock=inside)
            except BaseException as failure:
                inside.close()
                if not isinstance(failure, OSError):
                    raise
                error = error or failure
        assert error is not None
        raise error

    def _socket_inside(self, sandbox_pid: int, family: int) -> socket.socket:
        """Return a socket that belongs to the sandbox's network, whoever uses it."""
        namespace = os.open(f"/proc/{sandbox_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            ns.setns(namespace, ns.CLONE_NEWNET)
            try:
                inside = socket.socket(family, socket.SOCK_STREAM)
            finally:
                ns.setns(self._home, ns.CLONE_NEWNET)
        finally:
            os.close(namespace)
        inside.setblocking(False)
        return inside

    async def _do(self, function: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _start(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._routes = routes = IPRoute()
        lo = routes.link_lookup(ifname="lo")[0]
        routes.link("set", index=lo, state="up")
        if not routes.get_addr(address=self.node_ip):
            _add_address(routes, self._node_link(), self.node_ip)
        holder = routes.get_addr(address=self.node_ip)[0]["index"]
        _add_address(routes, holder, self._dns_ip)
        routes.route("replace", dst=self._service_cidr, oif=holder, prefsrc=self.node_ip)
        for name, value in _NODE_SYSCTLS.items():
            Path("/proc/sys", name).write_text(value)
        self._rules = nf.Connection()
        self._rules.commit(build_table(self._service_cidr, self._dns_ip))

    def _node_link(self) -> int:
        assert self._routes is not None
        found = self._routes.link_lookup(ifname=_NODE_LINK)
        if not found:
            for kind in _ADDRESS_HOLDERS:
                try:
                    self._routes.link("add", ifname=_NODE_LINK, kind=kind)
                    break
                except NetlinkError:
                    continue
            found = self._routes.link_lookup(ifname=_NODE_LINK)
        if not found:
            return int(self._routes.link_lookup(ifname="lo")[0])
        self._routes.link("set", index=found[0], state="up")
        return int(found[0])

    def _stop(self) -> None:
        if self._rules is not None:
            batch = nf.Batch(TABLE)
            batch.add_table()
            batch.delete_table()
            self._rules.commit(batch)
            self._rules.close()
        if self._routes is not None:
            self._routes.close()
        if self._home >= 0:
            os.close(self._home)

    def _attach(self, sandbox_pid: int, address: str, name: str) -> None:
        assert self._routes is not None
        assert self._rules is not None
        namespace = os.open(f"/proc/{sandbox_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            peer = {"ifname": "eth0", "net_ns_fd": namespace, "mtu": _MTU}
            self._routes.link("add", ifname=name, kind="veth", mtu=_MTU, peer=peer)
            ns.setns(namespace, ns.CLONE_NEWNET)
            try:
                inside = IPRoute()
            finally:
                ns.setns(self._home, ns.CLONE_NEWNET)
        finally:
            os.close(namespace)
        with inside:
            eth0 = inside.link_lookup(ifname="eth0")[0]
            inside.addr("add", index=eth0, address=address, prefixlen=32)
            inside.link("set", index=eth0, state="up")
            inside.route("add", dst=f"{self.node_ip}/32", oif=eth0, scope=253)
            inside.route("add", dst="default", gateway=self.node_ip, oif=eth0)
        outside = self._routes.link_lookup(ifname=name)[0]
        self._routes.link("set", index=outside, state="up")
        self._routes.route("replace", dst=f"{address}/32", oif=outside, prefsrc=self.node_ip)
        batch = nf.Batch(TABLE)
        batch.add_elements("hairpin", [(_pair(address), b"")])
        self._rules.commit(batch)

    def _detach(self, address: str) -> None:
        assert self._rules is not None
        batch = nf.Batch(TABLE)
        batch.delete_elements("hairpin", [_pair(address)])
        try:
            self._rules.commit(batch)
        except FileNotFoundError:
            return  # attach did not get that far

    def _apply(self, services: dict[str, ServicePort]) -> None:
        assert self._rules is not None
        batch = build_changes(self._services, services)
        if batch:
            try:
                self._rules.commit(batch)
            except OSError:
                # Somebody else changed our table: begin again from nothing, losing no rule.
                self._rules.commit(build_table(self._service_cidr, self._dns_ip))
                self._services = {}
                self._rules.commit(build_changes({}, services))
        self._services = dict(services)


def _pair(address: str) -> bytes:
    raw = bytes(int(part) for part in address.split("."))
    return raw + raw


def _add_address(routes: IPRoute, index: int, address: str) -> None:
    if not routes.get_addr(address=address):
        routes.addr("add", index=index, address=address, prefixlen=32)
