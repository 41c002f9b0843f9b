"""All controllers of a cluster together: one client, one cache, one life cycle.

In: an API client with the controller manager's identity, the cluster's CA, the network for
LoadBalancer addresses. Out: running controllers, once the API server answers.
"""

import asyncio
import contextlib
from typing import Protocol

import structlog

from localkube.client import ApiClient
from localkube.controllers.actions import Executor
from localkube.controllers.aggregation import AggregatedRolesController
from localkube.controllers.cache import Cache
from localkube.controllers.clusterdns import ClusterDnsController
from localkube.controllers.cronjob import CronJobController
from localkube.controllers.daemonset import DaemonSetController
from localkube.controllers.deployment import DeploymentController
from localkube.controllers.discovery import Discovery
from localkube.controllers.disruption import DisruptionController
from localkube.controllers.endpoints import EndpointsController, EndpointSliceController
from localkube.controllers.events import EventRecorder
from localkube.controllers.garbage import GarbageCollector
from localkube.controllers.job import JobController
from localkube.controllers.loadbalancer import LoadBalancerController
from localkube.controllers.mirroring import EndpointSliceMirroringController
from localkube.controllers.namespace import (
    NamespaceContentsController,
    NamespaceDeletionController,
)
from localkube.controllers.nodelifecycle import NodeLifecycleController, PodGarbageController
from localkube.controllers.replicaset import ReplicaSetController
from localkube.controllers.scheduler import Scheduler
from localkube.controllers.signing import SigningController
from localkube.controllers.statefulset import StatefulSetController
from localkube.controllers.tokens import TokenSecretController
from localkube.kit.tasks import Tasks


class Runnable(Protocol):
    """What every controller offers."""

    name: str

    def start(self) -> None:
        """Begin to work."""

    async def close(self) -> None:
        """Stop working."""


class Controllers:
    """See the module's docstring."""

    def __init__(self, client: ApiClient, ca_pem: str, load_balancer_network: str) -> None:
        self._cache = Cache(client)
        self._recorder = EventRecorder(client)
        self._tasks = Tasks("controllers")
        self._log = structlog.get_logger("localkube.controllers")
        cache = self._cache
        executor = Executor(client, cache, self._recorder)
        discovery = Discovery(client, cache)
        self.controllers: list[Runnable] = [
            EndpointSliceController(cache, executor),
            EndpointsController(cache, executor),
            EndpointSliceMirroringController(cache, executor),
            Scheduler(cache, executor),
            ReplicaSetController(cache, executor),
            DeploymentController(cache, executor),
            StatefulSetController(cache, executor),
            DaemonSetController(cache, executor),
            JobController(cache, executor),
            CronJobController(cache, executor),
            ClusterDnsController(cache, executor),
            NamespaceContentsController(cache, executor, ca_pem),
            NamespaceDeletionController(cache, executor, discovery),
            LoadBalancerController(cache, executor, load_balancer_network),
            NodeLifecycleController(cache, executor),
            PodGarbageController(cache, executor),
            DisruptionController(cache, executor),
            AggregatedRolesController(cache, executor),
            TokenSecretController(cache, executor, ca_pem),
            SigningController(cache, executor),
            GarbageCollector(client, cache, executor, discovery),
        ]

    def start(self) -> None:
        """List everything, then begin to work; returns at once."""
        self._tasks.spawn("start", self._start, restart=True)

    async def _start(self) -> None:
        self._cache.start()
        await self._cache.wait_synced()
        self._recorder.start()
        for controller in self.controllers:
            controller.start()
        self._log.info("controllers are running", count=len(self.controllers))

    async def close(self) -> None:
        """Stop everything."""
        await self._tasks.close()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*(controller.close() for controller in self.controllers))
        await self._recorder.close()
        await self._cache.close()
