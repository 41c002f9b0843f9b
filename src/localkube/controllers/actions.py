"""What a controller decides to do, as values, and the one place that does it.

In: a `Plan`, made by a pure function from cached objects and the time. Out: requests. Promises:
actions run in their order, neighbouring creations (and deletions) together; every answer goes into
the cache at once, so that the next plan for the key cannot repeat what this one did; deleting what
is gone already is a success; a conflict means that a newer state is on its way: the key is retried.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

from localkube.client import ApiClient, ApiStatusError, PatchType, ResourceType
from localkube.controllers.cache import Cache
from localkube.controllers.events import EventRecorder

Object = dict[str, Any]
_TOGETHER: Final = 16  # requests in flight for one plan


@dataclass(frozen=True)
class Create:
    """POST an object; with `name` and `subresource`, to that. `exists_ok`: it may be there.
    `told_to`: whose events shall say so, and by which component."""

    resource: ResourceType
    object: Object
    name: str | None = None
    subresource: str | None = None
    exists_ok: bool = False
    told_to: tuple[Object, str] | None = None


@dataclass(frozen=True)
class Update:
    """Replace an object (its resourceVersion is the precondition)."""

    resource: ResourceType
    object: Object
    subresource: str | None = None


@dataclass(frozen=True)
class Patch:
    """Change some fields of `target` (merge patch), only while it is the same object."""

    resource: ResourceType
    target: Object
    patch: Object
    subresource: str | None = None
    guarded: bool = False  # only while it also has the same resourceVersion


@dataclass(frozen=True)
class Delete:
    """Delete `target`, only while it is the same object."""

    resource: ResourceType
    target: Object
    propagation: str | None = None
    grace_seconds: int | None = None


@dataclass(frozen=True)
class Note:
    """An Event about `target` for people: type Normal or Warning, a CamelCase reason, a text."""

    target: Object
    type: str
    reason: str
    message: str
    component: str


Action = Create | Update | Patch | Delete | Note


@dataclass(frozen=True)
class Plan:
    """The decision for one key; `again_after` asks for a new decision after so many seconds."""

    actions: Sequence[Action] = ()
    again_after: float | None = None


@dataclass
class PlanBuilder:
    """Collects a Plan."""

    actions: list[Action] = field(default_factory=list)
    again_after: float | None = None

    def add(self, *actions: Action | None) -> None:
        """Append actions; None is ignored."""
        self.actions.extend(action for action in actions if action is not None)

    def again(self, seconds: float) -> None:
        """Decide anew after so many seconds, or earlier."""
        if self.again_after is None or seconds < self.again_after:
            self.again_after = max(0.0, seconds)

    def plan(self) -> Plan:
        """The finished plan."""
        return Plan(tuple(self.actions), self.again_after)


def status_patch(resource: ResourceType, obj: Object, status: Object) -> Patch | None:
    """The patch that makes `status` the object's status, or None if it is that already."""
    old = obj.get("status") or {}
    changed = {name: value for name, value in status.items() if old.get(name) != value}
    changed |= {name: None for name in old if name not in status}
    if not changed:
        return None
    return Patch(resource, obj, {"status": changed}, subresource="status")


class Executor:
    """Carries out plans with one API client."""

    def __init__(self, client: ApiClient, cache: Cache, recorder: EventRecorder) -> None:
        self.client = client
        self._cache = cache
        self.recorder = recorder

    async def run(self, actions: Iterable[Action]) -> None:
        """Do all of it; raises the first ApiStatusError or ApiConnectionError."""
        for kind, group in groupby(actions, key=type):
            batch = list(group)
            if kind in (Create, Delete) and len(batch) > 1:
                await self._together(batch)
            else:
                for action in batch:
                    await self._one(action)

    async def _together(self, batch: list[Action]) -> None:
        limit = asyncio.Semaphore(_TOGETHER)

        async def limited(action: Action) -> None:
            async with limit:
                await self._one(action)

        results = await asyncio.gather(*map(limited, batch), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _one(self, action: Action) -> None:
        match action:
            case Create():
                await self._create(action)
            case Update(resource, obj, subresource):
                answer = await self.client.update(resource, obj, subresource=subresource)
                self._cache.offer(resource, answer)
            case Patch():
                await self._patch(action)
            case Delete():
                await self._delete(action)
            case Note(target, kind, reason, message, component):
                self.recorder.record(target, kind, reason, message, component)

    async def _create(self, action: Create) -> None:
        try:
            answer = await self.client.create(
                action.resource,
                action.object,
                name=action.name,
                subresource=action.subresource,
            )
        except ApiStatusError as error:
            if error.already_exists and action.exists_ok:
                return
            if error.code == 403 and "being terminated" in error.message:
                return  # its namespace is on its way out, and so is whoever wanted this
            raise
        if action.subresource is None:
            self._cache.offer(action.resource, answer)
        if action.told_to is not None:
            owner, component = action.told_to
            text = f"Created {action.resource.kind.lower()}: {answer['metadata']['name']}"
            self.recorder.record(owner, "Normal", "SuccessfulCreate", text, component)

    async def _patch(self, action: Patch) -> None:
        meta = action.target["metadata"]
        guard: Object = {"uid": meta["uid"]}
        if action.guarded:
            guard["resourceVersion"] = meta["resourceVersion"]
        patch = {**action.patch, "metadata": {**action.patch.get("metadata", {}), **guard}}
        try:
            answer = await self.client.patch(
                action.resource,
                meta["name"],
                patch,
                meta.get("namespace"),
                type=PatchType.MERGE,
                subresource=action.subresource,
            )
        except ApiStatusError as error:
            if error.not_found:
                return
            raise
        self._cache.offer(action.resource, answer)

    async def _delete(self, action: Delete) -> None:
        meta = action.target["metadata"]
        try:
            answer = await self.client.delete(
                action.resource,
                meta["name"],
                meta.get("namespace"),
                uid=meta["uid"],
                propagation_policy=action.propagation,
                grace_period_seconds=action.grace_seconds,
            )
        except ApiStatusError as error:
            if error.not_found or error.conflict:
                return  # gone, or another object has the name now
            raise
        if answer.get("metadata", {}).get("deletionTimestamp"):
            answer.setdefault("apiVersion", action.resource.api_version)
            answer.setdefault("kind", action.resource.kind)
            self._cache.offer(action.resource, answer)
