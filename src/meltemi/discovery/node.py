"""Who is calling: a ``Proxy`` from the node of its first request, and whether it may call itself so.

In: the node's id, metadata (plain values) and locality. Out: a ``Proxy``. Metadata keys are Istio's. Nothing in
the metadata is trusted beyond the namespace and service account that the caller has proven.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meltemi.discovery.protocol import RemoteProtocolError
from meltemi.model import names
from meltemi.model.proxy import NodeType, Proxy

LABELS_MAX = 512


def proxy_from_node(node_id: str, metadata: Mapping[str, Any], locality: str) -> Proxy:
    """The proxy that a node describes. Raises RemoteProtocolError when the id has another form."""
    parsed = names.parse_node_id(node_id)
    if parsed is None:
        raise RemoteProtocolError(
            f"node id {node_id[:200]!r} is not of the form <sidecar|router|waypoint>~<ip>~<pod>.<namespace>~"
            "<namespace>.svc.<domain>"
        )
    kind, address, pod, dns = parsed
    namespace = _text(metadata, "NAMESPACE") or pod.rpartition(".")[2]
    labels = metadata.get("LABELS")
    pairs = list(labels.items())[:LABELS_MAX] if isinstance(labels, Mapping) else []
    _, _, domain = dns.partition(".svc.")
    addresses = [a for a in _text(metadata, "INSTANCE_IPS").split(",") if a] or [address]
    return Proxy(
        id=pod,
        type=kind,
        addresses=tuple(addresses),
        namespace=namespace,
        labels={str(name): str(value) for name, value in pairs},
        dns_domain=domain or "cluster.local",
        service_account=_text(metadata, "SERVICE_ACCOUNT") or "default",
        workload_name=_text(metadata, "WORKLOAD_NAME"),
        cluster_id=_text(metadata, "CLUSTER_ID") or "Kubernetes",
        network=_text(metadata, "NETWORK"),
        locality=locality,
        version=_text(metadata, "ISTIO_VERSION"),
        interception_mode=_text(metadata, "INTERCEPTION_MODE") or "REDIRECT",
        bind_ports_unprivileged=kind is NodeType.ROUTER and _truth(metadata, "UNPRIVILEGED_POD"),
        metadata=metadata,
    )


def mismatch(proxy: Proxy, namespace: str, service_account: str) -> str:
    """Why a caller that proved to be this service account may not be that proxy; "" when it may."""
    if proxy.namespace != namespace:
        return f"the node claims namespace {proxy.namespace!r}, the caller is of {namespace!r}"
    if proxy.id.rpartition(".")[2] != namespace:
        return f"the node id claims {proxy.id!r}, the caller is of namespace {namespace!r}"
    if proxy.service_account != service_account:
        return f"the node claims service account {proxy.service_account!r}, the caller is {service_account!r}"
    return ""


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def _truth(metadata: Mapping[str, Any], key: str) -> bool:
    return str(metadata.get(key, "")).lower() in ("true", "1")
