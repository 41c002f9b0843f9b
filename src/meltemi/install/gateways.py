"""Components IngressGateways and EgressGateways: a proxy of type router behind a Service, per entry.

The pods are described by their outline only; the injector fills in the proxy (template ``gateway``), so that a
gateway is upgraded by restarting it, like any sidecar.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meltemi.install import overlays
from meltemi.install.context import InstallContext, Manifest, manifest

INGRESS = "IngressGateways"
EGRESS = "EgressGateways"


def _deployment(
    context: InstallContext, component: str, name: str, labels: Mapping[str, str], account: str
) -> Manifest:
    pod_labels = {
        **labels,
        "sidecar.istio.io/inject": "true",
        "service.istio.io/canonical-name": name,
        "service.istio.io/canonical-revision": context.revision or "latest",
    }
    if context.revision:
        pod_labels["istio.io/rev"] = context.revision
    return manifest(
        context,
        component,
        "apps/v1",
        "Deployment",
        name,
        labels=labels,
        spec={
            "replicas": 1,
            "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
            "selector": {"matchLabels": dict(labels)},
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": {
                        "inject.istio.io/templates": "gateway",
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": "15020",
                        "prometheus.io/path": "/stats/prometheus",
                    },
                },
                "spec": {
                    "serviceAccountName": account,
                    "containers": [{"name": "istio-proxy", "image": "auto"}],
                },
            },
        },
    )


def _secret_access(
    context: InstallContext, component: str, name: str, labels: Mapping[str, str], account: str
) -> list[Manifest]:
    """istiod gives a gateway only Secrets that its own account may read: those of its namespace."""
    role, group = f"{name}-sds", "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "watch", "list"]}]
    subject = {"kind": "ServiceAccount", "name": account, "namespace": context.namespace}
    reference = {"apiGroup": group, "kind": "Role", "name": role}
    return [
        manifest(context, component, f"{group}/v1", "Role", role, labels=labels, rules=rules),
        manifest(
            context,
            component,
            f"{group}/v1",
            "RoleBinding",
            role,
            labels=labels,
            roleRef=reference,
            subjects=[subject],
        ),
    ]


def _one(
    context: InstallContext, component: str, entry: Mapping[str, Any], default_label: str
) -> list[Manifest]:
    name = entry["name"]
    own = InstallContext(
        name=context.name,
        owner_namespace=context.owner_namespace,
        namespace=entry.get("namespace") or context.namespace,
        revision=context.revision,
        hub=context.hub,
        tag=context.tag,
        spec=context.spec,
    )
    labels = {"app": name, "istio": default_label, **(entry.get("label") or {})}
    account = f"{name}-service-account"
    k8s = dict(entry.get("k8s") or {})
    service = dict(k8s.get("service") or {})
    made = [
        manifest(own, component, "v1", "ServiceAccount", account, labels=labels),
        *_secret_access(own, component, name, labels, account),
        _deployment(own, component, name, labels, account),
        manifest(
            own,
            component,
            "v1",
            "Service",
            name,
            labels=labels,
            annotations=k8s.get("serviceAnnotations"),
            spec={"selector": labels, **service},
        ),
    ]
    scaling = context.values.get("gateways") or {}
    values = scaling.get(name) or scaling.get(f"istio-{default_label}") or {}
    made += overlays.scaling(own, component, name, labels, values)
    return overlays.apply_k8s(made, name, k8s, f"{component} {name}")


def render(context: InstallContext, component: str) -> list[Manifest]:
    """Every enabled gateway of one component."""
    key, label = (
        ("ingressGateways", "ingressgateway")
        if component == INGRESS
        else ("egressGateways", "egressgateway")
    )
    made: list[Manifest] = []
    for entry in context.components.get(key) or []:
        if entry.get("enabled"):
            made += _one(context, component, entry, label)
    return made
