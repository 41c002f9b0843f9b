"""The loop that keeps objects' status level with what is known.

In: whoever knows what differs. Out: merge patches of the ``status`` subresource, a few each second, by the elected replica alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from meltemi.adapters.kube_api import KubeApi, KubeError
from meltemi.adapters.leader import Leader
from meltemi.kit.clock import Clock
from meltemi.kit.limits import TokenBucket

log = structlog.get_logger("status")
SETTLE_S = 0.3
WRITES_PER_S, WRITES_BURST = 20.0, 50.0


@dataclass(frozen=True, slots=True)
class StatusPatch:
    """Part of the status of the object at an API ``path``; ``name`` is for logs."""

    path: str
    status: Mapping[str, Any]
    name: str


class StatusLoop:
    """``differing`` looks at everything anew, and is asked after each ``wake``."""

    def __init__(
        self,
        differing: Callable[[], AsyncIterator[StatusPatch]],
        api: KubeApi,
        leader: Leader,
        clock: Clock,
    ) -> None:
        self._differing = differing
        self._api = api
        self._leader = leader
        self._clock = clock
        self._wake = asyncio.Event()
        self._bucket = TokenBucket(WRITES_PER_S, WRITES_BURST)

    def wake(self) -> None:
        """Something changed that statuses may depend on."""
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._leader.became.wait()
            await self._wake.wait()
            # Changes come in groups (kubectl apply of a folder): look at all of them once.
            await asyncio.sleep(SETTLE_S)
            self._wake.clear()
            async for patch in self._differing():
                if not self._leader.leading:
                    break
                await asyncio.sleep(self._bucket.wait_s(self._clock.monotonic()))
                await self._write(patch)

    async def _write(self, patch: StatusPatch) -> None:
        try:
            await self._api.merge_patch(f"{patch.path}/status", {"status": dict(patch.status)})
        except KubeError as error:
            # Gone, or not allowed: the next change looks again.
            log.warning("status not written", object=patch.name, error=str(error))
            return
        log.debug("status written", object=patch.name)
