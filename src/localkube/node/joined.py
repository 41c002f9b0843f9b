"""A node that joins a cluster which is not its own.

In: the kubeconfig, and sockets of the host's network. Out: what such a node does differently: its
address is the host's, its HTTPS API listens on the host, and pods reach the API server through a
relay, because their network has no other way out.

What it cannot do: pods of this node and of other nodes do not reach each other.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from localkube.client import ApiClient, ApiStatusError
from localkube.client.errors import KubeconfigError
from localkube.client.resources import SERVICES
from localkube.kit.hostsockets import HostSockets
from localkube.kit.tasks import Tasks
from localkube.node.kubelet_server import ServingTls
from localkube.node.relay import Downstream, Upstream

_CONNECT_S: Final = 10.0
_PORTS_TRIED: Final = 50
_KUBEADM_SERVICES: Final = "10.96.0.0/12"


@dataclass(frozen=True, slots=True)
class ServiceNetwork:
    """The other cluster's Service addresses."""

    cidr: str
    dns_ip: str


async def read_service_network(client: ApiClient) -> ServiceNetwork:
    """Return where the cluster's Services are, taken from its own."""
    api = await client.get(SERVICES, "kubernetes", "default")
    api_ip = ipaddress.IPv4Address(api["spec"]["clusterIP"])
    network = ipaddress.IPv4Network(_KUBEADM_SERVICES)
    if api_ip not in network:
        network = ipaddress.IPv4Network(f"{api_ip}/16", strict=False)
    try:
        dns = await client.get(SERVICES, "kube-dns", "kube-system")
        dns_ip = str(dns["spec"]["clusterIP"])
    except ApiStatusError as error:
        if not error.not_found:
            raise
        # The tenth address by the convention of kubeadm.
        dns_ip = str(network.network_address + 10)
    return ServiceNetwork(str(network), dns_ip)


def server_address(client: ApiClient) -> tuple[str, int]:
    """Return host and port of the API server."""
    parts = urlsplit(client.connection.server)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


async def find_host_address(sockets: HostSockets, server: tuple[str, int]) -> str:
    """Return the host's address on the way to the API server. Raises OSError."""
    found = await asyncio.to_thread(sockets.resolve, *server, int(socket.AF_INET))
    with sockets.new(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((found[0][1], found[0][2]))  # sends nothing, only chooses a route
        return str(probe.getsockname()[0])


def listen_on_host(sockets: HostSockets, address: str, port: int) -> tuple[socket.socket, int]:
    """Open the node's API on the host, on ``port`` or the next free one. Raises OSError."""
    for candidate in range(port, port + _PORTS_TRIED):
        try:
            return sockets.listen(address, candidate), candidate
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no free port from {port} on at {address}")


def write_serving_tls(kubeconfig: Path, directory: Path) -> ServingTls | None:
    """Make the kubeconfig's client certificate the node's serving certificate.

    A node's kubeconfig holds a certificate of the cluster's authority, by which the API server
    knows the node. Returns None if it holds a token instead: then logs and exec do not work.
    """
    document = yaml.safe_load(kubeconfig.read_bytes())
    by_name = {
        kind: {entry["name"]: entry[kind] for entry in document.get(f"{kind}s") or []}
        for kind in ("context", "cluster", "user")
    }
    context = by_name["context"][document["current-context"]]
    user, cluster = by_name["user"][context["user"]], by_name["cluster"][context["cluster"]]
    parts = [
        _pem(kubeconfig, user, "client-certificate"),
        _pem(kubeconfig, user, "client-key"),
        _pem(kubeconfig, cluster, "certificate-authority"),
    ]
    if not all(parts):
        return None
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = [directory / name for name in ("node.crt", "node.key", "ca.crt")]
    for path, content in zip(paths, parts, strict=True):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123 - a descriptor
            file.write(content)
    return ServingTls(*paths)


def _pem(kubeconfig: Path, section: Mapping[str, Any], field: str) -> bytes:
    inline = section.get(f"{field}-data")
    if inline:
        try:
            return base64.b64decode(inline, validate=True)
        except ValueError as error:
            raise KubeconfigError(f"kubeconfig {kubeconfig}: {field}-data: {error}") from error
    file = section.get(field)
    return (kubeconfig.parent / file).read_bytes() if file else b""


class ApiRelay:
    """Listens in the node's network and leads to the API server through the host's."""

    def __init__(self, sockets: HostSockets, server: tuple[str, int]) -> None:
        self._sockets = sockets
        self._server = server
        self._tasks = Tasks("api relay")
        self._listener: asyncio.Server | None = None

    async def start(self, address: str) -> tuple[str, int]:
        """Listen on a free port of ``address``; return both."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Downstream(self._connect_later), address, 0
        )
        return address, int(self._listener.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end all connections."""
        if self._listener is not None:
            self._listener.close()
        await self._tasks.close()

    def _connect_later(self, downstream: Downstream) -> None:
        async def work() -> None:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(_CONNECT_S):
                    found = await asyncio.to_thread(self._sockets.resolve, *self._server)
                    family, host, port = found[0]
                    sock = self._sockets.new(family, socket.SOCK_STREAM)
                    await loop.sock_connect(sock, (host, port))
                    await loop.create_connection(lambda: Upstream(downstream), sock=sock)
            except (OSError, TimeoutError):
                downstream.abort()

        self._tasks.spawn("connect", work)
