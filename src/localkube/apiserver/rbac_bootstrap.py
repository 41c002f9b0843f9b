"""The roles and bindings that exist in every cluster from the start.

Out: plain objects, which the server creates when they are missing. Names, labels and meaning are
those of Kubernetes' default roles (the RBAC page of its documentation), limited to the resources
that localkube serves; a role that a user has changed is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from localkube.apiserver import rbac
from localkube.apiserver.admission_contract import Object

_API_VERSION = "rbac.authorization.k8s.io/v1"
_BOOTSTRAP_LABEL = "kubernetes.io/bootstrapping"
_AGGREGATE_LABEL = "rbac.authorization.k8s.io/aggregate-to-"
READ = ("get", "list", "watch")
WRITE = ("create", "delete", "deletecollection", "patch", "update")
READ_WRITE = READ + WRITE


def _rule(
    group: str | Sequence[str], resources: str, verbs: Sequence[str], names: str = ""
) -> Object:
    rule: Object = {
        "apiGroups": [group] if isinstance(group, str) else list(group),
        "resources": resources.split(),
        "verbs": list(verbs),
    }
    if names:
        rule["resourceNames"] = names.split()
    return rule


def _urls(urls: str) -> Object:
    return {"nonResourceURLs": urls.split(), "verbs": ["get"]}


def _metadata(name: str, aggregate_to: str = "") -> Object:
    labels = {_BOOTSTRAP_LABEL: "rbac-defaults"}
    if aggregate_to:
        labels[_AGGREGATE_LABEL + aggregate_to] = "true"
    return {
        "name": name,
        "labels": labels,
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"},
    }


def _role(name: str, rules: list[Object], aggregate_to: str = "") -> Object:
    return {
        "apiVersion": _API_VERSION,
        "kind": "ClusterRole",
        "metadata": _metadata(name, aggregate_to),
        "rules": rules,
    }


def _aggregate(name: str) -> Object:
    role = _role(name, [], {"edit": "admin", "view": "edit"}.get(name, ""))
    role["aggregationRule"] = {
        "clusterRoleSelectors": [{"matchLabels": {_AGGREGATE_LABEL + name: "true"}}]
    }
    return role


def _binding(role: str, *subjects: tuple[str, str], name: str = "") -> Object:
    return {
        "apiVersion": _API_VERSION,
        "kind": "ClusterRoleBinding",
        "metadata": _metadata(name or role),
        "roleRef": {"apiGroup": rbac.GROUP, "kind": "ClusterRole", "name": role},
        "subjects": [
            {"kind": kind, "name": subject, "apiGroup": rbac.GROUP} for kind, subject in subjects
        ],
    }


_VIEW_RULES = [
    _rule(
        "",
        "configmaps endpoints persistentvolumeclaims persistentvolumeclaims/status pods "
        "replicationcontrollers replicationcontrollers/scale serviceaccounts services "
        "services/status bindings events limitranges namespaces/status pods/log pods/status "
        "replicationcontrollers/status resourcequotas resourcequotas/status namespaces",
        READ,
    ),
    _rule("discovery.k8s.io", "endpointslices", READ),
    _rule(
        "apps",
        "controllerrevisions daemonsets daemonsets/status deployments deployments/scale "
        "deployments/status replicasets replicasets/scale replicasets/status statefulsets "
        "statefulsets/scale statefulsets/status",
        READ,
    ),
    _rule("autoscaling", "horizontalpodautoscalers horizontalpodautoscalers/status", READ),
    _rule("batch", "cronjobs cronjobs/status jobs jobs/status", READ),
    _rule("policy", "poddisruptionbudgets poddisruptionbudgets/status", READ),
    _rule("networking.k8s.io", "ingresses ingresses/status networkpolicies", READ),
]
_EDIT_RULES = [
    _rule(
        "",
        "pods/attach pods/exec pods/portforward pods/proxy secrets services/proxy",
        READ,
    ),
    _rule("", "serviceaccounts", ("impersonate",)),
    _rule(
        "",
        "pods pods/attach pods/exec pods/portforward pods/proxy configmaps endpoints events "
        "persistentvolumeclaims replicationcontrollers replicationcontrollers/scale secrets "
        "serviceaccounts services services/proxy",
        WRITE,
    ),
    _rule("", "pods/eviction serviceaccounts/token", ("create",)),
    _rule(
        "apps",
        "daemonsets deployments deployments/rollback deployments/scale replicasets "
        "replicasets/scale statefulsets statefulsets/scale",
        WRITE,
    ),
    _rule("autoscaling", "horizontalpodautoscalers", WRITE),
    _rule("batch", "cronjobs jobs", WRITE),
    _rule("policy", "poddisruptionbudgets", WRITE),
    _rule("networking.k8s.io", "ingresses networkpolicies", WRITE),
    _rule("coordination.k8s.io", "leases", READ_WRITE),
]
_ADMIN_RULES = [
    _rule("authorization.k8s.io", "localsubjectaccessreviews", ("create",)),
    _rule(rbac.GROUP, "rolebindings roles", READ_WRITE),
]
_DISCOVERY_URLS = (
    "/api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/"
)
_NODE_RULES = [
    _rule("authentication.k8s.io", "tokenreviews", ("create",)),
    _rule("authorization.k8s.io", "localsubjectaccessreviews subjectaccessreviews", ("create",)),
    _rule("", "services", READ),
    _rule("", "nodes", ("create", "get", "list", "watch", "update", "patch")),
    _rule("", "nodes/status", ("patch", "update")),
    _rule("", "events", ("create", "patch", "update")),
    _rule("", "pods", ("get", "list", "watch", "create", "delete")),
    _rule("", "pods/status", ("patch", "update")),
    _rule("", "pods/eviction", ("create",)),
    _rule("", "configmaps secrets", READ),
    _rule("", "serviceaccounts/token", ("create",)),
    _rule("coordination.k8s.io", "leases", ("create", "delete", "get", "patch", "update")),
]


def _cluster_roles() -> list[Object]:
    everything = [_rule("*", "*", ("*",)), {"nonResourceURLs": ["*"], "verbs": ["*"]}]
    return [
        _role("cluster-admin", everything),
        _aggregate("admin"),
        _aggregate("edit"),
        _aggregate("view"),
        _role("system:aggregate-to-admin", _ADMIN_RULES, "admin"),
        _role("system:aggregate-to-edit", _EDIT_RULES, "edit"),
        _role("system:aggregate-to-view", _VIEW_RULES, "view"),
        _role("system:discovery", [_urls(_DISCOVERY_URLS)]),
        _role("system:public-info-viewer", [_urls("/healthz /livez /readyz /version /version/")]),
        _role("system:monitoring", [_urls("/healthz /healthz/* /livez /livez/* /metrics /readyz")]),
        _role(
            "system:basic-user",
            [
                _rule(
                    "authorization.k8s.io",
                    "selfsubjectaccessreviews selfsubjectrulesreviews",
                    ("create",),
                ),
                _rule("authentication.k8s.io", "selfsubjectreviews", ("create",)),
            ],
        ),
        _role(
            "system:auth-delegator",
            [
                _rule("authentication.k8s.io", "tokenreviews", ("create",)),
                _rule("authorization.k8s.io", "subjectaccessreviews", ("create",)),
            ],
        ),
        _role(
            "system:service-account-issuer-discovery",
            [
                _urls(
                    "/.well-known/openid-configuration /.well-known/openid-configuration/ "
                    "/openid/v1/jwks /openid/v1/jwks/"
                )
            ],
        ),
        _role("system:node", _NODE_RULES),
        _role("system:kube-dns", [_rule("", "endpoints services", ("list", "watch"))]),
        _role("system:kube-controller-manager", [_rule("*", "*", ("*",))]),
        _role(
            "system:kube-scheduler",
            [
                _rule("", "pods nodes namespaces services", READ),
                _rule("", "pods", ("delete",)),
                _rule("", "bindings pods/binding", ("create",)),
                _rule("", "pods/status", ("patch", "update")),
                _rule(("", "events.k8s.io"), "events", ("create", "patch", "update")),
                _rule("coordination.k8s.io", "leases", READ_WRITE),
            ],
        ),
    ]


def _cluster_role_bindings() -> list[Object]:
    authenticated = ("Group", "system:authenticated")
    return [
        _binding("cluster-admin", ("Group", "system:masters")),
        _binding("system:discovery", authenticated),
        _binding("system:basic-user", authenticated),
        _binding("system:public-info-viewer", authenticated, ("Group", "system:unauthenticated")),
        _binding("system:monitoring", ("Group", "system:monitoring")),
        _binding("system:service-account-issuer-discovery", ("Group", "system:serviceaccounts")),
        _binding("system:kube-controller-manager", ("User", "system:kube-controller-manager")),
        _binding("system:kube-scheduler", ("User", "system:kube-scheduler")),
    ]


def build_bootstrap_objects() -> list[tuple[str, Object]]:
    """(plural, object) of every default ClusterRole and ClusterRoleBinding, in creation order.

    Aggregating roles come with their aggregated rules written down, as `kubectl get` shows them.
    """
    roles = _cluster_roles()
    for role in roles:
        if "aggregationRule" in role:
            role["rules"] = [rule.encode() for rule in rbac.aggregate_rules(role, roles)]
    return [("clusterroles", role) for role in roles] + [
        ("clusterrolebindings", binding) for binding in _cluster_role_bindings()
    ]
