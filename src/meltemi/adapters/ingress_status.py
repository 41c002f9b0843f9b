"""Write where an Ingress answers into its status.

In: the world's Ingresses and the gateway's addresses. Out: merge patches of ``status.loadBalancer``, only where something differs, a
few each second, by the elected replica alone. An Ingress of another class is never touched.
"""

from __future__ import annotations

import asyncio

import structlog

from meltemi.adapters.ingresses import written
from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.adapters.leader import Leader
from meltemi.adapters.world import World
from meltemi.kit.clock import Clock
from meltemi.kit.limits import TokenBucket
from meltemi.model.ingress import Ingress

log = structlog.get_logger("ingress")
SETTLE_S = 0.3
WRITES_PER_S, WRITES_BURST = 20.0, 50.0
_API = "networking.k8s.io/v1"


class IngressStatusWriter:
    """The task that keeps ``status.loadBalancer`` of our Ingresses level with the gateway's addresses."""

    def __init__(
        self,
        world: World,
        api: KubeApi,
        leader: Leader,
        clock: Clock,
    ) -> None:
        self._world = world
        self._api = api
        self._leader = leader
        self._clock = clock
        self._bucket = TokenBucket(WRITES_PER_S, WRITES_BURST)
        self._wake = asyncio.Event()
        self._wake.set()
        world.ingresses.changed = self._wake.set

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._leader.became.wait()
            await self._wake.wait()
            await asyncio.sleep(SETTLE_S)
            self._wake.clear()
            await self._round()

    async def _round(self) -> None:
        mesh, book = self._world.mesh, self._world.ingresses
        wanted = book.addresses(mesh)
        for ingress in book.ours(mesh):
            if wanted == written(ingress):
                continue
            if not self._leader.leading:
                return
            pause = self._bucket.wait_s(self._clock.monotonic())
            if pause:
                await asyncio.sleep(pause)
            await self._write(ingress, wanted)

    async def _write(self, ingress: Ingress, wanted: tuple[dict[str, str], ...]) -> None:
        meta = ingress.metadata
        path = collection(_API, "ingresses", meta.namespace, meta.name) + "/status"
        body = {"status": {"loadBalancer": {"ingress": list(wanted)}}}
        try:
            await self._api.merge_patch(path, body)
        except KubeError as error:
            # Gone, or not allowed: the next change looks again.
            log.warning(
                "status not written", ingress=f"{meta.namespace}/{meta.name}", error=str(error)
            )
            return
        log.debug("status written", namespace=meta.namespace, name=meta.name)
