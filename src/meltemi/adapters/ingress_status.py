"""Where an Ingress answers, for its status.

In: the world's Ingresses and the gateway's addresses. Out: ``status.loadBalancer`` where it differs. An Ingress of another class is
never touched.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from meltemi.adapters.ingresses import written
from meltemi.adapters.kube_api import collection
from meltemi.adapters.status_loop import StatusPatch
from meltemi.adapters.world import World

_API = "networking.k8s.io/v1"


async def ingress_statuses(world: World) -> AsyncIterator[StatusPatch]:
    """What to write for ``StatusLoop``."""
    wanted = world.ingresses.addresses(world.mesh)
    for ingress in world.ingresses.ours(world.mesh):
        if wanted != written(ingress):
            meta = ingress.metadata
            yield StatusPatch(
                collection(_API, "ingresses", meta.namespace, meta.name),
                {"loadBalancer": {"ingress": list(wanted)}},
                f"Ingress/{meta.name}.{meta.namespace}",
            )
