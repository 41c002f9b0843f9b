"""Services and endpoints of every platform: Kubernetes, ServiceEntry, WorkloadEntry, Consul, VMs.

These two types are all that anything right of the registry knows about platforms.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from meltemi.model.config import EMPTY, Meta
from meltemi.model.origin import Origin

# Values of ``trafficDistribution``: who is asked first. Nothing has to fail for it, unlike in locality failover.
PREFER_SAME_ZONE = ("PreferClose", "PreferSameZone")
PREFER_SAME_NODE = "PreferSameNode"


class Protocol(enum.Enum):
    """What a port speaks. UNSUPPORTED means unknown: Envoy sniffs it (Istio's protocol selection)."""

    HTTP = "HTTP"
    HTTP2 = "HTTP2"
    GRPC = "GRPC"
    GRPC_WEB = "GRPC-Web"
    HTTPS = "HTTPS"
    TLS = "TLS"
    TCP = "TCP"
    UDP = "UDP"
    MONGO = "Mongo"
    REDIS = "Redis"
    MYSQL = "MySQL"
    HBONE = "HBONE"
    DOUBLE_HBONE = "DoubleHBONE"
    HTTP_PROXY = "HTTP_PROXY"
    UNSUPPORTED = "UnsupportedProtocol"

    @property
    def is_http(self) -> bool:
        """True when HTTP routes apply to the plaintext of this port."""
        return self in _HTTP

    @property
    def is_http2(self) -> bool:
        """True when upstream connections must speak HTTP/2."""
        return self in (Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB)

    @property
    def is_tls(self) -> bool:
        """True when the application itself speaks TLS on this port."""
        return self in (Protocol.HTTPS, Protocol.TLS)

    @property
    def is_unknown(self) -> bool:
        """True when Envoy has to sniff."""
        return self is Protocol.UNSUPPORTED


_HTTP = (Protocol.HTTP, Protocol.HTTP2, Protocol.GRPC, Protocol.GRPC_WEB, Protocol.HTTP_PROXY)


class Resolution(enum.Enum):
    """How a cluster for the service finds its endpoints."""

    CLIENT_SIDE_LB = "ClientSideLB"  # EDS
    DNS_LB = "DNSLB"  # STRICT_DNS
    DNS_ROUND_ROBIN_LB = "DNSRoundRobinLB"  # LOGICAL_DNS
    PASSTHROUGH = "Passthrough"  # ORIGINAL_DST (headless, ServiceEntry NONE)
    DYNAMIC_DNS = "DynamicDNS"  # dynamic forward proxy
    ALIAS = "Alias"  # ExternalName


@dataclass(frozen=True, slots=True)
class Port:
    """One service port.

    ``target_port`` is the endpoint's port where it is a number; ``target_name`` the container port's name where the
    Service names one (then ``target_port`` is 0, and every endpoint has its own number).
    """

    name: str
    number: int
    protocol: Protocol
    target_port: int = 0
    target_name: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A destination by host name.

    ``addresses`` are the virtual IPs (or CIDRs) a client connects to; empty for headless services.
    ``export_to`` holds ``*``, ``.``, ``~`` or namespace names; empty means the mesh default.
    ``selector_labels`` selects workloads (for Sidecar-less inbound listeners the registry already did it).
    """

    hostname: str
    meta: Meta
    ports: tuple[Port, ...]
    addresses: tuple[str, ...] = ()
    auto_allocated: tuple[str, ...] = ()
    external_addresses: tuple[str, ...] = ()  # of its load balancer
    resolution: Resolution = Resolution.CLIENT_SIDE_LB
    mesh_external: bool = False
    registry: str = "Kubernetes"  # Kubernetes | External | Consul
    export_to: frozenset[str] = frozenset()
    selector_labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    subject_alt_names: tuple[str, ...] = ()
    external_name: str = ""
    headless: bool = False
    internal_traffic_local: bool = False
    publish_not_ready: bool = False
    traffic_distribution: str = ""
    session_affinity_s: int = 0
    origin: Origin = field(default_factory=Origin, compare=False)

    @property
    def namespace(self) -> str:
        """Namespace of the object that defined the service."""
        return self.meta.namespace

    def port(self, number: int) -> Port | None:
        """The port with this number, if any; UDP, which may share a number with TCP, is not proxied."""
        return next(
            (p for p in self.ports if p.number == number and p.protocol is not Protocol.UDP), None
        )


class Health(enum.Enum):
    """Health of an endpoint as its platform reports it."""

    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    TERMINATING = "TERMINATING"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that serves one port of a service.

    ``service_port`` is the service port's *name* (as in EndpointSlices), ``port`` the endpoint's own port.
    ``tls_mode`` is the label ``security.istio.io/tlsMode`` (``istio`` or ``disabled``).
    ``locality`` is ``region/zone/subzone``.
    """

    address: str
    port: int
    service_port: str
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    service_account: str = ""  # SPIFFE id, without the scheme when unknown: ""
    workload: str = ""
    namespace: str = ""
    network: str = ""
    cluster: str = ""
    locality: str = ""
    weight: int = 0  # 0 = 1, the default
    tls_mode: str = "disabled"
    health: Health = Health.HEALTHY
    node_name: str = ""
    hostname: str = ""  # pod hostname, for headless DNS
    subdomain: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """Something that runs a proxy or could: a Pod, a WorkloadEntry, a VM.

    Used to find what a proxy itself serves (inbound) and for policies' selectors.
    """

    name: str
    namespace: str
    addresses: tuple[str, ...]
    labels: Mapping[str, str]
    service_account: str = "default"
    workload_name: str = ""  # controller's name: productpage-v1
    workload_kind: str = ""
    node_name: str = ""
    locality: str = ""
    network: str = ""
    cluster: str = ""
    ports: tuple[tuple[str, int], ...] = ()  # declared container ports: (name, number)
    ready: bool = False
    weight: int = 0  # of a WorkloadEntry; 0 = 1
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
