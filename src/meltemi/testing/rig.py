"""The rig: everything of one test session that runs, in one background thread.

In: an ``OfflineMesh`` per test. Out: Envoys that are configured, stand-ins that answer, and where to connect. Promises:
``apply`` returns when every proxy has acknowledged and its worker thread has the new configuration; ``close`` leaves no
process, socket or file behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from meltemi.ir.proxy import ProxyIR
from meltemi.kit.tasks import Tasks
from meltemi.model import kubernetes as k8s
from meltemi.model.service import Service
from meltemi.model.topology import IstioIngressListener
from meltemi.registry.offline import AddressPlan, OfflineMesh, OfflineProxy, counted_addresses
from meltemi.registry.offline_slices import holds
from meltemi.registry.store import RegistryStore
from meltemi.testing.addresses import Block
from meltemi.testing.control import Control, until
from meltemi.testing.forwarder import Forwarder
from meltemi.testing.hops import Hop
from meltemi.testing.identities import Identities
from meltemi.testing.keeper import Keeper
from meltemi.testing.proxies import Running, start_proxy
from meltemi.testing.rewire import WILDCARDS, Place, Rewire
from meltemi.testing.standins import Standins, Who
from meltemi.testing.tcp_logs import TcpLogs

if TYPE_CHECKING:
    from meltemi.testing.resolve import Target

T = TypeVar("T")
READY_S = 20.0
IDLE_MAX = 12  # proxies kept for a later test although no workload of the present one is theirs


class Rig:
    """See the module. Public methods may be called from any thread."""

    def __init__(self, trust_domain: str = "cluster.local") -> None:
        self.folder = _folder()
        self.keeper = Keeper(self.folder)
        self.block = Block()
        self.identities = Identities(self.folder)
        self.objects = OfflineMesh()
        self.running: dict[str, Running] = {}
        self.tcp_logs = TcpLogs()
        self._marks: dict[str, tuple[str, ...]] = {}
        self._places: dict[str, Place] = {}
        self._declared: dict[str, Place] = {}
        self._outside: dict[str, Who] = {}
        self._asked: set[tuple[str, int]] = set()
        self._services: dict[str, Service] = {}
        self._settings = _quiet_logs()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="meltemi.testing", daemon=True)
        self._thread.start()
        self.call(self._start(trust_domain))

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the rig's thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def on_loop(self, action: Callable[[], T]) -> T:
        """Call a function in the rig's thread."""

        async def act() -> T:
            return action()

        return self.call(act())

    async def _start(self, trust_domain: str) -> None:
        self.standins = Standins(self.identities)
        self._tasks = Tasks("meltemi.testing")
        self.control = Control(
            Rewire(self), self.identities, self.folder / "rig.sock", trust_domain
        )
        self.control.on_log = self.tcp_logs.add
        await self.control.start()

    def close(self) -> None:
        """Stop everything. Once."""
        self.call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.block.close()
        self.keeper.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._settings:
            structlog.reset_defaults()

    async def _stop(self) -> None:
        await asyncio.gather(*(self._end(proxy) for proxy in self.running.values()))
        self.standins.close()
        await self.control.stop()
        await self._tasks.close()

    # --- addresses ----------------------------------------------------------------------------------

    def plan(self) -> AddressPlan:
        """Where pods and Services are."""
        return AddressPlan(
            pod=lambda namespace, name: self.block.address("proxy", f"{name}.{namespace}"),
            service=counted_addresses().service,
            replace_pods=True,
        )

    def port(self, number: int) -> int:
        """The port to bind instead of ``number``."""
        return self.block.port(number)

    def bound(self, place: Place, address: str) -> str:
        """The address to bind instead of one that a gateway's server names; its own address for all of them."""
        if address in WILDCARDS or not place.router:
            return place.address
        return self.block.address("bind", f"{place.id} {address}")

    def endpoint(self, address: str, port: int) -> tuple[str, int]:
        """Where an endpoint is: a proxy, a server of this machine, or a stand-in for what is outside."""
        declared = self._declared.get(address)
        if declared is not None:
            return declared.address, self.port(port)
        if self.block.owns(address):
            return address, self.port(port)
        if _is_loopback(address):
            return address, port
        service = self._services.get(address)
        if service is not None:
            return self.first_endpoint(service, port)
        return self.outside(address, port)

    def outside(self, host: str, port: int) -> tuple[str, int]:
        """Where the stand-in for a host outside the mesh is; it listens from now on."""
        where = (self.block.address("outside", host), self.port(port))
        if not self.standins.listens(*where):
            self._listen(where, self._stranger(host, port))
            self._asked.add((host, port))
        return where

    def _rename_stranger(self, host: str, port: int) -> None:
        """Who answers for a host outside the mesh may have another name now."""
        where = (self.block.address("outside", host), self.port(port))
        self.standins.rename(*where, self._stranger(host, port))

    def _stranger(self, host: str, port: int) -> Who:
        known = self._outside.get(host)
        if known is None:
            return Who(host, service=host, port=port)
        return Who(known.workload, known.namespace, known.version, host, known.service, port)

    def _listen(self, where: tuple[str, int], who: Who) -> None:
        """Bind now, answer as soon as the loop comes to it."""
        if self.standins.rename(*where, who):
            return
        bound = self.standins.bind(*where)
        self.standins.reserve(bound, *where, who)
        self._tasks.spawn(f"answer at {where[0]}:{where[1]}", lambda: self.standins.open(*where))

    def first_endpoint(self, service: Service, port: int) -> tuple[str, int]:
        """One endpoint of a service port, as kube-proxy would choose it."""
        wanted = service.port(port)
        index = self.control.world.registry.endpoints
        for endpoint in index.endpoints(service.hostname, service.namespace):
            if wanted is None or endpoint.service_port == wanted.name:
                return self.endpoint(endpoint.address, endpoint.port)
        return self.block.address("outside", f"nothing.{service.hostname}"), self.port(port)

    def place(self, proxy: str) -> Place | None:
        """Where a workload of the present mesh is."""
        return self._places.get(proxy)

    def proxy_at(self, address: str) -> OfflineProxy | None:
        """Which workload has an address (its own, or its application's)."""
        for proxy in self.objects.proxies:
            place = self._places.get(proxy.id)
            if place is not None and address in (place.address, place.app, proxy.address):
                return proxy
        return None

    def is_last(self, hop: Hop) -> bool:
        """Whether no other proxy of the mesh comes after this one on a connection's way."""
        address = hop.endpoint.rpartition(":")[0]
        return hop.direction == "inbound" or not any(
            proxy.injected and self._places[proxy.id].address == address
            for proxy in self.objects.proxies
        )

    def who_at(self, address: str, port: int) -> Who | None:
        """Which stand-in answers at an address."""
        return self.standins.who(address, port)

    def ir_of(self, proxy: str) -> ProxyIR | None:
        """What a proxy was told."""
        return self.control.pipeline.ir_of(proxy)

    def hands_over(self, proxy: str, address: str, port: int) -> bool:
        """Whether a proxy's ``virtualOutbound`` hands connections for a destination to a listener of its own."""
        return any(
            number == port and place in (address, "0.0.0.0")
            for place, number in self.control.pipeline.unbound_listeners(proxy)
        )

    def captures_dns(self, proxy: OfflineProxy) -> bool:
        """Whether names of the proxy's pod are answered by DNS capture, hence with automatic addresses."""
        return proxy.metadata.get("DNS_CAPTURE", "").lower() in ("true", "1")

    @contextlib.contextmanager
    def forwarder(self, target: Callable[[], Target]) -> Iterator[tuple[str, int]]:
        """An address whose connections are passed on to where ``target`` says at that moment."""
        forwarder = Forwarder(target)
        address = self.call(forwarder.open(f"127.{self.block.number}.0.1"))
        try:
            yield address
        finally:
            self.call(forwarder.close())

    # --- configuration ------------------------------------------------------------------------------

    def apply(self, objects: OfflineMesh) -> None:
        """Make the mesh what the objects say. Raises Rejection, ProxyFailed, TimeoutError."""
        self.call(self._apply(objects))

    async def _apply(self, objects: OfflineMesh) -> None:
        self.objects = objects
        self.control.put(objects)
        self._index(objects)
        for proxy in objects.proxies:
            self._answer_for(proxy, self._places[proxy.id])
        self._services = {
            address: service
            for service in self.control.world.registry.snapshot().all_services
            for address in (*service.addresses, *service.auto_allocated)
        }
        injected = [proxy for proxy in objects.proxies if proxy.injected]
        pipeline = self.control.pipeline
        returning = [p.id for p in injected if p.id not in pipeline.places and p.id in self.running]
        pipeline.places = {proxy.id: self._places[proxy.id] for proxy in injected}
        await pipeline.flush()
        await asyncio.gather(*(self._ensure(proxy) for proxy in injected))
        if returning:
            await pipeline.refresh(returning)
        await self._stop_idle({proxy.id for proxy in injected})
        proxies = [self.running[proxy.id] for proxy in injected]
        outcomes = await asyncio.gather(
            *(self._settled(proxy) for proxy in proxies), return_exceptions=True
        )
        # One that refuses must not leave questions to the others behind: the next apply asks them again.
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        if any(outcomes):
            # Connections to chains that are gone were closed; every worker gets to know that before it is asked for more.
            await asyncio.gather(*(_value(proxy.epoch(), "") for proxy in proxies))

    def _index(self, objects: OfflineMesh) -> None:
        """Where everybody is, and what strangers are called."""
        ports = _served_ports(objects, self.control.world.registry)
        self._places = {}
        self._declared = {}
        for proxy in objects.proxies:
            # Without a proxy the application itself is what others connect to. The proxy's address is left alone: one of
            # an earlier test may still hold it.
            app = self.block.address("app", proxy.id)
            address = self.block.address("proxy", proxy.id) if proxy.injected else app
            place = Place(
                proxy.id,
                address,
                app,
                () if proxy.router else tuple(sorted(ports.get(proxy.id, ()))),
                proxy.router,
                tuple(sorted(_uncaptured(objects, proxy))),
            )
            self._places[proxy.id] = place
            if proxy.address != address:
                self._declared[proxy.address] = place
        self._outside = _strangers(objects)
        for host, port in self._asked:
            # Those of an earlier test answer under the names of this one.
            self._rename_stranger(host, port)

    def _answer_for(self, proxy: OfflineProxy, place: Place) -> None:
        if proxy.router:
            return
        for number, protocol in _port_protocols(self.objects, proxy, place.ports).items():
            who = Who(
                proxy.workload,
                proxy.namespace,
                proxy.labels.get("version", ""),
                proxy.name,
                "",
                number,
                protocol,
            )
            self._listen((place.app, self.port(number)), who)

    def stand_in_again(self, proxy: OfflineProxy) -> None:
        """A program of the user's has ended."""
        place = self._places.get(proxy.id)
        if place is not None:
            self._answer_for(proxy, place)

    async def _ensure(self, proxy: OfflineProxy) -> None:
        """A running Envoy with exactly this identity."""
        known = self.running.get(proxy.id)
        patches = self.control.bootstrap_patches(proxy)
        if known is not None and known.process.returncode is None:
            if known.proxy == proxy and known.patches == patches:
                known.place = self._places[proxy.id]
                return
            await self._end(known)
        self._marks.pop(proxy.id, None)
        self.standins.leave(self._places[proxy.id].address)
        made = await start_proxy(
            proxy,
            self._places[proxy.id],
            self.folder / "rig.sock",
            self.folder / f"envoy.{proxy.id}",
            self.control.trust_domain,
            patches,
        )
        self.running[proxy.id] = made
        self.keeper.add(made.process.pid)

    async def _end(self, proxy: Running) -> None:
        await proxy.stop()
        self.keeper.remove(proxy.process.pid)

    async def _stop_idle(self, wanted: set[str]) -> None:
        idle = [name for name in self.running if name not in wanted]
        surplus = idle[: max(0, len(idle) - IDLE_MAX)]
        for name in surplus:
            await self._end(self.running.pop(name))
            self._marks.pop(name, None)

    async def _settled(self, proxy: Running) -> bool:
        """Wait until the proxy has acknowledged, nothing warms or drains, and its worker has it all. False: as before."""

        def synced() -> Any:
            proxy.check()
            return self.control.synced(proxy.id)

        def late() -> str:
            return f"the proxy of {proxy.id} is not ready within {READY_S:.0f} s:\n{proxy.log()[-3000:]}"

        loop = asyncio.get_running_loop()
        end = loop.time() + READY_S
        while True:
            connection = await until(synced, max(0.0, end - loop.time()), late)
            mark = self.control.mark(connection)
            if self._marks.get(proxy.id) == mark:
                return False
            if await _value(proxy.changing(), 1) == 0 and self.control.mark(connection) == mark:
                break
            if loop.time() > end:
                raise TimeoutError(late())
            await asyncio.sleep(0.002)
        epoch = str(await self.control.pipeline.advance(connection))
        pause = 0.0005
        while await _value(proxy.epoch(), "") != epoch:
            if loop.time() > end:
                raise TimeoutError(late())
            proxy.check()
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.01)
        connection = await until(synced, max(0.1, end - loop.time()), late)
        self._marks[proxy.id] = self.control.mark(connection)
        return True


async def _value(work: Coroutine[Any, Any, T], otherwise: T) -> T:
    """The result, or another while the proxy does not listen yet."""
    try:
        return await work
    except (OSError, asyncio.IncompleteReadError):
        return otherwise


def _folder() -> Path:
    """The session's folder; it holds a Unix socket, whose path may have 107 characters at most."""
    made = Path(tempfile.mkdtemp(prefix="meltemi-testing-"))
    if len(str(made)) <= 90:
        return made
    made.rmdir()
    return Path(tempfile.mkdtemp(prefix="meltemi-testing-", dir="/tmp"))


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _served_ports(objects: OfflineMesh, store: RegistryStore) -> dict[str, set[int]]:
    """The ports of every workload: declared ones, and those that Services and ServiceEntries send to."""
    found: dict[str, set[int]] = {
        proxy.id: {number for _, number in proxy.ports} for proxy in objects.proxies
    }
    registry = store.snapshot()
    for proxy in objects.proxies:
        workload = store.workload(proxy.namespace, proxy.name)
        if workload is not None:
            targets = registry.service_targets(workload)
            found[proxy.id] |= {target.target_port for target in targets}
    for piece in objects.of_kind(k8s.EndpointSlice):
        for entry in piece.endpoints or ():
            if entry.target_ref is None:
                continue
            name = f"{entry.target_ref.name}.{entry.target_ref.namespace}"
            for port in piece.ports or ():
                if port.port and port.protocol in (None, "TCP"):
                    found.setdefault(name, set()).add(port.port)
    for proxy in objects.proxies:
        found[proxy.id] |= {entry.port.number for entry in _ingress(objects, proxy) if entry.port}
    return found


def _ingress(objects: OfflineMesh, proxy: OfflineProxy) -> Iterator[IstioIngressListener]:
    """Ingress listeners of the Sidecars that may hold for a workload."""
    for key, config in objects.configs.items():
        if key.kind == "Sidecar" and key.namespace == proxy.namespace:
            chosen = config.spec.workload_selector
            if chosen is None or holds(chosen.labels, proxy.labels):
                yield from config.spec.ingress


def _uncaptured(objects: OfflineMesh, proxy: OfflineProxy) -> set[int]:
    """Ports whose listeners clients connect to themselves."""
    return {
        entry.port.number
        for entry in _ingress(objects, proxy)
        if entry.port and entry.capture_mode == "NONE"
    }


def _port_protocols(
    objects: OfflineMesh, proxy: OfflineProxy, ports: Iterable[int]
) -> dict[int, str]:
    """What each port of a workload speaks, by the name of the Service port; '' when nothing says."""
    found = dict.fromkeys(ports, "")
    for service in objects.of_kind(k8s.Service):
        if service.metadata.namespace != proxy.namespace or not service.spec.selector:
            continue
        if not holds(service.spec.selector, proxy.labels):
            continue
        for port in service.spec.ports or ():
            target = port.target_port or port.port
            number = dict(proxy.ports).get(target, 0) if isinstance(target, str) else target
            if number in found:
                found[number] = port.app_protocol or port.name.partition("-")[0]
    return found


def _strangers(objects: OfflineMesh) -> dict[str, Who]:
    """Names of hosts and addresses outside the mesh, from the ServiceEntries that list them."""
    found: dict[str, Who] = {}
    for key, config in objects.configs.items():
        if key.kind != "ServiceEntry":
            continue
        host = config.spec.hosts[0] if config.spec.hosts else key.name
        for entry in config.spec.endpoints:
            version = entry.labels.get("version", "")
            name = f"{key.name}-{version}" if version else key.name
            found[entry.address] = Who(name, key.namespace, version, entry.address, host)
        for name in (*config.spec.hosts, *config.spec.addresses):
            found.setdefault(name, Who(key.name, key.namespace, "", name, host))
    return found


def _quiet_logs() -> bool:
    """The control plane's log lines are not part of a test's output; True when that was changed here."""
    if structlog.is_configured():
        return False
    import logging

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return True
