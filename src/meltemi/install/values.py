"""Helm's ``values`` for a workload, as the ``k8s`` settings of its component.

In: ``values.pilot`` and ``values.gateways.<name>`` of the user. Out: what the same wishes are called in
``components``, so that there is one way on from here. A wish in ``components`` itself wins, as in Istio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INGRESS = "istio-ingressgateway"
EGRESS = "istio-egressgateway"
_SAME = (
    "affinity",
    "nodeSelector",
    "podAnnotations",
    "replicaCount",
    "resources",
    "serviceAnnotations",
    "tolerations",
)
_SERVICE = (
    "externalTrafficPolicy",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "type",
)


def as_components(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``components`` that says what ``values`` says; empty where they say nothing of it."""
    components: dict[str, Any] = {}
    if pilot := _common(_mapping(values.get("pilot"))):
        components["pilot"] = {"k8s": pilot}
    gateways = _mapping(values.get("gateways"))
    for key, name in (("ingressGateways", INGRESS), ("egressGateways", EGRESS)):
        if entry := _gateway(_mapping(gateways.get(name))):
            components[key] = [{"name": name, **entry}]
    return components


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _common(values: Mapping[str, Any]) -> dict[str, Any]:
    k8s = {name: values[name] for name in _SAME if values.get(name)}
    limits = {
        target: values[source]
        for source, target in (("rollingMaxSurge", "maxSurge"), ("rollingMaxUnavailable", "maxUnavailable"))
        if values.get(source) is not None
    }  # fmt: skip
    if limits:
        k8s["strategy"] = {"rollingUpdate": limits}
    return k8s


def _gateway(values: Mapping[str, Any]) -> dict[str, Any]:
    k8s = _common(values)
    if service := {name: values[name] for name in _SERVICE if values.get(name)}:
        k8s["service"] = service
    # Istio keeps a pod's environment as a mapping here, and as Kubernetes' list under k8s.
    if env := _mapping(values.get("env")):
        k8s["env"] = [{"name": name, "value": str(value)} for name, value in env.items()]
    entry: dict[str, Any] = {"k8s": k8s} if k8s else {}
    if labels := _mapping(values.get("labels")):
        entry["label"] = dict(labels)
    return entry
