"""Where something runs: region, zone and subzone, and the labels that stand for them."""

from __future__ import annotations

from collections.abc import Mapping

REGION_LABEL = "topology.kubernetes.io/region"
ZONE_LABEL = "topology.kubernetes.io/zone"
SUBZONE_LABEL = "topology.istio.io/subzone"
LOCALITY_LABELS = ("topology.istio.io/locality", "istio-locality")


def place_label(name: str, locality: str, network: str, cluster: str, node: str) -> str | None:
    """The value of a label that stands for where something runs, whatever its own labels say; None for all others."""
    region, zone, subzone = ([*locality.split("/"), "", "", ""])[:3]
    return {
        "topology.istio.io/network": network,
        "topology.istio.io/cluster": cluster,
        REGION_LABEL: region,
        ZONE_LABEL: zone,
        SUBZONE_LABEL: subzone,
        "kubernetes.io/hostname": node,
    }.get(name)


def labelled_locality(labels: Mapping[str, str]) -> str:
    """``region/zone/subzone`` of a pod's own label; label values cannot hold ``/``, so ``.`` separates there."""
    for key in LOCALITY_LABELS:
        value = labels.get(key, "")
        if value:
            return value if "/" in value else value.replace(".", "/", 2)
    return ""
