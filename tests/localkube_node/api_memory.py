"""An API server's objects in memory, behind the interface of ``ApiClient``.

Lets the real node agent run without a control plane: what it reads and writes is real, only the
HTTP between them is missing.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from localkube.client import ApiStatusError, PatchType, ResourceType, WatchEvent
from localkube.client.resources import PODS


class MemoryApi:
    """Objects by (plural, namespace, name), and watches on them."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.version = 1
        self._watches: list[tuple[str, asyncio.Queue[WatchEvent]]] = []
        self._changed = asyncio.Event()

    # -- for tests ---------------------------------------------------------------------------

    def put(self, resource: ResourceType, obj: dict[str, Any]) -> dict[str, Any]:
        """Create or replace an object."""
        obj = copy.deepcopy(obj)
        meta = obj["metadata"]
        key = (resource.plural, meta.get("namespace") or "", meta["name"])
        old = self.objects.get(key)
        meta.setdefault("uid", old["metadata"]["uid"] if old else str(uuid.uuid4()))
        obj.setdefault("kind", resource.kind)
        obj.setdefault("apiVersion", resource.api_version)
        if old == obj:
            return obj
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        self.objects[key] = obj
        self._notify(resource.plural, "MODIFIED" if old else "ADDED", obj)
        return obj

    def remove(self, resource: ResourceType, name: str, namespace: str) -> None:
        """Take an object away."""
        obj = self.objects.pop((resource.plural, namespace, name), None)
        if obj is not None:
            self.version += 1
            obj = copy.deepcopy(obj)
            obj["metadata"]["resourceVersion"] = str(self.version)
            self._notify(resource.plural, "DELETED", obj)

    def find(self, resource: ResourceType, name: str, namespace: str = "default") -> Any:
        """Return an object or None."""
        return self.objects.get((resource.plural, namespace, name))

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return reason and message of the Events about an object."""
        return [
            (obj["reason"], obj["message"])
            for (plural, _, _), obj in self.objects.items()
            if plural == "events" and obj["involvedObject"]["name"] == name
        ]

    async def until(self, condition: Callable[[], Any], limit_s: float = 20.0) -> Any:
        """Return the condition's value as soon as it is true."""
        end = time.monotonic() + limit_s
        while True:
            value = condition()
            if value:
                return value
            changed = self._changed
            try:
                # Some conditions look at files: they are asked again without a change, too.
                await asyncio.wait_for(changed.wait(), 0.05)
            except TimeoutError:
                if time.monotonic() > end:
                    pods = [o.get("status") for (p, _, _), o in self.objects.items() if p == "pods"]
                    raise AssertionError(
                        f"not reached in {limit_s} s; pods: {json.dumps(pods, indent=1)}; events: "
                        + "\n".join(
                            f"{o['reason']}: {o['message']}"
                            for (p, _, _), o in self.objects.items()
                            if p == "events"
                        )
                    ) from None

    def _notify(self, plural: str, kind: str, obj: dict[str, Any]) -> None:
        for name, queue in self._watches:
            if name == plural:
                queue.put_nowait(WatchEvent(kind, copy.deepcopy(obj)))
        self._changed.set()
        self._changed = asyncio.Event()

    # -- ApiClient ---------------------------------------------------------------------------

    async def get(
        self,
        resource: ResourceType,
        name: str,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        found = self.objects.get((resource.plural, namespace or "", name))
        if found is None:
            raise ApiStatusError(404, "NotFound", f"{resource.plural} {name} not found")
        return copy.deepcopy(found)

    async def list(
        self, resource: ResourceType, namespace: str | None = None, **options: Any
    ) -> Any:
        selector = options.get("field_selector") or ""
        items = [
            copy.deepcopy(obj)
            for (plural, place, _), obj in self.objects.items()
            if plural == resource.plural
            and (namespace is None or place == namespace)
            and _selected(obj, selector)
        ]
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    async def watch(
        self, resource: ResourceType, namespace: str | None = None, **options: Any
    ) -> AsyncIterator[WatchEvent]:
        queue: asyncio.Queue[WatchEvent] = asyncio.Queue()
        entry = (resource.plural, queue)
        self._watches.append(entry)
        try:
            while True:
                event = await queue.get()
                place = event.object["metadata"].get("namespace")
                if (namespace is None or place == namespace) and _selected(
                    event.object, options.get("field_selector") or ""
                ):
                    yield event
        finally:
            self._watches.remove(entry)

    async def create(
        self,
        resource: ResourceType,
        obj: Any,
        *,
        namespace: str | None = None,
        name: str | None = None,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        if subresource == "token":
            return self._token(name or "", obj)
        meta = obj["metadata"]
        key = (resource.plural, meta.get("namespace") or "", meta["name"])
        if key in self.objects:
            raise ApiStatusError(409, "AlreadyExists", meta["name"])
        return copy.deepcopy(self.put(resource, obj))

    def _token(self, account: str, request: Any) -> dict[str, Any]:
        spec = request["spec"]
        claims = {"sub": account, "aud": spec.get("audiences"), "n": self.version}
        self.version += 1
        token = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
        end = time.gmtime(time.time() + spec["expirationSeconds"])
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", end)
        return {"status": {"token": token, "expirationTimestamp": stamp}}

    async def patch(
        self,
        resource: ResourceType,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        type: PatchType = PatchType.MERGE,
        subresource: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        old = await self.get(resource, name, namespace)
        if patch.get("metadata", {}).get("uid") not in (None, old["metadata"]["uid"]):
            raise ApiStatusError(409, "Conflict", "another uid")
        if subresource:
            patch = {"status": patch["status"]}
        new = _merge(old, patch)
        if type is PatchType.STRATEGIC and "conditions" in patch.get("status", {}):
            by_type = {c["type"]: c for c in old.get("status", {}).get("conditions") or []}
            by_type.update({c["type"]: c for c in patch["status"]["conditions"]})
            new["status"]["conditions"] = list(by_type.values())
        return copy.deepcopy(self.put(resource, new))

    async def delete(
        self,
        resource: ResourceType,
        name: str,
        namespace: str | None = None,
        *,
        grace_period_seconds: int | None = None,
        uid: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        obj = await self.get(resource, name, namespace)
        if uid is not None and obj["metadata"]["uid"] != uid:
            raise ApiStatusError(409, "Conflict", "another uid")
        if resource is PODS and grace_period_seconds != 0:
            grace = grace_period_seconds
            if grace is None:
                grace = obj["spec"].get("terminationGracePeriodSeconds", 30)
            obj["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            obj["metadata"]["deletionGracePeriodSeconds"] = grace
            return self.put(resource, obj)
        self.remove(resource, name, namespace or "")
        return obj


def _selected(obj: dict[str, Any], selector: str) -> bool:
    if not selector:
        return True
    path, _, wanted = selector.partition("=")
    value: Any = obj
    for part in path.split("."):
        value = (value or {}).get(part)
    return bool(value == wanted)


def _merge(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge(result.get(key), value)
    return result
