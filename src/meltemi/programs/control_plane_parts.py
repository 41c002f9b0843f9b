"""The parts of one istiod, as the start hands them around, and what joins the pipeline with its debug pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meltemi.adapters.authenticate import Reviewer
from meltemi.adapters.ca_rotation import Ledger
from meltemi.adapters.ca_store import AuthorityStore
from meltemi.adapters.debug_pages import DebugPages, NoSuchPage
from meltemi.adapters.discovery_connections import Connection
from meltemi.adapters.discovery_grpc import DiscoveryServer
from meltemi.adapters.http_ports import HttpPorts
from meltemi.adapters.kube_api import KubeApi
from meltemi.adapters.kube_publish import RootPublisher
from meltemi.adapters.kube_source import KubeSource
from meltemi.adapters.kube_watch import Collection
from meltemi.adapters.mesh_settings import MeshSettings
from meltemi.adapters.pipeline import Pipeline
from meltemi.adapters.registrar import Registrar
from meltemi.adapters.world import World
from meltemi.discovery.protocol import Rejected, Snapshot
from meltemi.kit.tasks import Tasks
from meltemi.model import kubernetes as k8s
from meltemi.model.names import HEALTH_TYPE


@dataclass(eq=False)
class Source:
    """The pipeline, with debug answers and the registration of machines: what the discovery server asks."""

    pipeline: Pipeline
    pages: DebugPages
    registrar: Registrar

    async def joined(self, connection: Connection) -> Snapshot:
        """See ``Pipeline`` and ``Registrar``."""
        await self.pipeline.ready()
        self.registrar.joined(connection)
        if connection.first_type == HEALTH_TYPE:
            return connection.snapshot  # it only tells
        return await self.pipeline.joined(connection)

    def left(self, connection: Connection) -> None:
        """See ``Pipeline`` and ``Registrar``."""
        self.pipeline.left(connection)
        self.registrar.left(connection)

    def health(self, connection: Connection, problem: str | None) -> None:
        """See ``Registrar``."""
        self.registrar.health(connection, problem)

    def rejected(self, connection: Connection, event: Rejected) -> Any:
        """See ``Pipeline``."""
        return self.pipeline.rejected(connection, event)

    async def debug(self, request: str) -> bytes:
        """The JSON of a debug page, or of what is wrong with the request."""
        try:
            return self.pages.render(request)
        except NoSuchPage as error:
            return f"{error}\n".encode()


@dataclass(eq=False)
class Parts:
    """What the start makes and the rest uses."""

    world: World
    pipeline: Pipeline
    settings: MeshSettings
    store: AuthorityStore
    pages: DebugPages
    http: HttpPorts
    reviewer: Reviewer | None
    ledger: Ledger
    registrar: Registrar
    api: KubeApi | None = None
    discovery: DiscoveryServer | None = None


def every_address(address: str) -> str:
    """gRPC wants a host: all addresses when there is none."""
    return f"[::]{address}" if address.startswith(":") else address


def publish_everywhere(tasks: Tasks, source: KubeSource, publisher: RootPublisher) -> None:
    """Keep a ConfigMap in every namespace."""
    by_name = f"metadata.name={publisher.name}"
    maps = Collection("/api/v1/configmaps", field_selector=by_name)
    held = source.watch(maps, k8s.decode_config_map, publisher.config_maps)

    async def publish() -> None:
        # What is published must be known before anything is written.
        await held.synced.wait()
        await publisher.run()

    source.watch(Collection("/api/v1/namespaces"), k8s.decode_namespace, publisher.namespaces)
    tasks.spawn(f"publish {publisher.name}", publish, restart=True)
