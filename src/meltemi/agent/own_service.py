"""Zone-aware routing's part of the bootstrap: which cluster is the proxy's own service, and where the proxy runs.

In: ``ProxySettings``. Out: JSON-ready values. Envoy can only be told at its start. The cluster's endpoints come from istiod,
which answers for every proxy that says ``ENABLE_SELF_DISCOVERY``; Envoy asks for nothing else before it has them.
"""

from __future__ import annotations

from typing import Any

from meltemi.agent.settings import ProxySettings
from meltemi.model.names import LOCAL_CLUSTER, SELF_DISCOVERY
from meltemi.model.places import REGION_LABEL, ZONE_LABEL, labelled_locality

_WAIT = "5s"  # for an istiod that knows nothing of this; then nothing is compared


def discovers_itself(settings: ProxySettings) -> bool:
    """Whether the proxy was told to (ISTIO_META_ENABLE_SELF_DISCOVERY); gateways do not."""
    told = str(settings.metadata.get(SELF_DISCOVERY, "")).lower()
    return settings.node_type == "sidecar" and told in ("true", "1")


def node_locality(settings: ProxySettings) -> dict[str, str]:
    """The node's locality: of the pod's own label, else of the node's labels that Kubernetes copies to pods."""
    labels = settings.labels
    known = labelled_locality(labels) or "/".join(
        (labels.get(REGION_LABEL, ""), labels.get(ZONE_LABEL, ""))
    )
    # Envoy compares whole localities, and what counts is the zone.
    names = ("region", "zone", *(() if discovers_itself(settings) else ("sub_zone",)))
    return {name: part for name, part in zip(names, known.split("/"), strict=False) if part}


def local_cluster() -> dict[str, Any]:
    """The cluster of the proxy's own service."""
    # Spelled as protobuf writes JSON, so that all clusters of a static file are alike.
    source = {"ads": {}, "resourceApiVersion": "V3", "initialFetchTimeout": _WAIT}
    return {
        "name": LOCAL_CLUSTER,
        "type": "EDS",
        "edsClusterConfig": {"serviceName": LOCAL_CLUSTER, "edsConfig": source},
        "connectTimeout": "1s",
    }


def add_own_service(bootstrap: dict[str, Any], settings: ProxySettings) -> None:
    """Put all of it into a bootstrap, where the proxy asks for it."""
    place = node_locality(settings)
    if place:
        bootstrap["node"]["locality"] = place
    if discovers_itself(settings):
        bootstrap.setdefault("cluster_manager", {})["local_cluster_name"] = LOCAL_CLUSTER
        bootstrap["static_resources"]["clusters"].append(local_cluster())
