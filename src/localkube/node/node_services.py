"""What all pods of a node share. No behaviour of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localkube.client import ApiClient
from localkube.node.catalogue import Catalogue
from localkube.node.environment import NodeResources
from localkube.node.events import EventRecorder
from localkube.node.hostview import HostView
from localkube.node.network.addresses import AddressPool
from localkube.node.network.links import PodNetwork
from localkube.node.objects import ReferencedObjects
from localkube.node.podfiles import DnsSettings
from localkube.node.runtime.processes import Runtime


@dataclass(slots=True)
class NodeServices:
    """What all pods of a node share."""

    name: str
    client: ApiClient
    runtime: Runtime
    network: PodNetwork
    addresses: AddressPool
    catalogue: Catalogue
    view: HostView
    objects: ReferencedObjects
    events: EventRecorder
    dns: DnsSettings
    resources: NodeResources
    node_ip: str
    memory_dir: Path
    disk_dir: Path
    log_dir: Path
    services: Callable[[], Iterable[Mapping[str, Any]]]
    """All Service objects."""
    unrouted: Callable[[str], Awaitable[None]]
    """Return when no Service leads to an address any more (or it takes too long)."""
    next_link: int = 0
