"""Kubernetes Events about pods, Services and the node.

In: (object, type, reason, message). Out: core/v1 Events. Promises: repeats raise one Event's count
instead of making more; per object at most ``_BURST`` at once and one per ``_REFILL_S`` after that
(the kubelet's figures); recording never blocks nor fails its caller.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError
from localkube.client.resources import EVENTS
from localkube.kit import clock

_BURST: Final = 25
_REFILL_S: Final = 300.0
_QUEUE: Final = 1000
_REMEMBERED: Final = 4096


@dataclass(slots=True)
class _Budget:
    tokens: float
    updated: float


@dataclass(slots=True)
class _Sent:
    name: str
    count: int


class EventRecorder:
    """Queues Events and writes them in the background (run ``serve`` in a task)."""

    def __init__(self, client: ApiClient, component: str, host: str) -> None:
        self._client = client
        self._source = {"component": component, "host": host}
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_QUEUE)
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._log = structlog.get_logger("localkube.node.events")

    def record(
        self,
        subject: Mapping[str, Any],
        kind: str,
        reason: str,
        message: str,
        field_path: str = "",
    ) -> None:
        """Queue an Event about ``subject``; ``kind`` is Normal or Warning."""
        meta = subject["metadata"]
        reference = {
            "apiVersion": subject.get("apiVersion") or "v1",
            "kind": subject.get("kind") or "Pod",
            "name": meta["name"],
            "namespace": meta.get("namespace"),
            "uid": meta.get("uid"),
            "fieldPath": field_path or None,
        }
        if not self._allowed(f"{reference['kind']}/{meta.get('uid') or meta['name']}"):
            return
        event = {
            "involvedObject": {k: v for k, v in reference.items() if v},
            "type": kind,
            "reason": reason,
            "message": message[:1024],
        }
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._log.warning("event dropped: the API server is too slow", reason=reason)

    def _allowed(self, key: str) -> bool:
        now = clock.monotonic()
        budget = self._budgets.setdefault(key, _Budget(_BURST, now))
        budget.tokens = min(_BURST, budget.tokens + (now - budget.updated) / _REFILL_S)
        budget.updated = now
        self._budgets.move_to_end(key)
        if len(self._budgets) > _REMEMBERED:
            self._budgets.popitem(last=False)
        if budget.tokens < 1:
            return False
        budget.tokens -= 1
        return True

    async def serve(self) -> None:
        """Write queued Events until cancelled."""
        while True:
            event = await self._queue.get()
            try:
                await self._write(event)
            except (ApiStatusError, ApiConnectionError) as error:
                # An Event about an object that is gone, or a server that is down: not worth more.
                self._log.debug("event not written", reason=event["reason"], error=str(error))

    async def _write(self, event: dict[str, Any]) -> None:
        reference = event["involvedObject"]
        text = "|".join([*map(str, reference.values()), event["reason"], event["message"]])
        key = hashlib.sha256(text.encode()).hexdigest()
        namespace = reference.get("namespace") or "default"
        now = clock.rfc3339(clock.now())
        known = self._sent.get(key)
        if known is not None:
            known.count += 1
            patch = {"count": known.count, "lastTimestamp": now}
            try:
                await self._client.patch(EVENTS, known.name, patch, namespace)
                return
            except ApiStatusError as error:
                if not error.not_found:
                    raise
        name = f"{reference['name'][:200]}.{key[:16]}{int(clock.monotonic() * 1000) & 0xFFFF:x}"
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            **event,
            "source": self._source,
            "reportingComponent": self._source["component"],
            "reportingInstance": self._source["host"],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._client.create(EVENTS, body)
        self._sent[key] = _Sent(name, 1)
        if len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)
