"""Events: what controllers tell people about objects (`kubectl describe`, `kubectl get events`).

In: object, type, reason, message. Out: core/v1 Events, in the background. Promises: recording
never blocks or fails its caller; the same message again within ten minutes raises the count of
one Event instead of making another; when the queue is full the newest are dropped.
"""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any, Final

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError
from localkube.client.resources import EVENTS
from localkube.kit import clock
from localkube.kit.tasks import Tasks

_QUEUE: Final = 1000
_REMEMBERED: Final = 2000  # events that a repetition can still be added to
_REPEAT_WINDOW: Final = 600.0  # seconds
_MESSAGE_BYTES: Final = 1024  # Kubernetes' limit for an event's message


@dataclass
class _Known:
    name: str
    count: int
    at: float


class EventRecorder:
    """See the module's docstring."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client
        self._queue: asyncio.Queue[tuple[dict[str, Any], tuple[str, ...]]] = asyncio.Queue(_QUEUE)
        self._known: dict[tuple[str, ...], _Known] = {}
        self._tasks = Tasks("events")
        self._log = structlog.get_logger("localkube.events")

    def start(self) -> None:
        """Begin to send."""
        self._tasks.spawn("send events", self._send, restart=True)

    async def close(self) -> None:
        """Stop; unsent events are dropped."""
        await self._tasks.close()

    def record(
        self, target: dict[str, Any], kind: str, reason: str, message: str, component: str
    ) -> None:
        """Tell something about `target` (which must have apiVersion and kind)."""
        event = event_object(target, kind, reason, message[:_MESSAGE_BYTES], component)
        key = (target["metadata"].get("uid", ""), kind, reason, message, component)
        try:
            self._queue.put_nowait((event, key))
        except asyncio.QueueFull:
            self._log.debug("event dropped", reason=reason)

    async def _send(self) -> None:
        while True:
            event, key = await self._queue.get()
            try:
                await self._send_one(event, key)
            except (ApiStatusError, ApiConnectionError) as error:
                # Often the namespace is being deleted; an event is not worth more than one try.
                self._log.debug("event not stored", error=str(error))

    async def _send_one(self, event: dict[str, Any], key: tuple[str, ...]) -> None:
        known = self._known.get(key)
        now = clock.monotonic()
        namespace = event["metadata"]["namespace"]
        if known is not None and now - known.at < _REPEAT_WINDOW:
            known.count += 1
            known.at = now
            patch = {"count": known.count, "lastTimestamp": event["lastTimestamp"]}
            try:
                await self._client.patch(EVENTS, known.name, patch, namespace)
                return
            except ApiStatusError as error:
                if not error.not_found:
                    raise
        await self._client.create(EVENTS, event)
        if len(self._known) >= _REMEMBERED:
            self._known.pop(next(iter(self._known)))
        self._known[key] = _Known(event["metadata"]["name"], 1, now)


def event_object(
    target: dict[str, Any], kind: str, reason: str, message: str, component: str
) -> dict[str, Any]:
    """The Event; cluster-scoped objects' events live in the namespace `default`."""
    meta = target["metadata"]
    now = clock.rfc3339(clock.now())
    namespace = meta.get("namespace") or "default"
    reference = {
        "apiVersion": target.get("apiVersion"),
        "kind": target.get("kind"),
        "name": meta["name"],
        "uid": meta.get("uid"),
        "resourceVersion": meta.get("resourceVersion"),
    }
    if meta.get("namespace"):
        reference["namespace"] = namespace
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name']}.{secrets.token_hex(8)}", "namespace": namespace},
        "involvedObject": {name: value for name, value in reference.items() if value},
        "reason": reason,
        "message": message,
        "type": kind,
        "source": {"component": component},
        "reportingComponent": component,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
