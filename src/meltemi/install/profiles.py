"""The installation profiles, and how a user's spec is laid over one.

A profile is an ``IstioOperator`` spec like the user's own; the user's values win. Lists of gateways merge by
name, as Istio's do; every other list is replaced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meltemi.install.values import EGRESS, INGRESS, as_components

Spec = dict[str, Any]

VERSION = "0.1.0"
HUB = "docker.io/meltemi"

INGRESS_PORTS: list[dict[str, Any]] = [
    {"name": "status-port", "port": 15021, "targetPort": 15021, "protocol": "TCP"},
    {"name": "http2", "port": 80, "targetPort": 8080, "protocol": "TCP"},
    {"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"},
]
_DEMO_INGRESS_PORTS = [
    *INGRESS_PORTS,
    {"name": "tcp", "port": 31400, "targetPort": 31400, "protocol": "TCP"},
    {"name": "tls", "port": 15443, "targetPort": 15443, "protocol": "TCP"},
]
_EGRESS_PORTS = [
    {"name": "http2", "port": 80, "targetPort": 8080, "protocol": "TCP"},
    {"name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP"},
]
_SMALL = {"requests": {"cpu": "10m", "memory": "40Mi"}}
_GATEWAY = {
    "requests": {"cpu": "100m", "memory": "128Mi"},
    "limits": {"cpu": "2000m", "memory": "1024Mi"},
}

_BASE: Spec = {
    "hub": HUB,
    "tag": VERSION,
    "meshConfig": {"enablePrometheusMerge": True, "trustDomain": "cluster.local"},
    "components": {
        "base": {"enabled": True},
        "pilot": {
            "enabled": True,
            "k8s": {"resources": {"requests": {"cpu": "500m", "memory": "2048Mi"}}},
        },
        "ingressGateways": [
            {
                "name": INGRESS,
                "enabled": True,
                "label": {"istio": "ingressgateway"},
                "k8s": {
                    "resources": _GATEWAY,
                    "service": {"type": "LoadBalancer", "ports": INGRESS_PORTS},
                },
            }
        ],
        "egressGateways": [
            {
                "name": EGRESS,
                "enabled": False,
                "label": {"istio": "egressgateway"},
                "k8s": {
                    "resources": _GATEWAY,
                    "service": {"type": "ClusterIP", "ports": _EGRESS_PORTS},
                },
            }
        ],
    },
    "values": {
        "global": {
            "proxy": {
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {"cpu": "2000m", "memory": "1024Mi"},
                }
            }
        },
        "pilot": {
            "autoscaleEnabled": True,
            "autoscaleMin": 1,
            "autoscaleMax": 5,
            "traceSampling": 1.0,
        },
        "gateways": {
            INGRESS: {
                "autoscaleEnabled": True,
                "autoscaleMin": 1,
                "autoscaleMax": 5,
            },
            EGRESS: {"autoscaleEnabled": True, "autoscaleMin": 1, "autoscaleMax": 5},
        },
    },
}

_DEMO: Spec = {
    "meshConfig": {
        "accessLogFile": "/dev/stdout",
        "defaultConfig": {"tracing": {"sampling": 100.0}},
    },
    "components": {
        "pilot": {"k8s": {"resources": {"requests": {"cpu": "10m", "memory": "100Mi"}}}},
        "ingressGateways": [
            {
                "name": INGRESS,
                "k8s": {"resources": _SMALL, "service": {"ports": _DEMO_INGRESS_PORTS}},
            }
        ],
        "egressGateways": [{"name": EGRESS, "enabled": True, "k8s": {"resources": _SMALL}}],
    },
    "values": {
        "global": {
            "proxy": {"resources": {"requests": {"cpu": "10m", "memory": "40Mi"}, "limits": None}}
        },
        "pilot": {"autoscaleEnabled": False, "traceSampling": 100.0},
        "gateways": {
            INGRESS: {"autoscaleEnabled": False},
            EGRESS: {"autoscaleEnabled": False},
        },
    },
}

_MINIMAL: Spec = {
    "components": {
        "ingressGateways": [{"name": INGRESS, "enabled": False}],
    }
}

_EMPTY: Spec = {
    "components": {
        "base": {"enabled": False},
        "pilot": {"enabled": False},
        "ingressGateways": [{"name": INGRESS, "enabled": False}],
        "egressGateways": [{"name": EGRESS, "enabled": False}],
    }
}

PROFILES: Mapping[str, Spec] = {"default": {}, "demo": _DEMO, "minimal": _MINIMAL, "empty": _EMPTY}


class UnknownProfileError(ValueError):
    """The spec names a profile that does not exist; the text lists those that do."""


def merge(under: Any, over: Any) -> Any:
    """Lay ``over`` on ``under``: mappings merge, lists of named items merge by name, the rest is replaced.

    ``None`` in a mapping of ``over`` removes the key, as in a JSON merge patch.
    """
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        merged = dict(under)
        for key, value in over.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(merged[key], value) if key in merged else _without_nulls(value)
        return merged
    if _is_named(under) and _is_named(over) and _mergeable(under, over):
        by_name = {item["name"]: item for item in under}
        for item in over:
            by_name[item["name"]] = merge(by_name.get(item["name"], {}), item)
        return list(by_name.values())
    return _without_nulls(over)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


def _is_named(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(isinstance(item, Mapping) and "name" in item for item in value)
    )


def _mergeable(under: Any, over: Any) -> bool:
    # Gateways have an identity beyond this list; ports, env and the like are replaced as a whole.
    return any("label" in item or "k8s" in item or "enabled" in item for item in (*under, *over))


def resolve(spec: Mapping[str, Any]) -> Spec:
    """The spec with its profile filled in. Raises UnknownProfileError for a profile that does not exist."""
    name = spec.get("profile") or "default"
    if name not in PROFILES:
        raise UnknownProfileError(
            f"spec.profile: there is no profile {name!r}; choose one of {', '.join(sorted(PROFILES))}"
        )
    profile: Spec = merge(_BASE, PROFILES[name])
    values = merge(spec.get("values") or {}, spec.get("unvalidatedValues") or {})
    under = merge(profile, {"components": as_components(values)})
    spec = _named(profile["components"], spec)
    resolved: Spec = merge(under, {**spec, "values": values} if values else spec)
    for key in ("ingressGateways", "egressGateways"):
        resolved["components"][key] = _complete(
            profile["components"][key], resolved["components"].get(key) or []
        )
    resolved["profile"] = name
    return resolved


def _named(known: Mapping[str, Any], spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec, its nameless gateways named as the profile's at the same index.

    Istio's users write ``--set components.egressGateways[0].enabled=true``.
    """
    components = dict(spec.get("components") or {})
    for key in ("ingressGateways", "egressGateways"):
        if entries := components.get(key):
            names = [entry["name"] for entry in known[key]]
            components[key] = [
                {"name": names[i], **entry} if i < len(names) and not entry.get("name") else entry
                for i, entry in enumerate(entries)
            ]
    return {**spec, "components": components} if components else spec


def _complete(known: Sequence[Mapping[str, Any]], entries: Sequence[Spec]) -> list[Spec]:
    """Gateways beside the profile's own are made like it, where their entries say nothing else."""
    model = {"k8s": known[0]["k8s"]}
    names = {entry["name"] for entry in known}
    return [e if e.get("name") in names else merge(model, e) for e in entries]
