"""Every name that crosses a wire, in Istio's spelling. Nothing else builds or parses these strings."""

from __future__ import annotations

import re
from typing import NamedTuple

from meltemi.model.proxy import NodeType, Proxy

ROOT_NAMESPACE = "istio-system"
BLACKHOLE_CLUSTER = "BlackHoleCluster"
PASSTHROUGH_CLUSTER = "PassthroughCluster"
BY_NAME_CLUSTER = "DynamicForwardProxyCluster"
INBOUND_PASSTHROUGH_CLUSTER = "InboundPassthroughCluster"
# The proxy's own service, for zone-aware routing: part of the start configuration, so it is called the same everywhere.
LOCAL_CLUSTER = "local_cluster"
BOOTSTRAP_XDS = "BOOTSTRAP_XDS_AGENT"  # of agents that ask for what is patched in their bootstrap
SELF_DISCOVERY = "ENABLE_SELF_DISCOVERY"  # node metadata of proxies that have it
HTTP_PROXY_TABLE = "http_proxy"
VIRTUAL_OUTBOUND = "virtualOutbound"
VIRTUAL_INBOUND = "virtualInbound"

XDS = "type.googleapis.com/"
CDS_TYPE = XDS + "envoy.config.cluster.v3.Cluster"
EDS_TYPE = XDS + "envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS_TYPE = XDS + "envoy.config.listener.v3.Listener"
RDS_TYPE = XDS + "envoy.config.route.v3.RouteConfiguration"
SDS_TYPE = XDS + "envoy.extensions.transport_sockets.tls.v3.Secret"
ECDS_TYPE = XDS + "envoy.config.core.v3.TypedExtensionConfig"
BOOTSTRAP_TYPE = (
    XDS + "envoy.config.bootstrap.v3.Bootstrap"
)  # the patches that EnvoyFilters make in it
NDS_TYPE = XDS + "istio.networking.nds.v1.NameTable"
# A proxy's agent reports with it whether its workload is healthy; nothing is sent back.
HEALTH_TYPE = XDS + "istio.v1.HealthInformation"
DEBUG_TYPE = "istio.io/debug"

# Where the agent keeps the workload's certificate, and the SDS files that refer to it. Resources name these
# paths, so they must be the same in every proxy.
CERT_DIR = "/var/run/secrets/workload-spiffe-credentials"
SDS_DEFAULT_FILE = CERT_DIR + "/sds-default.json"
SDS_ROOTCA_FILE = CERT_DIR + "/sds-rootca.json"
SDS_DEFAULT = "default"
SDS_ROOTCA = "ROOTCA"
# Files of the proxy's own container, asked for by path: the mesh knows their names only. No Secret's name has a colon.
SDS_FILE_ROOT, SDS_FILE_CERT = "file-root:", "file-cert:"

# Namespace of the peer metadata in endpoints, clusters and dynamic metadata.
MESH_METADATA = "mesh"
PEER_METADATA = "mesh.peer"
PEER_HEADER_PREFIX = "x-mesh-peer-"

# Clusters before endpoints, listeners before routes: the order in which responses leave.
PUSH_ORDER = (CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE, ECDS_TYPE, NDS_TYPE)


class ClusterName(NamedTuple):
    """``direction|port|subset|hostname``."""

    direction: str
    port: int
    subset: str
    hostname: str


def outbound_cluster(hostname: str, port: int, subset: str = "") -> str:
    """``outbound|9080|v1|reviews.bookinfo.svc.cluster.local``."""
    return f"outbound|{port}|{subset}|{hostname}"


def inbound_cluster(port: int) -> str:
    """``inbound|9080||``: named for the workload's own port."""
    return f"inbound|{port}||"


def dns_sni(hostname: str, port: int, subset: str = "") -> str:
    """SNI that east-west gateways route on: ``outbound_.9080_.v1_.host``."""
    return f"outbound_.{port}_.{subset}_.{hostname}"


def parse_cluster(name: str) -> ClusterName | None:
    """The parts of a cluster name, or None when it is not of that form (BlackHoleCluster, ...)."""
    parts = name.split("|")
    if len(parts) != 4 or not parts[1].isdecimal():
        return None
    return ClusterName(parts[0], int(parts[1]), parts[2], parts[3])


def spiffe_id(trust_domain: str, namespace: str, service_account: str) -> str:
    """``spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews``."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


_SPIFFE = re.compile(r"^spiffe://([^/]+)/ns/([^/]+)/sa/([^/]+)$")


def parse_spiffe(value: str) -> tuple[str, str, str] | None:
    """``(trust domain, namespace, service account)`` or None."""
    found = _SPIFFE.match(value)
    return (found[1], found[2], found[3]) if found else None


def node_id(proxy: Proxy) -> str:
    """``sidecar~10.1.2.3~pod.namespace~namespace.svc.cluster.local``."""
    address = proxy.addresses[0] if proxy.addresses else ""
    return f"{proxy.type.value}~{address}~{proxy.id}~{proxy.namespace}.svc.{proxy.dns_domain}"


def parse_node_id(value: str) -> tuple[NodeType, str, str, str] | None:
    """``(type, address, pod.namespace, domain)`` of a node id, or None when it has another form."""
    parts = value.split("~")
    if len(parts) != 4:
        return None
    try:
        return NodeType(parts[0]), parts[1], parts[2], parts[3]
    except ValueError:
        return None


def kube_hostname(name: str, namespace: str, domain: str = "cluster.local") -> str:
    """Full host name of a Kubernetes Service."""
    return f"{name}.{namespace}.svc.{domain}"


def resolve_short_name(host: str, namespace: str, domain: str = "cluster.local") -> str:
    """Istio's expansion of short host names: without a dot, it is a Service of the rule's own namespace."""
    if "." in host or host == "*":
        return host
    return kube_hostname(host, namespace, domain)
