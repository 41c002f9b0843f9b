"""Tell people, in the objects' own status, what is wrong with them.

In: findings of validation and analysis, and the statuses as watches report them. Out: the statuses that differ.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from meltemi.adapters.kube_api import collection
from meltemi.adapters.status_loop import StatusPatch
from meltemi.adapters.world import World
from meltemi.analyze.analysis import analyze
from meltemi.analyze.messages import MESSAGES
from meltemi.config.kinds import KINDS
from meltemi.model.config import Key
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.origin import Finding

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


async def object_statuses(
    world: World, book: StatusBook, now: Callable[[], float]
) -> AsyncIterator[StatusPatch]:
    """What to write for ``StatusLoop``; ``now`` in seconds since the epoch."""
    findings = await _findings(world)
    for key, (generation, before) in list(book.held.items()):
        used = key in world.configs
        wanted = status_of(
            findings.get(key, ()), used, generation, before, now(), _addresses(world, key)
        )
        if wanted is not None:
            info = KINDS[key.kind]
            path = collection(info.api_version, info.plural, key.namespace, key.name)
            yield StatusPatch(path, wanted, f"{key.kind}/{key.name}.{key.namespace}")


def _addresses(world: World, key: Key) -> Mapping[str, Any]:
    """A ServiceEntry's automatic addresses: from now on they are its own."""
    config = world.configs.get(key)
    if key.kind != "ServiceEntry" or config is None:
        return EMPTY_MAP
    return {"addresses": world.registry.status_addresses(config)}


async def _findings(world: World) -> dict[Key, list[Finding]]:
    configs, registry, mesh = list(world.configs.values()), world.registry.snapshot(), world.mesh
    analysed = await asyncio.to_thread(
        analyze, configs, registry, mesh, False, world.settings.domain
    )
    found: dict[Key, list[Finding]] = {key: list(own) for key, own in world.findings.items()}
    for finding in analysed:
        place = finding.origin
        found.setdefault(Key(place.kind, place.namespace, place.name), []).append(finding)
    return found
