"""Which resources the API server serves now, custom ones included.

In: an API client and the CRDs in the cache. Out: `ResourceType`s. Promises: one version of each
resource (the group's preferred one); the answer is kept until a CRD changes.
"""

import asyncio
from typing import Any

from localkube.client import ApiClient, ApiStatusError, ResourceType
from localkube.client.resources import CUSTOM_RESOURCE_DEFINITIONS
from localkube.controllers.cache import Cache

_NEEDED_TO_COLLECT = frozenset({"delete", "list", "watch"})


class Discovery:
    """See the module's docstring."""

    def __init__(self, client: ApiClient, cache: Cache) -> None:
        self._client = client
        self._known: list[tuple[ResourceType, frozenset[str]]] | None = None
        self._generation = 0
        self._lock = asyncio.Lock()
        cache.of(CUSTOM_RESOURCE_DEFINITIONS).on_change(self._on_crd)

    @property
    def generation(self) -> int:
        """Grows whenever the served resources may have changed."""
        return self._generation

    def _on_crd(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        if old is not None and new is not None and _served(old) == _served(new):
            return
        self._known = None
        self._generation += 1

    async def resources(self) -> list[tuple[ResourceType, frozenset[str]]]:
        """Every resource with its verbs."""
        async with self._lock:
            if self._known is None:
                generation = self._generation
                found = await self._ask()
                if generation == self._generation:
                    self._known = found
                return found
            return self._known

    async def namespaced_deletable(self) -> list[ResourceType]:
        """What a namespace may contain."""
        return [
            resource
            for resource, verbs in await self.resources()
            if resource.namespaced and {"list", "delete"} <= verbs
        ]

    async def collectable(self) -> list[ResourceType]:
        """What garbage collection has to watch: all that can have owners or be one. Events are
        left out: they are many, short-lived, and own nothing."""
        return [
            resource
            for resource, verbs in await self.resources()
            if verbs >= _NEEDED_TO_COLLECT and resource.plural != "events"
        ]

    async def _ask(self) -> list[tuple[ResourceType, frozenset[str]]]:
        groups = (await self._client.request_json("GET", "/apis")).get("groups") or []
        versions = [("", "v1", "/api/v1")]
        for group in groups:
            preferred = group["preferredVersion"]["version"]
            versions.append((group["name"], preferred, f"/apis/{group['name']}/{preferred}"))
        answers = await asyncio.gather(*(self._one(*version) for version in versions))
        return [entry for answer in answers for entry in answer]

    async def _one(
        self, group: str, version: str, path: str
    ) -> list[tuple[ResourceType, frozenset[str]]]:
        try:
            answer = await self._client.request_json("GET", path)
        except ApiStatusError as error:
            if error.not_found:
                return []  # gone between the two questions
            raise
        return [
            (
                ResourceType(group, version, r["name"], r["kind"], bool(r["namespaced"])),
                frozenset(r.get("verbs") or ()),
            )
            for r in answer.get("resources") or []
            if "/" not in r["name"]
        ]


def _served(crd: dict[str, Any]) -> tuple[Any, ...]:
    conditions = (crd.get("status") or {}).get("conditions") or []
    established = any(
        c.get("type") == "Established" and c.get("status") == "True" for c in conditions
    )
    versions = tuple((v.get("name"), v.get("served")) for v in crd["spec"].get("versions") or [])
    return established, versions, bool(crd["metadata"].get("deletionTimestamp"))
