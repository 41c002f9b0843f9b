"""The node agent: follows the API and keeps pods, Services, DNS and load balancers as it says.

In: a client, settings, the fork server. Out: running pods. Promises: one bad pod never stops the
others; changes of Services that come together are applied together; on stop every process, link
and rule of it is gone.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from localkube.client import ApiClient, Informer
from localkube.client.resources import ENDPOINT_SLICES, PODS, SERVICES
from localkube.kit import namespaces as ns
from localkube.kit.hostsockets import HostSockets
from localkube.kit.tasks import Tasks
from localkube.node.catalogue import Catalogue
from localkube.node.dns_server import DnsServer, host_socket_maker, read_resolv_conf
from localkube.node.events import EventRecorder
from localkube.node.forwarder import Forwarder
from localkube.node.hostview import HostView
from localkube.node.network.addresses import AddressPool
from localkube.node.network.dns_zone import build_zone
from localkube.node.network.links import PodNetwork
from localkube.node.network.service_rules import derive_service_ports
from localkube.node.node_services import NodeServices
from localkube.node.objects import ReferencedObjects
from localkube.node.podfiles import DnsSettings
from localkube.node.podworker import PodWorker
from localkube.node.registration import NodeIdentity, Registration, read_resources
from localkube.node.runtime.processes import Runtime

_COALESCE_S: Final = 0.01
_API_PORT: Final = "default/kubernetes:443/TCP"
_UNROUTE_S: Final = 0.5
_TOKENS_EVERY_S: Final = 30.0
# Everything ends together: nobody is left to whom a longer grace would do good.
_DRAIN_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """Numbers and paths of one node. The defaults are localkube's own."""

    name: str
    state_dir: Path
    catalogue_files: tuple[Path, ...] = ()
    ip: str = "172.30.0.1"
    port: int = 10250
    pod_cidr: str = "10.244.0.0/24"
    service_cidr: str = "10.96.0.0/16"
    dns_ip: str = "10.96.0.10"
    domain: str = "cluster.local"
    version: str = "0.1.0"
    port_retry_s: float = 30.0
    """How often a LoadBalancer port that was taken is tried again, while nothing else changes."""
    advertised_ip: str = ""
    """The Node's address, where it is not ``ip``."""


class ApiRelay(Protocol):
    """Where pods reach an API server that is not in the node's network."""

    async def start(self, address: str) -> tuple[str, int]:
        """Listen on ``address``; return address and port."""

    async def close(self) -> None:
        """Stop."""


class NodeAgent:
    """See the module's docstring. ``start``, then ``stop``; ``failed`` yields a fatal reason."""

    def __init__(
        self,
        client: ApiClient,
        settings: NodeSettings,
        sockets: HostSockets | None,
        api_relay: ApiRelay | None = None,
    ) -> None:
        self.client = client
        self.settings = settings
        self.workers: dict[str, PodWorker] = {}
        self.runtime = Runtime()
        self.resources = read_resources(settings.state_dir)
        self._api_relay = api_relay
        self._api_backend: tuple[str, int] | None = None
        self._tasks = Tasks("node agent")
        self._log = structlog.get_logger("localkube.node")
        self._events = EventRecorder(client, "localkube-node", settings.name)
        self._network = PodNetwork(settings.ip, settings.service_cidr, settings.dns_ip)
        self._objects = ReferencedObjects(client)
        self._forwarder = Forwarder(client, sockets, self._events)
        identity = NodeIdentity(
            settings.name, settings.advertised_ip or settings.ip, settings.port, settings.version
        )
        self._registration = Registration(client, identity, self.resources, settings.pod_cidr)
        self._pods = Informer(client, PODS, field_selector=f"spec.nodeName={settings.name}")
        self._services = Informer(client, SERVICES)
        self._slices = Informer(client, ENDPOINT_SLICES)
        resolvers, self._host_search = read_resolv_conf()
        empty = build_zone([], [], settings.domain)
        self._dns = DnsServer(empty, resolvers, host_socket_maker(sockets))
        self._directories = _Directories(settings.state_dir)
        self._services_changed = asyncio.Event()
        self._routed: frozenset[str] = frozenset()
        self._applied = asyncio.Event()

    async def prepare(self) -> None:
        """Bring up what needs no API server: directories, fork server, network, DNS."""
        self._directories.prepare()
        await self.runtime.start()
        await self._network.start()
        await self._dns.start(self.settings.dns_ip)
        if self._api_relay is not None:
            self._api_backend = await self._api_relay.start(self.settings.ip)

    async def start(self) -> None:
        """Register the node; pods start as they are seen."""
        self._tasks.spawn("events", self._events.serve, restart=True)
        node = await self._registration.register()
        self._node_services = self._build_services(node)
        self._tasks.spawn("heartbeat", self._registration.serve, restart=True)
        self._tasks.spawn("services", self._follow_services, restart=True)
        self._tasks.spawn("tokens", self._refresh_tokens, restart=True)
        for informer in (self._services, self._slices):
            informer.on_change(lambda _old, _new: self._services_changed.set())
            informer.start()
        # Service variables of the first pods need the Services.
        await self._services.wait_synced()
        self._pods.on_change(self._on_pod)
        self._pods.start()
        self._tasks.spawn("old logs", self._remove_old_logs)

    async def stop(self) -> None:
        """End every pod at once and undo the node's network."""
        for informer in (self._pods, self._services, self._slices):
            await informer.close()
        await asyncio.gather(*(worker.close(_DRAIN_S) for worker in self.workers.values()))
        await self._tasks.close()
        await self._objects.close()
        await self._forwarder.close()
        if self._api_relay is not None:
            await self._api_relay.close()
        await self._dns.close()
        await self.runtime.stop()
        await self._network.stop()
        self._directories.remove()

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """Return the worker of a pod."""
        return next(
            (w for w in self.workers.values() if w.namespace == namespace and w.name == name), None
        )

    def _build_services(self, node: dict[str, Any]) -> NodeServices:
        settings = self.settings
        catalogue = Catalogue(settings.catalogue_files)
        for finding in catalogue.findings:
            self._log.warning("catalogue", finding=finding)
        directories = self._directories
        view = HostView(directories.staging, settings.state_dir, catalogue.directories)
        return NodeServices(
            name=settings.name,
            client=self.client,
            runtime=self.runtime,
            network=self._network,
            addresses=AddressPool(node["spec"].get("podCIDR") or settings.pod_cidr),
            catalogue=catalogue,
            view=view,
            objects=self._objects,
            events=self._events,
            dns=DnsSettings(settings.dns_ip, settings.domain, self._host_search),
            resources=self.resources,
            node_ip=settings.ip,
            memory_dir=directories.memory,
            disk_dir=directories.disk,
            log_dir=directories.logs,
            services=self._services.items,
            unrouted=self._unrouted,
        )

    def _on_pod(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        if new is None:
            worker = self.workers.get(old["metadata"]["uid"]) if old else None
            if worker is not None:
                worker.vanish()
            return
        uid = new["metadata"]["uid"]
        worker = self.workers.get(uid)
        if worker is not None:
            worker.update(new)
            return
        worker = PodWorker(self._node_services, new)
        self.workers[uid] = worker
        worker.start()
        self._tasks.spawn(f"end of {new['metadata']['name']}", self._forget_later(uid, worker))

    def _forget_later(self, uid: str, worker: PodWorker) -> Callable[[], Any]:
        async def wait() -> None:
            await worker.finished.wait()
            await worker.close(0.0)
            if self.workers.get(uid) is worker:
                del self.workers[uid]

        return wait

    async def _follow_services(self) -> None:
        while True:
            retry = not await self._wait_for_services()
            await asyncio.sleep(_COALESCE_S)
            self._services_changed.clear()
            services, slices = list(self._services.items()), list(self._slices.items())
            self._dns.zone = build_zone(services, slices, self.settings.domain)
            ports = derive_service_ports(services, slices, self.settings.ip)
            dns = {name: p for name, p in ports.items() if self._is_dns(p.addresses)}
            for name in dns:
                del ports[name]  # answered here, not translated
            if self._api_backend is not None and _API_PORT in ports:
                ports[_API_PORT] = replace(ports[_API_PORT], backends=(self._api_backend,))
            await self._network.apply_services(ports)
            self._routed = _ready_addresses(slices)
            self._applied.set()
            self._applied = asyncio.Event()
            await self._forwarder.sync(services, retry)

    async def _wait_for_services(self) -> bool:
        """Return True on a change, False when it is time to try taken ports again."""
        limit = self.settings.port_retry_s if self._forwarder.incomplete else None
        try:
            await asyncio.wait_for(self._services_changed.wait(), limit)
        except TimeoutError:
            return False
        return True

    async def _unrouted(self, address: str) -> None:
        """Return when no Service leads to ``address`` any more, at the latest after a moment."""
        try:
            async with asyncio.timeout(_UNROUTE_S):
                while address in self._routed:
                    await self._applied.wait()
        except TimeoutError:
            return  # the endpoint controller is slow or away; the pod's end does not wait for it

    def _is_dns(self, addresses: tuple[tuple[str, int], ...]) -> bool:
        return any(ip == self.settings.dns_ip for ip, _ in addresses)

    async def _remove_old_logs(self) -> None:
        """Delete logs of pods that went while no agent ran."""
        await self._pods.wait_synced()
        for directory in self._directories.logs.iterdir():
            if directory.name.rpartition("_")[2] not in self.workers:
                shutil.rmtree(directory, ignore_errors=True)

    async def _refresh_tokens(self) -> None:
        while True:
            await asyncio.sleep(_TOKENS_EVERY_S)
            for worker in list(self.workers.values()):
                await worker.refresh_tokens()


def _ready_addresses(slices: list[dict[str, Any]]) -> frozenset[str]:
    """Return the pods that new connections go to (not those that only finish old ones)."""
    return frozenset(
        address
        for item in slices
        for endpoint in item.get("endpoints") or []
        if (endpoint.get("conditions") or {}).get("ready") is not False
        for address in endpoint.get("addresses") or []
    )


class _Directories:
    """Where the node keeps what belongs to pods; nothing in it outlives the agent but logs."""

    def __init__(self, state_dir: Path) -> None:
        root = state_dir / "pods"
        self.root = root
        self.staging = root / "root"
        self.memory = root / "memory"
        self.disk = root / "volumes"
        self.logs = state_dir / "log" / "pods"

    def prepare(self) -> None:
        """Make the directories, empty; what a former agent left is removed."""
        self.remove()
        for path in (self.staging, self.memory, self.disk, self.logs):
            path.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)
        ns.mount("tmpfs", str(self.memory), "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=700")

    def remove(self) -> None:
        """Unmount and delete."""
        try:
            ns.umount(str(self.memory))
        except OSError:
            pass  # it was not mounted
        shutil.rmtree(self.root, ignore_errors=True)
