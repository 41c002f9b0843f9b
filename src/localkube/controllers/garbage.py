"""Garbage collection by ownerReferences: background, foreground and orphan deletion.

In: every object the API server serves, custom ones included, and each deletion. Out: deletion of
dependents whose owners are all gone; the end of owners that wait for their dependents; dependents
without the reference to an owner that was deleted with `orphan`. An owner counts as gone only
after the server has said so. Source: the Kubernetes documentation "Garbage Collection" and
"Use Cascading Deletion in a Cluster".
"""

import asyncio
from typing import Any, Final

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError, ResourceType
from localkube.controllers.actions import Executor, Patch
from localkube.controllers.cache import Cache
from localkube.controllers.discovery import Discovery
from localkube.controllers.ownership import (
    FOREGROUND,
    ORPHAN,
    Node,
    OwnerGraph,
    blocks,
    sort_owners,
)
from localkube.kit.tasks import Tasks
from localkube.kit.workqueue import WorkQueue

Object = dict[str, Any]
_DISCOVERY_POLL: Final = 0.5  # seconds between looks at whether CRDs have changed


class GarbageCollector:
    """See the module's docstring."""

    name = "garbage-collector"

    def __init__(
        self, client: ApiClient, cache: Cache, executor: Executor, discovery: Discovery
    ) -> None:
        self._client = client
        self._cache = cache
        self._executor = executor
        self._discovery = discovery
        self._graph = OwnerGraph()
        self._watched: set[ResourceType] = set()
        self._kinds: dict[tuple[str, str], ResourceType] = {}
        self._dependents = WorkQueue("gc-dependents", self._check_dependent, workers=4)
        self._owners = WorkQueue("gc-owners", self._check_owner, workers=2)
        self._tasks = Tasks(self.name)
        self._log = structlog.get_logger("localkube.controller").bind(controller=self.name)

    def start(self) -> None:
        """Begin to watch and collect."""
        self._tasks.spawn("follow discovery", self._follow_discovery, restart=True)

    async def close(self) -> None:
        """Stop."""
        await self._tasks.close()
        await self._dependents.close()
        await self._owners.close()

    async def _follow_discovery(self) -> None:
        """Watch every resource; when CRDs come and go, watch more or fewer."""
        generation = -1
        queues_started = False
        while True:
            if self._discovery.generation != generation:
                generation = self._discovery.generation
                try:
                    await self._watch(await self._discovery.collectable())
                except (ApiStatusError, ApiConnectionError) as error:
                    generation = -1
                    self._log.info("discovery failed, will retry", error=str(error))
                if not queues_started and generation >= 0:
                    queues_started = True
                    for node in self._graph.owned():
                        self._dependents.add(node.uid)
                    self._dependents.start()
                    self._owners.start()
            await asyncio.sleep(_DISCOVERY_POLL)

    async def _watch(self, resources: list[ResourceType]) -> None:
        wanted = set(resources)
        self._kinds = {(r.group, r.kind): r for r in resources}
        for resource in self._watched - wanted:
            self._watched.discard(resource)
            await self._cache.drop(resource)
        fresh = wanted - self._watched
        for resource in fresh:
            self._watched.add(resource)
            self._cache.of(resource).on_change(self._handler(resource))
        for resource in fresh:
            try:
                await self._cache.of(resource).wait_synced(10)
            except TimeoutError:
                self._log.warning("not listed yet", resource=resource.plural)

    def _handler(self, resource: ResourceType) -> Any:
        def handler(old: Object | None, new: Object | None) -> None:
            if new is None:
                if old is not None:
                    self._gone(old)
                return
            self._graph.put(resource, new)
            uid = new["metadata"]["uid"]
            if new["metadata"].get("deletionTimestamp"):
                self._owners.add(uid)
            if new["metadata"].get("ownerReferences") and (
                old is None or _references(old) != _references(new)
            ):
                self._dependents.add(uid)

        return handler

    def _gone(self, obj: Object) -> None:
        uid = obj["metadata"]["uid"]
        node = self._graph.get(uid)
        self._graph.remove(uid)
        for dependent in self._graph.dependents(uid):
            self._dependents.add(dependent.uid)
        for reference in node.owners if node is not None else []:
            self._owners.add(reference["uid"])

    # -- dependents --------------------------------------------------------------------------

    async def _check_dependent(self, uid: str) -> float | None:
        node = self._graph.get(uid)
        if node is None or not node.owners:
            return None
        if node.deleting and not node.waits_for_dependents:
            return None
        absent = set()
        for reference in node.owners:
            if self._graph.get(reference["uid"]) is None and await self._absent(node, reference):
                absent.add(reference["uid"])
        solid, dangling, waiting = sort_owners(node, self._graph, absent)
        if not dangling and not waiting:
            return None
        if solid:
            await self._keep_only(node, solid)
        elif waiting and self._graph.dependents(uid):
            await self._delete(node, "Foreground")
        elif waiting:
            await self._delete(node, "Background")
        else:
            await self._delete(node, _policy(node))
        return None

    async def _absent(self, dependent: Node, reference: Object) -> bool:
        """Whether the server says that this owner does not exist (any more)."""
        group, _, _ = str(reference["apiVersion"]).rpartition("/")
        resource = self._kinds.get((group, reference["kind"]))
        if resource is None:
            return False  # a kind that nobody serves now; it may come back
        namespace = dependent.object["metadata"].get("namespace")
        if resource.namespaced and not namespace:
            return False  # a cluster-scoped object cannot have a namespaced owner: leave it alone
        try:
            owner = await self._client.get(
                resource, reference["name"], namespace if resource.namespaced else None
            )
        except ApiStatusError as error:
            if error.not_found:
                return True
            raise
        return bool(owner["metadata"]["uid"] != reference["uid"])

    async def _keep_only(self, node: Node, references: list[Object]) -> None:
        patch = {"metadata": {"ownerReferences": references}}
        await self._executor.run([Patch(node.resource, node.object, patch, guarded=True)])

    async def _delete(self, node: Node, propagation: str) -> None:
        meta = node.object["metadata"]
        try:
            await self._client.delete(
                node.resource,
                meta["name"],
                meta.get("namespace"),
                uid=meta["uid"],
                propagation_policy=propagation,
            )
        except ApiStatusError as error:
            if not error.not_found and not error.conflict:
                raise

    # -- owners ------------------------------------------------------------------------------

    async def _check_owner(self, uid: str) -> float | None:
        node = self._graph.get(uid)
        if node is None or not node.deleting:
            return None
        dependents = self._graph.dependents(uid)
        if node.orphans_dependents:
            for dependent in dependents:
                await self._release(dependent, uid)
            await self._remove_finalizer(node, ORPHAN)
        elif node.waits_for_dependents:
            for dependent in dependents:
                self._dependents.add(dependent.uid)
            if not any(blocks(dependent, uid) for dependent in dependents):
                await self._remove_finalizer(node, FOREGROUND)
        return None

    async def _release(self, dependent: Node, owner_uid: str) -> None:
        kept = [ref for ref in dependent.owners if ref["uid"] != owner_uid]
        patch = {"metadata": {"ownerReferences": kept or None}}
        await self._executor.run([Patch(dependent.resource, dependent.object, patch, guarded=True)])

    async def _remove_finalizer(self, node: Node, finalizer: str) -> None:
        kept = [name for name in node.finalizers if name != finalizer]
        patch = {"metadata": {"finalizers": kept or None}}
        await self._executor.run([Patch(node.resource, node.object, patch, guarded=True)])


def _references(obj: Object) -> list[Object]:
    return list(obj["metadata"].get("ownerReferences") or [])


def _policy(node: Node) -> str:
    """A dependent that was itself marked for a kind of deletion keeps it."""
    if ORPHAN in node.finalizers:
        return "Orphan"
    if FOREGROUND in node.finalizers:
        return "Foreground"
    return "Background"
