"""Default values of built-in kinds, as far as clients notice them.

In: an object of a built-in kind whose types are right. Out: the same object with defaults filled
in, in place. Promises to be idempotent and never to change a value that is there. The values are
the documented ones of the Kubernetes API reference; pods are in `defaults_pods`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from localkube.apiserver.defaults_pods import default_pod_spec, default_pod_template

Object = dict[str, Any]
RBAC_GROUP = "rbac.authorization.k8s.io"


def default_object(group: str, kind: str, obj: Object) -> Object:
    """Fill in the defaults of this kind; kinds without any are returned as they are."""
    function = _BY_KIND.get((group, kind))
    if function is not None:
        function(obj)
    return obj


def _spec(obj: Object) -> Object:
    spec = obj.get("spec")
    if not isinstance(spec, dict):
        spec = obj["spec"] = {}
    return spec


def _default_pod(obj: Object) -> None:
    default_pod_spec(_spec(obj))


def _default_deployment(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.get("rollingUpdate") or {}
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
        strategy["rollingUpdate"] = rolling
    default_pod_template(spec)


def _default_replica_set(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("replicas", 1)
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if labels and not (obj.get("metadata") or {}).get("labels"):
        obj.setdefault("metadata", {})["labels"] = dict(labels)
    default_pod_template(spec)


def _default_stateful_set(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("podManagementPolicy", "OrderedReady")
    strategy = spec.setdefault("updateStrategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.get("rollingUpdate") or {}
        rolling.setdefault("partition", 0)
        strategy["rollingUpdate"] = rolling
    retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
    retention.setdefault("whenDeleted", "Retain")
    retention.setdefault("whenScaled", "Retain")
    for claim in spec.get("volumeClaimTemplates") or ():
        claim.setdefault("apiVersion", "v1")
        claim.setdefault("kind", "PersistentVolumeClaim")
        _default_claim(claim)
    default_pod_template(spec)


def _default_daemon_set(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("revisionHistoryLimit", 10)
    strategy = spec.setdefault("updateStrategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.get("rollingUpdate") or {}
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)
        strategy["rollingUpdate"] = rolling
    default_pod_template(spec)


def _default_job(obj: Object) -> None:
    _default_job_spec(_spec(obj))


def _default_job_spec(spec: Object) -> None:
    if spec.get("completions") is None and spec.get("parallelism") is None:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")
    default_pod_template(spec)


def _default_cron_job(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("concurrencyPolicy", "Allow")
    spec.setdefault("suspend", False)
    spec.setdefault("successfulJobsHistoryLimit", 3)
    spec.setdefault("failedJobsHistoryLimit", 1)
    template = spec.get("jobTemplate")
    if isinstance(template, dict):
        _default_job_spec(_spec(template))


def _default_service(obj: Object) -> None:
    spec = _spec(obj)
    kind = spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {})
        config.setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, "", 0) and "port" in port:
            port["targetPort"] = port["port"]
    if kind == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if kind in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    # This is a single-stack IPv4 cluster.
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    spec.setdefault("ipFamilies", ["IPv4"])
    if spec.get("clusterIP") and not spec.get("clusterIPs"):
        spec["clusterIPs"] = [spec["clusterIP"]]


def _default_secret(obj: Object) -> None:
    obj.setdefault("type", "Opaque")
    plain = obj.pop("stringData", None)
    if plain:
        values = obj.get("data") or {}
        for key, text in plain.items():
            values[key] = base64.b64encode(str(text).encode()).decode()
        obj["data"] = values


def _default_namespace(obj: Object) -> None:
    metadata = obj.setdefault("metadata", {})
    labels = metadata.get("labels") or {}
    if metadata.get("name"):
        labels.setdefault("kubernetes.io/metadata.name", metadata["name"])
        metadata["labels"] = labels
    finalizers = _spec(obj).setdefault("finalizers", ["kubernetes"])
    if not finalizers and not metadata.get("deletionTimestamp"):
        finalizers.append("kubernetes")
    obj.setdefault("status", {}).setdefault("phase", "Active")


def _default_claim(obj: Object) -> None:
    _spec(obj).setdefault("volumeMode", "Filesystem")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def _default_volume(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("volumeMode", "Filesystem")
    spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
    obj.setdefault("status", {}).setdefault("phase", "Pending")


def _default_endpoints(obj: Object) -> None:
    for subset in obj.get("subsets") or ():
        for port in subset.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _default_endpoint_slice(obj: Object) -> None:
    for port in obj.get("ports") or ():
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")


def _default_role_binding(obj: Object) -> None:
    ref = obj.get("roleRef")
    if isinstance(ref, dict):
        ref["apiGroup"] = ref.get("apiGroup") or RBAC_GROUP
    namespace = (obj.get("metadata") or {}).get("namespace")
    for subject in obj.get("subjects") or ():
        if subject.get("kind") in ("User", "Group"):
            subject["apiGroup"] = subject.get("apiGroup") or RBAC_GROUP
        elif subject.get("kind") == "ServiceAccount" and namespace:
            subject.setdefault("namespace", namespace)


def _default_webhook_configuration(obj: Object) -> None:
    mutating = obj.get("kind") == "MutatingWebhookConfiguration"
    for webhook in obj.get("webhooks") or ():
        webhook.setdefault("failurePolicy", "Fail")
        webhook.setdefault("matchPolicy", "Equivalent")
        webhook.setdefault("namespaceSelector", {})
        webhook.setdefault("objectSelector", {})
        webhook.setdefault("timeoutSeconds", 10)
        if mutating:
            webhook.setdefault("reinvocationPolicy", "Never")
        for rule in webhook.get("rules") or ():
            rule.setdefault("scope", "*")
        service = (webhook.get("clientConfig") or {}).get("service")
        if isinstance(service, dict):
            service.setdefault("port", 443)


def _default_network_policy(obj: Object) -> None:
    spec = _spec(obj)
    for direction in ("ingress", "egress"):
        for rule in spec.get(direction) or ():
            for port in rule.get("ports") or ():
                port.setdefault("protocol", "TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _default_autoscaler(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("minReplicas", 1)
    if not spec.get("metrics"):
        spec["metrics"] = [
            {
                "type": "Resource",
                "resource": {
                    "name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": 80},
                },
            }
        ]


def _default_crd(obj: Object) -> None:
    spec = _spec(obj)
    names = spec.get("names")
    if isinstance(names, dict) and names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", f"{names['kind']}List")
    conversion = spec.setdefault("conversion", {"strategy": "None"})
    service = ((conversion.get("webhook") or {}).get("clientConfig") or {}).get("service")
    if isinstance(service, dict):
        service.setdefault("port", 443)


def _default_priority_class(obj: Object) -> None:
    obj.setdefault("preemptionPolicy", "PreemptLowerPriority")


_BY_KIND: dict[tuple[str, str], Callable[[Object], None]] = {
    ("", "Pod"): _default_pod,
    ("", "PodTemplate"): default_pod_template,
    ("", "Service"): _default_service,
    ("", "Secret"): _default_secret,
    ("", "Namespace"): _default_namespace,
    ("", "PersistentVolumeClaim"): _default_claim,
    ("", "PersistentVolume"): _default_volume,
    ("", "Endpoints"): _default_endpoints,
    ("", "ReplicationController"): _default_replica_set,
    ("apps", "Deployment"): _default_deployment,
    ("apps", "ReplicaSet"): _default_replica_set,
    ("apps", "StatefulSet"): _default_stateful_set,
    ("apps", "DaemonSet"): _default_daemon_set,
    ("batch", "Job"): _default_job,
    ("batch", "CronJob"): _default_cron_job,
    ("discovery.k8s.io", "EndpointSlice"): _default_endpoint_slice,
    (RBAC_GROUP, "RoleBinding"): _default_role_binding,
    (RBAC_GROUP, "ClusterRoleBinding"): _default_role_binding,
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
    ): _default_webhook_configuration,
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
    ): _default_webhook_configuration,
    ("networking.k8s.io", "NetworkPolicy"): _default_network_policy,
    ("autoscaling", "HorizontalPodAutoscaler"): _default_autoscaler,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _default_crd,
    ("scheduling.k8s.io", "PriorityClass"): _default_priority_class,
}
