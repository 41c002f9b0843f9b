"""The informers that all controllers share: one per resource type.

In: an API client. Out: `Informer`s, created on first use. Promises that a resource is watched once,
however many controllers read it.
"""

import asyncio
from typing import Any, Final

from localkube.client import ApiClient, Informer, ResourceType
from localkube.client.resources import PODS, REPLICA_SETS

BY_NAMESPACE: Final = "namespace"
BY_CONTROLLER: Final = "controller"
"""Index of objects by the uid of their controlling owner."""
BY_NODE: Final = "node"
"""Index of pods by spec.nodeName ("" is none)."""


class Cache:
    """See the module's docstring."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._informers: dict[ResourceType, Informer] = {}
        self._started = False

    def of(self, resource: ResourceType) -> Informer:
        """The informer of a resource."""
        informer = self._informers.get(resource)
        if informer is None:
            informer = Informer(self._client, resource)
            informer.add_index(BY_NAMESPACE, lambda obj: [obj["metadata"].get("namespace") or ""])
            if resource in (PODS, REPLICA_SETS):
                informer.add_index(BY_CONTROLLER, _controller_uid)
            if resource == PODS:
                informer.add_index(BY_NODE, lambda pod: [pod["spec"].get("nodeName") or ""])
            self._informers[resource] = informer
            if self._started:
                informer.start()
        return informer

    def offer(self, resource: ResourceType, obj: dict[str, Any]) -> None:
        """Put the answer to one of our writes into the copy, if that resource is watched."""
        informer = self._informers.get(resource)
        if informer is not None:
            informer.offer(obj)

    async def drop(self, resource: ResourceType) -> None:
        """Stop watching a resource that is no longer served."""
        informer = self._informers.pop(resource, None)
        if informer is not None:
            await informer.close()

    def start(self) -> None:
        """Begin to watch; informers made later start at once."""
        self._started = True
        for informer in self._informers.values():
            informer.start()

    async def wait_synced(self) -> None:
        """Return when every informer made so far has its first list."""
        await asyncio.gather(*(i.wait_synced() for i in self._informers.values()))

    async def close(self) -> None:
        """Stop all watches."""
        await asyncio.gather(*(i.close() for i in self._informers.values()))


def _controller_uid(obj: dict[str, Any]) -> list[str]:
    references = obj["metadata"].get("ownerReferences") or []
    return [ref["uid"] for ref in references if ref.get("controller")]
