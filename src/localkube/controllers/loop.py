"""The common shape of a controller: informer events -> keys -> plan -> actions.

In: a subclass that says which objects concern it and how to decide. Out: a running queue.
"""

import abc
from typing import Any

from localkube.client import ResourceType, object_key
from localkube.controllers.actions import Executor, Plan
from localkube.controllers.cache import Cache
from localkube.controllers.pods import controller_of
from localkube.kit.workqueue import WorkQueue

Object = dict[str, Any]


class Controller(abc.ABC):
    """Reconciles the objects of one resource. `plan` must be a pure reading of the cache."""

    name: str
    resource: ResourceType
    workers = 2

    def __init__(self, cache: Cache, executor: Executor) -> None:
        self.cache = cache
        self.executor = executor
        self.queue = WorkQueue(self.name, self.reconcile, self.workers)
        self.watch(cache)

    def watch(self, cache: Cache) -> None:
        """Register for changes; the default: every change of an object queues its key."""
        cache.of(self.resource).on_change(self.enqueue)

    @abc.abstractmethod
    def plan(self, key: str) -> Plan | None:
        """Decide what to do about one object. None: nothing."""

    async def reconcile(self, key: str) -> float | None:
        """Decide and act; returns when to look again."""
        plan = self.plan(key)
        if plan is None:
            return None
        await self.executor.run(plan.actions)
        return plan.again_after

    def enqueue(self, old: Object | None, new: Object | None) -> None:
        """Informer handler: this object itself."""
        obj = new if new is not None else old
        if obj is not None:
            self.queue.add(object_key(obj))

    def enqueue_owner(self, old: Object | None, new: Object | None) -> None:
        """Informer handler: the objects of our kind that control(led) this one."""
        for obj in (old, new):
            if obj is None:
                continue
            owner = controller_of(obj)
            if owner is not None and owner["kind"] == self.resource.kind:
                self.queue.add(f"{obj['metadata']['namespace']}/{owner['name']}")

    def start(self) -> None:
        """Begin to work; the cache is synced."""
        self.queue.start()

    async def close(self) -> None:
        """Stop working."""
        await self.queue.close()
