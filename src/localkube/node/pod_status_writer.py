"""Writes a pod's status to the API: soon after a change, and until the server took it.

In: a ``PodWorker`` that can tell its current status. Out: patches of the status subresource.
Promises: changes within ``_COALESCE_S`` are one write; an unchanged status is not written; conditions
that others own (readiness gates) are never touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Protocol

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError, PatchType
from localkube.client.resources import PODS
from localkube.kit.tasks import backoff

_COALESCE_S: Final = 0.005
_RETRY_FIRST_S: Final = 0.2
_RETRY_LONGEST_S: Final = 10.0


class StatusSource(Protocol):
    """What is written."""

    pod: dict[str, Any]
    uid: str
    namespace: str
    name: str

    def current_status(self, conditions: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the status as of now, None if there is nothing to write."""


class StatusWriter:
    """See the module's docstring. Run ``serve`` in a task."""

    def __init__(self, client: ApiClient, source: StatusSource) -> None:
        self._client = client
        self._source = source
        self._dirty = asyncio.Event()
        self._sent: dict[str, Any] | None = None
        self._log = structlog.get_logger("localkube.node.status").bind(
            pod=f"{source.namespace}/{source.name}"
        )

    def changed(self) -> None:
        """Write soon."""
        self._dirty.set()

    async def serve(self) -> None:
        """Write whenever something changed, until cancelled."""
        attempt = 0
        self._dirty.set()
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_COALESCE_S)
            self._dirty.clear()
            if await self.send():
                attempt = 0
                continue
            self._dirty.set()
            await asyncio.sleep(backoff(attempt, _RETRY_FIRST_S, _RETRY_LONGEST_S))
            attempt += 1

    async def send(self) -> bool:
        """Write the status if it changed; return False if that must be tried again."""
        source = self._source
        status = source.current_status(self._known_conditions())
        if status is None or status == self._sent:
            return True
        patch = {"metadata": {"uid": source.uid}, "status": status}
        try:
            await self._client.patch(
                PODS,
                source.name,
                patch,
                source.namespace,
                type=PatchType.STRATEGIC,
                subresource="status",
            )
        except ApiStatusError as error:
            if error.not_found or error.conflict:
                return True  # the object is gone, or another of the same name has come
            self._log.warning("status not written", error=str(error))
            return False
        except ApiConnectionError as error:
            self._log.info("status not written yet", error=str(error))
            return False
        self._sent = status
        return True

    def _known_conditions(self) -> list[dict[str, Any]]:
        """Return the conditions in the API: ours as last written (a watch may be behind)."""
        pod = self._source.pod
        listed = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or []}
        if self._sent is not None:
            foreign = _gates(pod)
            ours = {c["type"]: c for c in self._sent["conditions"] if c["type"] not in foreign}
            listed.update(ours)
        return list(listed.values())


def _gates(pod: Mapping[str, Any]) -> set[str]:
    return {g["conditionType"] for g in pod["spec"].get("readinessGates") or []}
