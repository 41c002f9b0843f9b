"""Names of API resources: where an object of a kind lives in the URL space.

Source of the paths: the Kubernetes API concepts ("/api/v1/..." for the core group,
"/apis/GROUP/VERSION/..." for all others).
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One resource: group ("" is core), version, plural name in URLs, kind, and its scope."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`v1`, `apps/v1`, ... as in an object's apiVersion."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """The URL path of a collection, an object or a subresource."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if namespace and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


NAMESPACES: Final = ResourceType("", "v1", "namespaces", "Namespace", namespaced=False)
NODES: Final = ResourceType("", "v1", "nodes", "Node", namespaced=False)
PODS: Final = ResourceType("", "v1", "pods", "Pod")
SERVICES: Final = ResourceType("", "v1", "services", "Service")
ENDPOINTS: Final = ResourceType("", "v1", "endpoints", "Endpoints")
CONFIG_MAPS: Final = ResourceType("", "v1", "configmaps", "ConfigMap")
SECRETS: Final = ResourceType("", "v1", "secrets", "Secret")
SERVICE_ACCOUNTS: Final = ResourceType("", "v1", "serviceaccounts", "ServiceAccount")
EVENTS: Final = ResourceType("", "v1", "events", "Event")
PERSISTENT_VOLUME_CLAIMS: Final = ResourceType(
    "", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"
)
DEPLOYMENTS: Final = ResourceType("apps", "v1", "deployments", "Deployment")
REPLICA_SETS: Final = ResourceType("apps", "v1", "replicasets", "ReplicaSet")
STATEFUL_SETS: Final = ResourceType("apps", "v1", "statefulsets", "StatefulSet")
DAEMON_SETS: Final = ResourceType("apps", "v1", "daemonsets", "DaemonSet")
CONTROLLER_REVISIONS: Final = ResourceType(
    "apps", "v1", "controllerrevisions", "ControllerRevision"
)
JOBS: Final = ResourceType("batch", "v1", "jobs", "Job")
CRON_JOBS: Final = ResourceType("batch", "v1", "cronjobs", "CronJob")
ENDPOINT_SLICES: Final = ResourceType("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
CERTIFICATE_SIGNING_REQUESTS: Final = ResourceType(
    "certificates.k8s.io",
    "v1",
    "certificatesigningrequests",
    "CertificateSigningRequest",
    namespaced=False,
)
LEASES: Final = ResourceType("coordination.k8s.io", "v1", "leases", "Lease")
POD_DISRUPTION_BUDGETS: Final = ResourceType(
    "policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"
)
HORIZONTAL_POD_AUTOSCALERS: Final = ResourceType(
    "autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"
)
CLUSTER_ROLES: Final = ResourceType(
    "rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False
)
CUSTOM_RESOURCE_DEFINITIONS: Final = ResourceType(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
)
