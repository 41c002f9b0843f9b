"""Register machines: WorkloadEntries for the proxies that are connected here and name a WorkloadGroup.

In: connections as they come and go, what agents report of health, and the world. Out: WorkloadEntries, through the API server.
Each entry is brought to what it should be whenever something of it changes, so that a lost write, another istiod or a hand in
between does not matter. An entry that another istiod has taken over is left to it; the leader looks after those of an istiod that
is gone. What an entry says is decided in ``registry.registration``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from meltemi.adapters.discovery_connections import Connection
from meltemi.adapters.discovery_grpc import NotYet
from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.world import Change, World
from meltemi.ca.identity import NotPermitted
from meltemi.config.kinds import KINDS
from meltemi.kit.backoff import Backoff
from meltemi.kit.clock import Clock
from meltemi.model.config import AnyConfig, Key
from meltemi.model.proxy import Proxy
from meltemi.registry import registration

log = structlog.get_logger("registration")
GRACE_S = 10.0
SWEEP_GRACES = 10  # every so many grace periods all entries are looked at
MESSAGE_MAX = 1024
HEALTH_PAUSE_S = 0.2  # an entry's health is written no more often, however often it is told


class Leading(Protocol):
    """Whether this replica is the leader."""

    @property
    def leading(self) -> bool:
        """It is."""
        ...


@dataclass(eq=False, slots=True)
class Machine:
    """A machine whose proxy is connected here; ``since`` is when its newest stream began."""

    proxy: Proxy
    since: float
    streams: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent found, and the stream on which it said so."""

    stream: str
    problem: str | None


class Registrar:
    """One per process. ``api`` None: there is nowhere to write entries to, and machines are refused."""

    def __init__(
        self,
        world: World,
        api: KubeApi | None,
        clock: Clock,
        metrics: Metrics,
        pod: str,
        namespace: str = "istio-system",
        grace_s: float = GRACE_S,
    ) -> None:
        """``pod`` and ``namespace`` are istiod's own. ``grace_s``: an entry outlives its machine's connection for so long."""
        self._world = world
        self._api = api
        self._clock = clock
        self._count = metrics.registrations
        self._pod, self._namespace = pod, namespace
        self._grace_s = grace_s
        self._started = clock.now()
        self._machines: dict[Key, Machine] = {}
        self._left: set[Key] = set()
        self._reports: dict[Key, Report] = {}
        self._unsaid: set[Key] = set()
        self._written: dict[Key, float] = {}
        self._due: dict[Key, float] = {}
        self._wake = asyncio.Event()
        self._backoff = Backoff(0.2, 10.0)
        self.leader: Leading | None = None
        world.watchers.append(self.changed)

    # --- what happens -------------------------------------------------------------------------------

    def joined(self, connection: Connection) -> None:
        """A stream began. Names its WorkloadEntry in ``connection.proxy``. Raises NotPermitted or NotYet."""
        proxy = connection.proxy
        name = registration.entry_name(proxy)
        if not name:
            return
        group, who = registration.group_of(proxy), connection.identity
        kind = "WorkloadGroup" if group else "WorkloadEntry"
        found = self._world.configs.get(Key(kind, proxy.namespace, group or name))
        proven = (who.namespace, who.service_account) if who is not None else None
        why, waits = registration.refusal(proxy, proven, found)
        if why:
            raise NotYet(why) if waits else NotPermitted(why)
        if group and self._api is None:
            raise NotYet("this control plane has no API server to write WorkloadEntries to")
        connection.proxy = proxy = replace(proxy, entry=name)
        if not group or connection.is_agents:
            return
        key = _entry(proxy)
        machine = self._machines.setdefault(key, Machine(proxy, 0.0))
        machine.proxy, machine.since = proxy, connection.connected_at
        machine.streams.add(connection.id)
        self._look(key)

    def left(self, connection: Connection) -> None:
        """A stream has ended."""
        if not connection.proxy.entry:
            return
        key = _entry(connection.proxy)
        report = self._reports.get(key)
        if report is not None and report.stream == connection.id:
            # Another istiod may hear more of it.
            del self._reports[key]
            self._written.pop(key, None)
        machine = self._machines.get(key)
        if machine is not None:
            machine.streams.discard(connection.id)
            if not machine.streams:
                del self._machines[key]
                self._left.add(key)
                self._look(key)

    def health(self, connection: Connection, problem: str | None) -> None:
        """An agent reports. Pods' health is Kubernetes' own to say."""
        if connection.proxy.entry:
            key = _entry(connection.proxy)
            self._reports[key] = Report(connection.id, problem)
            self._unsaid.add(key)
            self._look(key)

    def changed(self, change: Change) -> None:
        """The world's watcher."""
        for key in change.keys:
            if isinstance(key, Key) and key.kind == "WorkloadEntry":
                self._look(key)
            elif isinstance(key, Key) and key.kind == "WorkloadGroup":
                for entry, machine in self._machines.items():
                    if (key.namespace, key.name) == (
                        entry.namespace,
                        registration.group_of(machine.proxy),
                    ):
                        self._look(entry)
        for namespace, name in change.workloads:
            # A status alone changes no key.
            if Key("WorkloadEntry", namespace, name) in self._world.configs:
                self._look(Key("WorkloadEntry", namespace, name))

    def _look(self, key: Key, at: float = 0.0) -> None:
        """Look at an entry then; at once by default."""
        self._due[key] = min(self._due.get(key, at), at)
        self._wake.set()

    # --- the task -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until cancelled."""
        if self._api is None:
            return
        swept = self._clock.monotonic()
        sweep_s = SWEEP_GRACES * self._grace_s
        while True:
            now, pause = self._clock.now(), swept + sweep_s - self._clock.monotonic()
            pause = min([pause, *(at - now for at in self._due.values())])
            try:
                async with asyncio.timeout(max(0.0, pause)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if self._clock.monotonic() - swept >= sweep_s:
                swept = self._clock.monotonic()
                self._look_at_all()
            await self._round()

    def _look_at_all(self) -> None:
        for key, config in self._world.configs.items():
            if key.kind == "WorkloadEntry" and registration.GROUP in config.meta.annotations:
                self._look(key)

    async def _round(self) -> None:
        now = self._clock.now()
        for key in [key for key, at in self._due.items() if at <= now]:
            del self._due[key]
            try:
                again = await self._settle(key)
            except KubeError as error:
                if error.code != 409:
                    self._count["errors"].inc()
                    log.warning(
                        "machine not registered",
                        entry=f"{key.namespace}/{key.name}",
                        error=str(error),
                    )
                self._look(key, self._clock.now() + self._backoff.next())
                continue
            self._backoff.reset()
            if again is not None:
                self._look(key, again)

    async def _settle(self, key: Key) -> float | None:
        """Bring one entry to what it should be; when to look at it again. Raises KubeError."""
        entry, machine, again = self._world.configs.get(key), self._machines.get(key), None
        if machine is not None:
            await self._claim(key, machine, entry)
        elif entry is not None:
            again = await self._release(key, entry)
        report = self._reports.get(key)
        if report is not None and entry is not None:
            known = entry.status.healthy is (report.problem is None)
            earliest = self._written.get(key, 0.0) + HEALTH_PAUSE_S
            if key in self._unsaid or not known:
                if self._clock.now() < earliest:
                    return earliest
                await self._write_health(key, report)
        return again

    async def _claim(self, key: Key, machine: Machine, entry: AnyConfig | None) -> None:
        """The machine is here: its entry says so."""
        if entry is not None and self._holds(entry.meta.annotations, machine):
            return
        group = self._world.configs.get(
            Key("WorkloadGroup", key.namespace, registration.group_of(machine.proxy))
        )
        if group is None:
            return
        wanted = registration.entry_of(group, machine.proxy, self._pod, machine.since)
        found = await self._read(key)
        assert self._api is not None
        if found is None:
            await self._api.json("POST", _path(key, whole=False), body=wanted)
            self._count["success"].inc()
            log.info(
                "machine registered", entry=f"{key.namespace}/{key.name}", node=machine.proxy.id
            )
            return
        annotations = _annotations(found)
        if self._holds(annotations, machine):
            return
        if annotations.get(registration.GROUP) != group.meta.name:
            log.warning(
                "machine not registered: a WorkloadEntry of its name is somebody else's",
                entry=str(key),
            )
            return
        patch = {"metadata": dict(wanted["metadata"]), "spec": wanted["spec"]}
        patch["metadata"]["annotations"] = {
            **wanted["metadata"]["annotations"],
            registration.DISCONNECTED: None,
        }
        await self._patch(key, found, patch)
        self._count["updates"].inc()
        log.info("machine is back", entry=f"{key.namespace}/{key.name}", node=machine.proxy.id)

    def _holds(self, annotations: Mapping[str, str], machine: Machine) -> bool:
        return registration.presence(annotations).held_by(self._pod, machine.since)

    async def _release(self, key: Key, entry: AnyConfig) -> float | None:
        """The machine is not here: its entry goes, after a while, unless another istiod has it."""
        state = registration.presence(entry.meta.annotations)
        now = self._clock.now()
        if not state.group:
            return None
        if state.since is not None:
            gone_at = self._abandoned_at(key, state)
            if gone_at is None or now < gone_at:
                return gone_at
            await self._mark_gone(key, now)
            self._left.discard(key)
            return None
        removal = registration.removal(state, self._grace_s)
        if removal is None or now < removal:
            return removal
        if state.controller == self._pod or (self.leader is not None and self.leader.leading):
            await self._remove(key)
        return None

    def _abandoned_at(self, key: Key, state: registration.Presence) -> float | None:
        """When an entry that says "connected" may be taken for abandoned; None while its istiod has it."""
        assert state.since is not None
        if state.controller == self._pod:
            # From before a restart: the machine may be about to come back.
            return 0.0 if key in self._left else self._started + self._grace_s
        known = self._world.registry.workload
        if (
            self.leader is not None
            and self.leader.leading
            and known(self._namespace, self._pod) is not None
            and known(self._namespace, state.controller) is None
        ):
            return state.since + self._grace_s
        return None

    async def _mark_gone(self, key: Key, now: float) -> None:
        found = await self._read(key)
        if found is None or key in self._machines:
            return
        seen = self._world.configs.get(key)
        before = registration.presence(seen.meta.annotations) if seen is not None else None
        if registration.presence(_annotations(found)) != before:
            return  # it has changed since; that change is about to be heard of
        stamps = {registration.CONNECTED: None, registration.DISCONNECTED: registration.stamp(now)}
        await self._patch(key, found, {"metadata": {"annotations": stamps}})
        self._count["unregister"].inc()
        log.info("machine left", entry=f"{key.namespace}/{key.name}")

    async def _remove(self, key: Key) -> None:
        found = await self._read(key)
        if found is None or key in self._machines:
            return
        removal = registration.removal(registration.presence(_annotations(found)), self._grace_s)
        if removal is None or self._clock.now() < removal:
            return
        meta = found["metadata"]
        condition = {name: meta[name] for name in ("uid", "resourceVersion") if name in meta}
        assert self._api is not None
        try:
            await self._api.request("DELETE", _path(key), body={"preconditions": condition})
        except KubeError as error:
            if error.code != 404:
                raise
        self._count["deletes"].inc()
        log.info("machine removed", entry=f"{key.namespace}/{key.name}")

    async def _write_health(self, key: Key, report: Report) -> None:
        found = await self._read(key)
        if found is None:
            return
        self._unsaid.discard(key)
        self._written[key] = self._clock.now()
        before = (found.get("status") or {}).get("conditions") or ()
        text = (report.problem or "")[:MESSAGE_MAX]
        fresh = registration.conditions_with_health(
            before, report.problem is None, text, self._clock.now()
        )
        try:
            await self._patch(key, found, {"status": {"conditions": fresh}}, "/status")
        except KubeError:
            self._unsaid.add(key)
            raise
        log.info(
            "health",
            entry=f"{key.namespace}/{key.name}",
            healthy=report.problem is None,
            problem=text,
        )

    # --- the API ------------------------------------------------------------------------------------

    async def _read(self, key: Key) -> dict[str, Any] | None:
        assert self._api is not None
        try:
            found: dict[str, Any] = await self._api.json("GET", _path(key))
        except KubeError as error:
            if error.code == 404:
                return None
            raise
        return found

    async def _patch(
        self, key: Key, found: Mapping[str, Any], patch: dict[str, Any], part: str = ""
    ) -> None:
        """Only if it is still as it was found: 409 otherwise."""
        assert self._api is not None
        version = found["metadata"]["resourceVersion"]
        patch["metadata"] = {**patch.get("metadata", {}), "resourceVersion": version}
        await self._api.merge_patch(_path(key) + part, patch)


def _entry(proxy: Proxy) -> Key:
    return Key("WorkloadEntry", proxy.namespace, proxy.entry)


def _path(key: Key, *, whole: bool = True) -> str:
    info = KINDS[key.kind]
    return collection(info.api_version, info.plural, key.namespace, key.name if whole else "")


def _annotations(found: Mapping[str, Any]) -> Mapping[str, str]:
    return found["metadata"].get("annotations") or {}
