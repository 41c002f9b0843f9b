"""Tell people, in the objects' own status, what is wrong with them.

In: findings of validation and analysis, and the statuses as watches report them. Out: merge patches of the
``status`` subresource, only where something differs, a few each second, by the elected replica alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.adapters.leader import Leader
from meltemi.adapters.world import World
from meltemi.analyze.analysis import analyze
from meltemi.analyze.messages import MESSAGES
from meltemi.config.kinds import KINDS
from meltemi.kit.clock import Clock
from meltemi.kit.limits import TokenBucket
from meltemi.model.config import Key
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.origin import Finding

log = structlog.get_logger("status")
SETTLE_S = 0.3
WRITES_PER_S, WRITES_BURST = 20.0, 50.0
MESSAGES_MAX = 20
Held = tuple[int, Mapping[str, Any]]  # generation, status


class StatusBook:
    """Statuses as the API server has them."""

    def __init__(self) -> None:
        self.held: dict[Key, Held] = {}
        self.changed: Callable[[], None] = lambda: None

    def note(self, key: Key, generation: int, status: Mapping[str, Any]) -> None:
        """An object was seen."""
        self.held[key] = (generation, status)
        self.changed()

    def drop(self, key: Key) -> None:
        """An object is gone: others may have depended on it."""
        if self.held.pop(key, None) is not None:
            self.changed()


def status_of(
    findings: Iterable[Finding],
    used: bool,
    generation: int,
    before: Mapping[str, Any],
    now: float,
    more: Mapping[str, Any] = EMPTY_MAP,
) -> dict[str, Any] | None:
    """The status that an object should have; None when ``before`` says the same. ``more`` is what its kind adds.

    Times are kept while the condition stays, so that an unchanged status is equal.
    """
    found = list(findings)[:MESSAGES_MAX]
    text = "istiod uses this object" if used else "istiod cannot use this object as it is"
    if found:
        text += "; see validationMessages"
    condition = {
        "type": "Reconciled",
        "status": "True" if used else "False",
        "reason": "InUse" if used else "Invalid",
        "message": text,
    }
    wanted: dict[str, Any] = {
        "observedGeneration": str(generation),
        "validationMessages": [_message(finding) for finding in found],
        **more,
    }
    conditions = [c for c in before.get("conditions") or () if isinstance(c, Mapping)]
    old = next((c for c in conditions if c.get("type") == "Reconciled"), {})
    same = all(old.get(name) == value for name, value in condition.items())
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    moved = old.get("status") != condition["status"]
    condition["lastTransitionTime"] = stamp if moved else old.get("lastTransitionTime", stamp)
    condition["lastProbeTime"] = old.get("lastProbeTime", stamp) if same else stamp
    rest = [dict(c) for c in conditions if c.get("type") != "Reconciled"]
    wanted["conditions"] = [condition, *rest]
    if same and all(
        _equal(before.get(name), wanted[name]) for name in wanted if name != "conditions"
    ):
        return None
    return wanted


def _equal(held: Any, wanted: Any) -> bool:
    if isinstance(wanted, str):
        return str(held) == wanted
    return bool((held or []) == (wanted or []))


def _message(finding: Finding) -> dict[str, Any]:
    """One entry of ``validationMessages``: Istio's form, and the text."""
    known = MESSAGES.get(finding.code)
    name = known.name if known is not None else "SchemaValidationError"
    text = f"{finding.origin.path}: {finding.text}" if finding.origin.path else finding.text
    if finding.remedy:
        text += f" ({finding.remedy})"
    return {
        "type": {"name": name, "code": finding.code},
        "level": finding.level.value.upper(),
        "documentationUrl": f"https://istio.io/latest/docs/reference/config/analysis/{finding.code.lower()}/",
        "message": text,
    }


class StatusWriter:
    """The task."""

    def __init__(
        self, world: World, book: StatusBook, api: KubeApi, leader: Leader, clock: Clock
    ) -> None:
        self._world = world
        self._book = book
        self._api = api
        self._leader = leader
        self._clock = clock
        self._wake = asyncio.Event()
        self._bucket = TokenBucket(WRITES_PER_S, WRITES_BURST)
        book.changed = self.wake

    def wake(self) -> None:
        """Something changed that findings may depend on."""
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._leader.became.wait()
            await self._wake.wait()
            # Changes come in groups (kubectl apply of a folder): look at all of them once.
            await asyncio.sleep(SETTLE_S)
            self._wake.clear()
            await self._round()

    async def _round(self) -> None:
        findings = await self._findings()
        for key, (generation, before) in list(self._book.held.items()):
            used = key in self._world.configs
            wanted = status_of(
                findings.get(key, ()),
                used,
                generation,
                before,
                self._clock.now(),
                self._addresses(key),
            )
            if wanted is None:
                continue
            if not self._leader.leading:
                return
            pause = self._bucket.wait_s(self._clock.monotonic())
            if pause:
                await asyncio.sleep(pause)
            await self._write(key, wanted)

    def _addresses(self, key: Key) -> Mapping[str, Any]:
        """A ServiceEntry's automatic addresses: from now on they are its own."""
        config = self._world.configs.get(key)
        if key.kind != "ServiceEntry" or config is None:
            return EMPTY_MAP
        return {"addresses": self._world.registry.status_addresses(config)}

    async def _findings(self) -> dict[Key, list[Finding]]:
        world = self._world
        configs, registry, mesh = (
            list(world.configs.values()),
            world.registry.snapshot(),
            world.mesh,
        )
        analysed = await asyncio.to_thread(
            analyze, configs, registry, mesh, False, world.settings.domain
        )
        found: dict[Key, list[Finding]] = {key: list(own) for key, own in world.findings.items()}
        for finding in analysed:
            place = finding.origin
            found.setdefault(Key(place.kind, place.namespace, place.name), []).append(finding)
        return found

    async def _write(self, key: Key, status: Mapping[str, Any]) -> None:
        info = KINDS[key.kind]
        path = collection(info.api_version, info.plural, key.namespace, key.name)
        try:
            await self._api.merge_patch(f"{path}/status", {"status": dict(status)})
        except KubeError as error:
            # Gone, or not allowed: the next change looks again.
            log.warning("status not written", object=str(key), error=str(error))
            return
        log.debug("status written", kind=key.kind, namespace=key.namespace, name=key.name)
