"""The operator itself: what ``meltemi operator init`` installs and ``meltemi operator dump`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meltemi.install.base import OPERATOR_GROUP, READER_RULES
from meltemi.install.context import NAMESPACE_LABELS
from meltemi.install.pilot import CLUSTER_RULES, NAMESPACE_RULES, signing_rules
from meltemi.install.profiles import HUB, VERSION

Manifest = dict[str, Any]
NAME = "istio-operator"
_RBAC = "rbac.authorization.k8s.io"


def _rules() -> list[dict[str, Any]]:
    everything = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
    return [
        {"apiGroups": ["install.istio.io"], "resources": ["*"], "verbs": everything},
        {
            "apiGroups": [""],
            "resources": [
                "configmaps",
                "events",
                "namespaces",
                "pods",
                "secrets",
                "serviceaccounts",
                "services",
            ],
            "verbs": everything,
        },
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": everything},
        {
            "apiGroups": ["autoscaling"],
            "resources": ["horizontalpodautoscalers"],
            "verbs": everything,
        },
        {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": everything},
        {
            "apiGroups": ["admissionregistration.k8s.io"],
            "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
            "verbs": everything,
        },
        {
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "verbs": everything,
        },
        {
            "apiGroups": [_RBAC],
            "resources": ["clusterroles", "clusterrolebindings", "roles", "rolebindings"],
            "verbs": everything,
        },
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": everything},
        # RBAC lets nobody grant what he has not: the operator holds all that it gives to istiod.
        *CLUSTER_RULES,
        *signing_rules(["*"]),
        *NAMESPACE_RULES,
        *READER_RULES,
    ]


def render(
    crds: Iterable[Manifest],
    *,
    hub: str = HUB,
    tag: str = VERSION,
    namespace: str = "istio-operator",
    watched: str = "",
) -> list[Manifest]:
    """The objects of the operator; of ``crds`` (all that we define) it takes its own. ``watched``: comma-separated namespaces, empty for all."""
    labels = {"name": NAME}
    meta = {"name": NAME, "namespace": namespace, "labels": labels}
    container = {
        "name": NAME,
        "image": f"{hub}/operator:{tag}",
        "args": ["server"],
        "env": [
            {"name": "WATCH_NAMESPACE", "value": watched},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {
                "name": "POD_NAMESPACE",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
            },
        ],
        "ports": [{"name": "http-health", "containerPort": 8080}],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": 8080},
            "periodSeconds": 1,
            "failureThreshold": 30,
        },
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 1337,
            "runAsGroup": 1337,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": namespace,
                "labels": {**NAMESPACE_LABELS, "istio-injection": "disabled"},
            },
        },
        *(crd for crd in crds if crd["spec"]["group"] == OPERATOR_GROUP),
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": NAME, "labels": labels},
            "rules": _rules(),
        },
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME, "labels": labels},
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": NAME},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}],
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta,
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"serviceAccountName": NAME, "containers": [container]},
                },
            },
        },
    ]
