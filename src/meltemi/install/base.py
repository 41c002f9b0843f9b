"""Component Base: the API of the mesh (CRDs) and the identities that clusters share.

CRDs are never pruned with the rest: deleting one deletes every object of its kind. ``uninstall --purge``
removes them on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable

from meltemi.install.context import InstallContext, Manifest, manifest

COMPONENT = "Base"
OPERATOR_GROUP = "install.istio.io"

_READ = ["get", "list", "watch"]
READER_RULES = [
    {
        "apiGroups": [
            "config.istio.io",
            "security.istio.io",
            "networking.istio.io",
            "extensions.istio.io",
            "telemetry.istio.io",
            "rbac.istio.io",
        ],
        "resources": ["*"],
        "verbs": _READ,
    },
    {
        "apiGroups": [""],
        "resources": [
            "endpoints",
            "pods",
            "services",
            "nodes",
            "replicationcontrollers",
            "namespaces",
            "secrets",
        ],
        "verbs": _READ,
    },
    {"apiGroups": ["networking.istio.io"], "resources": ["workloadentries"], "verbs": _READ},
    {
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions"],
        "verbs": _READ,
    },
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": _READ},
    {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": _READ},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {
        "apiGroups": ["authorization.k8s.io"],
        "resources": ["subjectaccessreviews"],
        "verbs": ["create"],
    },
]


def render(context: InstallContext, crds: Iterable[Manifest]) -> list[Manifest]:
    """The CRDs (made by the config stage) and the reader role that remote clusters use."""
    role = f"istio-reader-clusterrole{context.suffix}-{context.namespace}"
    account = "istio-reader-service-account"
    made = []
    for crd in crds:
        if crd["spec"]["group"] == OPERATOR_GROUP:
            continue  # the operator brings its own
        labels = {**crd["metadata"].get("labels", {}), **context.labels(COMPONENT)}
        made.append({**crd, "metadata": {**crd["metadata"], "labels": labels}})
    return [
        *made,
        manifest(context, COMPONENT, "v1", "ServiceAccount", account),
        manifest(
            context,
            COMPONENT,
            "rbac.authorization.k8s.io/v1",
            "ClusterRole",
            role,
            namespaced=False,
            rules=READER_RULES,
        ),
        manifest(
            context,
            COMPONENT,
            "rbac.authorization.k8s.io/v1",
            "ClusterRoleBinding",
            role,
            namespaced=False,
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            subjects=[{"kind": "ServiceAccount", "name": account, "namespace": context.namespace}],
        ),
    ]
