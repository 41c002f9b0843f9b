"""One connected proxy, as its xDS node describes it.

The node id keeps Istio's form: ``sidecar~10.1.2.3~reviews-v1-abc.bookinfo~bookinfo.svc.cluster.local``.
Metadata keeps Istio's keys (NAMESPACE, LABELS, WORKLOAD_NAME, CLUSTER_ID, NETWORK, ISTIO_VERSION, ...).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from meltemi.model.config import EMPTY


class NodeType(enum.Enum):
    """What kind of proxy it is."""

    SIDECAR = "sidecar"
    ROUTER = "router"
    WAYPOINT = "waypoint"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's identity and capabilities. Two proxies that lead to the same class get the same bytes.

    ``metadata`` is the raw node metadata (for EnvoyFilter matches and debug output only).
    """

    id: str  # "<pod>.<namespace>"
    type: NodeType
    addresses: tuple[str, ...]
    namespace: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    dns_domain: str = "cluster.local"
    service_account: str = "default"
    workload_name: str = ""
    cluster_id: str = "Kubernetes"
    network: str = ""
    locality: str = ""
    version: str = ""
    interception_mode: str = "REDIRECT"
    bind_ports_unprivileged: bool = False  # gateways that may not bind ports below 1024
    entry: str = ""  # the WorkloadEntry that stands for it, where no pod does
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def workload(self) -> str:
        """The name of its workload in its namespace: the pod's, or the WorkloadEntry's."""
        return self.entry or self.id.rpartition(".")[0]
