"""The built-in resources: what /api/v1 and the /apis groups serve before any CRD exists.

Names, short names, categories, verbs and subresources are those of Kubernetes 1.37
(`kubectl api-resources -o wide` of a stock cluster), limited to the kinds that localkube keeps.
"""

from __future__ import annotations

from localkube.apiserver.resources import ALL_VERBS, Resource, ResourceTable

_CREATE = ("create",)
# Where OpenAPI keeps a group's definitions.
_SCHEMA_PREFIX = {
    "": "io.k8s.api.core.v1",
    "admissionregistration.k8s.io": "io.k8s.api.admissionregistration.v1",
    "apiextensions.k8s.io": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1",
    "apiregistration.k8s.io": "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1",
}
_SCALE = ("spec.replicas", "status.replicas", "status.selector")


def _schema(group: str, version: str, kind: str) -> str:
    prefix = _SCHEMA_PREFIX.get(group)
    if prefix is None:
        prefix = f"io.k8s.api.{group.split('.')[0]}.{version}"
    return f"{prefix}.{kind}"


def _resource(
    group_version: str,
    plural: str,
    kind: str,
    short: str = "",
    *,
    cluster: bool = False,
    sub: str = "",
    verbs: tuple[str, ...] = ALL_VERBS,
    categories: str = "",
    storage: str = "",
    singular: str = "",
) -> Resource:
    group, _, version = group_version.rpartition("/")
    subresources = frozenset(sub.split())
    return Resource(
        group=group,
        version=version,
        plural=plural,
        kind=kind,
        singular=singular,
        short_names=tuple(short.split()),
        categories=tuple(categories.split()),
        namespaced=not cluster,
        verbs=verbs,
        subresources=subresources,
        storage=storage,
        schema_name=_schema(group, version, kind),
        scale_paths=_SCALE if "scale" in subresources else None,
    )


def _core() -> list[Resource]:
    return [
        _resource("v1", "bindings", "Binding", verbs=_CREATE),
        _resource("v1", "configmaps", "ConfigMap", "cm"),
        _resource("v1", "endpoints", "Endpoints", "ep", singular="endpoints"),
        _resource("v1", "events", "Event", "ev"),
        _resource("v1", "limitranges", "LimitRange", "limits"),
        _resource("v1", "namespaces", "Namespace", "ns", cluster=True, sub="status finalize"),
        _resource("v1", "nodes", "Node", "no", cluster=True, sub="status proxy"),
        _resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc", sub="status"),
        _resource("v1", "persistentvolumes", "PersistentVolume", "pv", cluster=True, sub="status"),
        _resource(
            "v1",
            "pods",
            "Pod",
            "po",
            sub="status log exec attach portforward proxy binding eviction",
            categories="all",
        ),
        _resource("v1", "podtemplates", "PodTemplate"),
        _resource(
            "v1",
            "replicationcontrollers",
            "ReplicationController",
            "rc",
            sub="status scale",
            categories="all",
        ),
        _resource("v1", "resourcequotas", "ResourceQuota", "quota", sub="status"),
        _resource("v1", "secrets", "Secret"),
        _resource("v1", "serviceaccounts", "ServiceAccount", "sa", sub="token"),
        _resource("v1", "services", "Service", "svc", sub="status proxy", categories="all"),
    ]


def _workloads() -> list[Resource]:
    return [
        _resource("apps/v1", "controllerrevisions", "ControllerRevision"),
        _resource("apps/v1", "daemonsets", "DaemonSet", "ds", sub="status", categories="all"),
        _resource(
            "apps/v1", "deployments", "Deployment", "deploy", sub="status scale", categories="all"
        ),
        _resource(
            "apps/v1", "replicasets", "ReplicaSet", "rs", sub="status scale", categories="all"
        ),
        _resource(
            "apps/v1", "statefulsets", "StatefulSet", "sts", sub="status scale", categories="all"
        ),
        _resource("batch/v1", "jobs", "Job", sub="status", categories="all"),
        _resource("batch/v1", "cronjobs", "CronJob", "cj", sub="status", categories="all"),
        _resource(
            "autoscaling/v2",
            "horizontalpodautoscalers",
            "HorizontalPodAutoscaler",
            "hpa",
            sub="status",
            categories="all",
        ),
        _resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", sub="status"),
    ]


def _extension() -> list[Resource]:
    admission = "admissionregistration.k8s.io/v1"
    return [
        _resource(
            admission,
            "mutatingwebhookconfigurations",
            "MutatingWebhookConfiguration",
            cluster=True,
            categories="api-extensions",
        ),
        _resource(
            admission,
            "validatingwebhookconfigurations",
            "ValidatingWebhookConfiguration",
            cluster=True,
            categories="api-extensions",
        ),
        _resource(
            admission,
            "validatingadmissionpolicies",
            "ValidatingAdmissionPolicy",
            cluster=True,
            sub="status",
            categories="api-extensions",
        ),
        _resource(
            admission,
            "validatingadmissionpolicybindings",
            "ValidatingAdmissionPolicyBinding",
            cluster=True,
            categories="api-extensions",
        ),
        _resource(
            "apiextensions.k8s.io/v1",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            "crd crds",
            cluster=True,
            sub="status",
            categories="api-extensions",
        ),
        _resource(
            "apiregistration.k8s.io/v1",
            "apiservices",
            "APIService",
            cluster=True,
            sub="status",
            categories="api-extensions",
        ),
    ]


def _access() -> list[Resource]:
    authn, authz = "authentication.k8s.io/v1", "authorization.k8s.io/v1"
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        _resource(authn, "selfsubjectreviews", "SelfSubjectReview", cluster=True, verbs=_CREATE),
        _resource(authn, "tokenreviews", "TokenReview", cluster=True, verbs=_CREATE),
        _resource(authz, "localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=_CREATE),
        _resource(
            authz,
            "selfsubjectaccessreviews",
            "SelfSubjectAccessReview",
            cluster=True,
            verbs=_CREATE,
        ),
        _resource(
            authz, "selfsubjectrulesreviews", "SelfSubjectRulesReview", cluster=True, verbs=_CREATE
        ),
        _resource(
            authz, "subjectaccessreviews", "SubjectAccessReview", cluster=True, verbs=_CREATE
        ),
        _resource(rbac, "clusterrolebindings", "ClusterRoleBinding", cluster=True),
        _resource(rbac, "clusterroles", "ClusterRole", cluster=True),
        _resource(rbac, "rolebindings", "RoleBinding"),
        _resource(rbac, "roles", "Role"),
        _resource(
            "certificates.k8s.io/v1",
            "certificatesigningrequests",
            "CertificateSigningRequest",
            "csr",
            cluster=True,
            sub="status approval",
        ),
    ]


def _rest() -> list[Resource]:
    networking, storage = "networking.k8s.io/v1", "storage.k8s.io/v1"
    return [
        _resource("coordination.k8s.io/v1", "leases", "Lease"),
        _resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice"),
        _resource("events.k8s.io/v1", "events", "Event", "ev", storage="events"),
        _resource(networking, "ingressclasses", "IngressClass", cluster=True),
        _resource(networking, "ingresses", "Ingress", "ing", sub="status"),
        _resource(networking, "networkpolicies", "NetworkPolicy", "netpol"),
        _resource("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", cluster=True),
        _resource("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", "pc", cluster=True),
        _resource(storage, "csidrivers", "CSIDriver", cluster=True),
        _resource(storage, "csinodes", "CSINode", cluster=True),
        _resource(storage, "storageclasses", "StorageClass", "sc", cluster=True),
    ]


def builtin_table() -> ResourceTable:
    """Return a new table with every built-in resource."""
    table = ResourceTable()
    table.add(*_core(), *_workloads(), *_extension(), *_access(), *_rest())
    return table
