"""From what changed to what proxies have: debounce, snapshot, translate, encode, offer.

In: ``World`` and its changes; connections. Out: snapshots offered to connections. Promises: a proxy class is
translated and encoded once per snapshot, in one worker thread, so the loop stays free; a type that did not
change keeps its mapping object and is not even compared; endpoint changes bypass all this and re-encode only
the ClusterLoadAssignments of the services that changed, unless a fact that clusters or listeners depend on
changed too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import structlog

from meltemi.adapters.discovery_connections import Connection, Connections
from meltemi.adapters.endpoint_cache import EndpointCache, EndpointView, FrozenEndpoints
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.world import Change, World
from meltemi.discovery.protocol import Rejected, Snapshot
from meltemi.envoy import PatchRecord, encode
from meltemi.ir.proxy import ProxyIR
from meltemi.kit.clock import Clock
from meltemi.model.config import Key
from meltemi.model.names import (
    BOOTSTRAP_TYPE,
    CDS_TYPE,
    ECDS_TYPE,
    EDS_TYPE,
    LDS_TYPE,
    NDS_TYPE,
    RDS_TYPE,
    SDS_TYPE,
)
from meltemi.model.proxy import NodeType, Proxy
from meltemi.model.resource import Resource
from meltemi.push import PushContext, affected, build_push_context, class_key
from meltemi.push.classes import ProxyClass
from meltemi.push.facts import derive_facts
from meltemi.push.queue import Debounce, PushRequest
from meltemi.registry.index import ServiceKey
from meltemi.translate import overlay_for, translate

log = structlog.get_logger("push")
T = TypeVar("T")
SECRET_CODES = ("IST0101", "IST0161")  # in a translation: of Secrets alone
WORKLOAD_WAIT_S = 2.0  # how long a sidecar that is ahead of its pod's watch event waits for it
TYPES = (CDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE, ECDS_TYPE, NDS_TYPE, BOOTSTRAP_TYPE)


@dataclass(frozen=True, slots=True)
class ClassView:
    """What every proxy of one class gets, made from one context."""

    context: PushContext
    proxy_class: ProxyClass
    ir: ProxyIR
    types: Mapping[str, Mapping[str, Resource]]
    endpoints: EndpointView
    patches: PatchRecord = field(default_factory=PatchRecord)


@dataclass(eq=False, slots=True)
class Attached:
    """A connection and the view that it has."""

    connection: Connection
    view: ClassView | None = None


class Pipeline:
    """See the module. One per process; it is the discovery server's ``Source`` save for debug output."""

    def __init__(
        self,
        world: World,
        clock: Clock,
        metrics: Metrics,
        *,
        debounce_after_s: float = 0.1,
        debounce_max_s: float = 10.0,
        debounce_endpoints: bool = True,
        expects_pods: bool = True,
    ) -> None:
        """``expects_pods``: sidecars have pods that a watch will tell of (not so with plain files)."""
        self.world = world
        self.connections = Connections()
        self.context: PushContext | None = None
        self.views: dict[ProxyClass, ClassView] = {}
        self._clock = clock
        self._metrics = metrics
        self._debounce = Debounce(debounce_after_s, debounce_max_s)
        self._after_s = debounce_after_s if debounce_endpoints else 0.0
        self._endpoint_changes: set[ServiceKey] = set()
        self._endpoints_due: float | None = None
        self._endpoints_since = 0.0
        self._last_endpoint_push = 0.0
        self._endpoint_serial = 0
        self._expects_pods = expects_pods
        self._attached: dict[str, Attached] = {}
        self.cache = EndpointCache(world, metrics)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="translate")
        self._wake = asyncio.Event()
        self._built = asyncio.Event()
        self._building = asyncio.Lock()
        self.started = False

    # --- changes come in ----------------------------------------------------------------------------

    def start(self) -> None:
        """All sources have been read once: build the first snapshot."""
        self.started = True
        now = self._clock.monotonic()
        self._note(PushRequest(full=True, reasons=frozenset({"start"}), since_s=now), at_once=True)

    def changed(self, change: Change) -> None:
        """The world's listener."""
        if not self.started:
            return
        self._metrics.inbound_updates.labels(change.reason).inc()
        now = self._clock.monotonic()
        keys: set[Key | str] = set(change.keys)
        keys |= {Key("Workload", namespace, name) for namespace, name in change.workloads}
        for key in change.endpoints:
            if self._facts_changed(key):
                keys.add(key.hostname)
            if not self._endpoint_changes:
                self._endpoints_since = now
                # An isolated change leaves at once; a flood is collected.
                quiet = now - self._last_endpoint_push >= self._after_s
                self._endpoints_due = now if quiet else now + self._after_s
            self._endpoint_changes.add(key)
        if keys or change.everything:
            reasons = frozenset({change.reason})
            full_change = frozenset(keys) if not change.everything else frozenset({"*"})
            self._note(PushRequest(full_change, True, reasons, now))
        self._wake.set()

    def _note(self, request: PushRequest, at_once: bool = False) -> None:
        now = self._clock.monotonic()
        self._debounce.add(request, now - self._debounce.max_s if at_once else now)
        self._wake.set()

    def _facts_changed(self, key: ServiceKey) -> bool:
        if self.context is None:
            return False
        service = self.context.registry.service(*key)
        if service is None or service.namespace != key.namespace:
            return False
        fresh = derive_facts(service, self.world.registry.endpoints.endpoints(*key))
        return fresh != self.context.facts_of(service)

    # --- the push task ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Push until cancelled."""
        while True:
            due = self._next_due()
            try:
                delay = None if due is None else max(0.0, due - self._clock.monotonic())
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            await self._push_due()

    def _next_due(self) -> float | None:
        times = [t for t in (self._debounce.due_s(), self._endpoints_due) if t is not None]
        return min(times, default=None)

    async def _push_due(self) -> None:
        now = self._clock.monotonic()
        if self._endpoints_due is not None and now >= self._endpoints_due:
            await self._push_endpoints()
        request = self._debounce.take(now)
        if request is not None:
            self._metrics.debounce_time.observe(max(0.0, now - request.since_s))
            await self._push_full(request)

    async def _push_endpoints(self) -> None:
        changed, self._endpoint_changes = self._endpoint_changes, set()
        self._endpoints_due = None
        self._last_endpoint_push = self._clock.monotonic()
        self._endpoint_serial += 1
        self._metrics.push_triggers.labels("endpoint").inc()
        names_of: dict[int, frozenset[str]] = {}
        woken = []
        for attached in self._attached.values():
            view = attached.view
            if view is None:
                continue
            names = names_of.get(id(view))
            if names is None:
                found = view.endpoints.by_service
                names = frozenset(c for key in changed for c in found.get(key, ()))
                names_of[id(view)] = names
            if names:
                snapshot = self._snapshot(attached, view)
                attached.connection.offer(snapshot, {EDS_TYPE: names}, self._endpoints_since)
                woken.append(attached.connection)
        log.debug("endpoints changed", services=len(changed), proxies=len(woken))
        await self.connections.wake(woken)

    async def _push_full(self, request: PushRequest) -> None:
        async with self._building:
            await self._build(request)
        assert self.context is not None
        for reason in request.reasons:
            self._metrics.push_triggers.labels(reason).inc()
        concerned = self._concerned(request)
        await self._attach(concerned)
        woken = []
        for attached in concerned:
            if attached.view is not None and attached.connection.id in self._attached:
                snapshot = self._snapshot(attached, attached.view)
                attached.connection.offer(snapshot, None, request.since_s)
                woken.append(attached.connection)
        log.info(
            "push",
            version=self.context.version,
            reasons=sorted(request.reasons),
            changes=_told(request.change),
            proxies=len(woken),
            classes=len(self.views),
        )
        await self.connections.wake(woken)

    def _concerned(self, request: PushRequest) -> list[Attached]:
        assert self.context is not None
        if not request.change or "*" in request.change:
            return list(self._attached.values())
        own = {
            (key.namespace, key.name)
            for key in request.change
            if isinstance(key, Key) and key.kind == "Workload"
        }
        rest = [k for k in request.change if not (isinstance(k, Key) and k.kind == "Workload")]
        answer = affected(rest, self.context)
        return [
            attached
            for attached in self._attached.values()
            if (attached.connection.proxy.namespace, attached.connection.proxy.workload) in own
            or (rest and answer.concerns(attached.connection.proxy))
        ]

    async def _build(self, request: PushRequest) -> None:
        """A new context, in the worker thread, of what is known at this moment."""
        started = self._clock.monotonic()
        world, previous = self.world, self.context
        registry = world.registry.snapshot()
        frozen = self._frozen()
        configs = list(world.configs.values())
        secrets, namespaces, mesh = dict(world.secrets), dict(world.namespaces), world.mesh
        networks, issuer_keys = world.networks, world.issuer_keys

        def build() -> PushContext:
            return build_push_context(
                mesh,
                registry,
                configs,
                secrets,
                previous,
                endpoints=frozen,
                namespaces=namespaces,
                networks=networks,
                issuer_keys=issuer_keys,
            )

        self.context = await self._in_worker(build)
        self._built.set()
        self._metrics.context_init.observe(self._clock.monotonic() - started)
        self._metrics.services.set(len(self.context.services))
        self._metrics.virtual_services.set(len(self.context.virtual_services))
        self._metrics.rejected_configs.set(
            sum(1 for key in world.findings if key not in world.configs)
        )

    def _frozen(self) -> FrozenEndpoints:
        index = self.world.registry.endpoints
        return FrozenEndpoints({key: index.endpoints(*key) for key in index.shards()})

    async def _attach(self, chosen: list[Attached]) -> None:
        """Give these connections the view of their class in the current context."""
        context = self.context
        assert context is not None
        proxies = [attached.connection.proxy for attached in chosen]
        classes = await self._in_worker(lambda: [class_key(context, p) for p in proxies])
        fresh: dict[ProxyClass, ClassView] = {}
        for proxy_class in dict.fromkeys(classes):
            known = self.views.get(proxy_class)
            if known is not None and known.context is context:
                fresh[proxy_class] = known
            else:
                fresh[proxy_class] = await self._view(context, proxy_class)
        for attached, proxy_class in zip(chosen, classes, strict=True):
            attached.view = fresh[proxy_class]
        self.views.update(fresh)
        used = {id(a.view) for a in self._attached.values()}
        self.views = {c: v for c, v in self.views.items() if id(v) in used}
        self._metrics.set_envoy_filters(view.patches for view in self.views.values())
        self.cache.retain(
            {need for view in self.views.values() for need in view.endpoints.needs.values()}
        )

    async def _view(self, context: PushContext, proxy_class: ProxyClass) -> ClassView:
        """Translate and encode; what did not change since the class's last view keeps its objects."""
        known = self.views.get(proxy_class)
        frozen = self._frozen()
        index = self.world.registry.endpoints
        versions = {key: index.version(*key) for key in frozen.held}

        def make() -> ClassView:
            record = PatchRecord()
            ir = translate(context, proxy_class)
            encoded = encode(ir, record)
            ir = replace(ir, findings=ir.findings + record.findings)
            types: dict[str, Mapping[str, Resource]] = {}
            for type_url in TYPES:
                mapping = {r.name: r for r in encoded.get(type_url, ())}
                before = known.types[type_url] if known else None
                types[type_url] = before if before == mapping and before is not None else mapping
            needs = ir.needs()
            self.cache.warm(needs.values(), frozen, versions)
            if known is not None and known.endpoints.needs == needs:
                return ClassView(context, proxy_class, ir, types, known.endpoints, record)
            return ClassView(
                context, proxy_class, ir, types, EndpointView(needs, self.cache), record
            )

        made = await self._in_worker(make)
        wrong = sum(finding.code in SECRET_CODES for finding in made.ir.findings)
        if wrong and (known is None or known.ir.findings != made.ir.findings):
            self._metrics.secret_errors.inc(wrong)
        return made

    def _snapshot(self, attached: Attached, view: ClassView) -> Snapshot:
        """The class's resources, less the listeners that this one pod must not get."""
        types = dict(view.types)
        for address in attached.connection.proxy.addresses:
            hidden = overlay_for(view.ir, address)
            if hidden:
                listeners = {n: r for n, r in types[LDS_TYPE].items() if n not in hidden}
                known = attached.connection.snapshot.types.get(LDS_TYPE)
                types[LDS_TYPE] = known if known == listeners and known is not None else listeners
        types[EDS_TYPE] = view.endpoints
        version = self.context.version if self.context else ""
        return Snapshot(f"{version}/{self._endpoint_serial}", types)

    async def _in_worker(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    # --- connections come and go --------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait for the first snapshot: all that there is has been read."""
        await self._built.wait()

    async def joined(self, connection: Connection) -> Snapshot:
        """What a new proxy should have. Waits for the first snapshot, and for news of its own pod."""
        await self.ready()
        await self._await_workload(connection.proxy)
        connection.proxy = self._refined(connection.proxy)
        attached = Attached(connection)
        self._attached[connection.id] = attached
        try:
            while True:
                context = self.context
                await self._attach([attached])
                # A push that ran meanwhile may have counted on this connection not being there yet.
                if context is self.context:
                    break
        except BaseException:
            self._attached.pop(connection.id, None)
            raise
        assert attached.view is not None
        return self._snapshot(attached, attached.view)

    def left(self, connection: Connection) -> None:
        """The stream has ended; its class goes with its last proxy, at the next push."""
        self._attached.pop(connection.id, None)

    async def _await_workload(self, proxy: Proxy) -> None:
        """A sidecar may connect before the watch tells of its pod; its inbound listeners depend on it."""
        deadline = self._clock.monotonic() + WORKLOAD_WAIT_S
        namespace, name = proxy.namespace, proxy.workload
        expects = self._expects_pods and proxy.type is NodeType.SIDECAR
        while expects and self.world.registry.workload(namespace, name) is None:
            if self._clock.monotonic() >= deadline:
                log.info("proxy without a known pod", node=proxy.id)
                return
            await asyncio.sleep(0.02)
        # Whatever waits for its quiet moment may concern this very pod: build now.
        if self._debounce.due_s() is not None and self.context is not None:
            known = self.context.registry.workload(proxy.addresses[0], namespace, name)
            if known != self.world.registry.workload(namespace, name):
                self._note(PushRequest(full=True, since_s=self._clock.monotonic()), at_once=True)
                async with self._building:
                    await self._build(PushRequest())

    def _refined(self, proxy: Proxy) -> Proxy:
        """The platform knows a pod's labels and place better than the proxy's own metadata."""
        workload = self.world.registry.workload(proxy.namespace, proxy.workload)
        if workload is None:
            return proxy
        return replace(
            proxy,
            labels=workload.labels,
            # A proxy that compares zones leaves its subzone out.
            locality=workload.locality
            if workload.locality.startswith(proxy.locality)
            else proxy.locality,
            workload_name=proxy.workload_name or workload.workload_name,
            network=proxy.network or workload.network,
        )

    # --- people ask ---------------------------------------------------------------------------------

    def view_of(self, connection: Connection) -> ClassView | None:
        """What a connection has."""
        attached = self._attached.get(connection.id)
        return attached.view if attached else None

    def rejected(self, connection: Connection, event: Rejected) -> Mapping[str, object]:
        """Origins of the resources in a refused response."""
        view = self.view_of(connection)
        if view is None:
            return {}
        found = origins(view.ir, set(event.names))
        # A patch may be what made it wrong.
        found += [str(origin) for patch in view.patches.applied for origin in patch.origins][:10]
        return {"resources": list(event.names[:10]), "origins": found}

    def close(self) -> None:
        """Stop the worker."""
        self._worker.shutdown(wait=False, cancel_futures=True)


def origins(ir: ProxyIR, names: set[str]) -> list[str]:
    """Objects and lines that led to these resources."""
    found: dict[str, None] = {}
    for group in (ir.clusters, ir.listeners, ir.routes, ir.secrets):
        for value in group:
            if getattr(value, "name", "") in names:
                found.update((str(origin), None) for origin in getattr(value, "origins", ()))
    return list(found)[:10]


def _told(change: Iterable[Key | str]) -> list[str]:
    """A few of the changes, for a log line."""
    texts = sorted(
        key if isinstance(key, str) else f"{key.kind}/{key.namespace}/{key.name}" for key in change
    )
    return texts[:5] + ([f"and {len(texts) - 5} more"] if len(texts) > 5 else [])
