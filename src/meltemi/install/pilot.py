"""Component Pilot: istiod with its settings, identity and webhooks."""

from __future__ import annotations

import json
from typing import Any

import yaml

from meltemi.install import overlays, webhooks
from meltemi.install.context import InstallContext, Manifest, manifest
from meltemi.install.profiles import merge

COMPONENT = "Pilot"
_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]
_WRITE = ["get", "list", "watch", "create", "update", "patch", "delete"]

CLUSTER_RULES = [
    {
        "apiGroups": ["admissionregistration.k8s.io"],
        "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
        "verbs": [*_READ, "update", "patch"],
    },
    {
        "apiGroups": [
            "config.istio.io",
            "security.istio.io",
            "networking.istio.io",
            "extensions.istio.io",
            "telemetry.istio.io",
        ],
        "resources": ["*"],
        "verbs": [*_READ, "update", "patch"],
    },
    {
        "apiGroups": ["networking.istio.io"],
        "resources": ["workloadentries", "workloadentries/status", "serviceentries/status"],
        "verbs": _WRITE,
    },
    {
        "apiGroups": ["apiextensions.k8s.io"],
        "resources": ["customresourcedefinitions"],
        "verbs": _READ,
    },
    {
        "apiGroups": [""],
        "resources": ["pods", "nodes", "services", "namespaces", "endpoints", "secrets"],
        "verbs": _READ,
    },
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": _WRITE},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": _READ},
    {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": _READ},
    {
        "apiGroups": ["networking.k8s.io"],
        "resources": ["ingresses", "ingressclasses"],
        "verbs": _READ,
    },
    {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["*"]},
    {
        "apiGroups": ["gateway.networking.k8s.io"],
        "resources": ["*"],
        "verbs": [*_READ, "update", "patch"],
    },
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {
        "apiGroups": ["authorization.k8s.io"],
        "resources": ["subjectaccessreviews"],
        "verbs": ["create"],
    },
]
NAMESPACE_RULES = [
    # The CA's key lives in a Secret of this namespace; leases elect who writes status.
    {
        "apiGroups": [""],
        "resources": ["secrets"],
        "verbs": [*_READ, "create", "update", "patch", "delete"],
    },
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": _WRITE},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": _WRITE},
]
PORTS = [
    {"name": "grpc-xds", "port": 15010, "protocol": "TCP"},
    {"name": "https-dns", "port": 15012, "protocol": "TCP"},
    {"name": "https-mtls", "port": 15013, "protocol": "TCP"},
    {"name": "https-webhook", "port": 443, "targetPort": 15017, "protocol": "TCP"},
    {"name": "http-monitoring", "port": 15014, "protocol": "TCP"},
]


def mesh_config(context: InstallContext) -> dict[str, Any]:
    """The mesh-wide settings: our defaults under the user's ``spec.meshConfig``."""
    defaults: dict[str, Any] = {
        "rootNamespace": context.namespace,
        "defaultConfig": {
            "discoveryAddress": f"{context.istiod}.{context.namespace}.svc:15012",
        },
    }
    merged: dict[str, Any] = merge(defaults, context.spec.get("meshConfig") or {})
    return merged


def injector_values(context: InstallContext) -> dict[str, Any]:
    """What the injector needs to know beyond the mesh settings."""
    own = {
        "global": {
            "hub": context.hub,
            "tag": context.tag,
            "istioNamespace": context.namespace,
            "proxy": {"image": "proxy"},
        },
        "revision": context.revision,
    }
    merged: dict[str, Any] = merge(own, context.values)
    return merged


def _signing_rules(context: InstallContext) -> list[dict[str, Any]]:
    """What istiod needs when the cluster signs workload certificates (``EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API``)."""
    environment = (context.values.get("pilot") or {}).get("env") or {}
    if environment.get("EXTERNAL_CA") != "ISTIOD_RA_KUBERNETES_API":
        return []
    signer, domain = environment.get("K8S_SIGNER"), environment.get("CERT_SIGNER_DOMAIN")
    return signing_rules([*([signer] if signer else []), *([f"{domain}/*"] if domain else [])])


def signing_rules(signers: list[str]) -> list[dict[str, Any]]:
    """Submit, approve and remove signing requests for these signers."""
    group = "certificates.k8s.io"
    return [
        {
            "apiGroups": [group],
            "resources": ["certificatesigningrequests"],
            "verbs": ["create", "get", "delete", "watch"],
        },
        {
            "apiGroups": [group],
            "resources": ["certificatesigningrequests/approval"],
            "verbs": ["update"],
        },
        {
            "apiGroups": [group],
            "resources": ["signers"],
            "verbs": ["approve"],
            **({} if signers == ["*"] else {"resourceNames": signers}),
        },
    ]


def _roles(context: InstallContext, account: str) -> list[Manifest]:
    subject = [{"kind": "ServiceAccount", "name": account, "namespace": context.namespace}]
    cluster = f"istiod-clusterrole{context.suffix}-{context.namespace}"
    return [
        manifest(context, COMPONENT, "v1", "ServiceAccount", account, labels={"app": "istiod"}),
        manifest(
            context,
            COMPONENT,
            f"{_RBAC}/v1",
            "ClusterRole",
            cluster,
            namespaced=False,
            labels={"app": "istiod"},
            rules=[*CLUSTER_RULES, *_signing_rules(context)],
        ),
        manifest(
            context,
            COMPONENT,
            f"{_RBAC}/v1",
            "ClusterRoleBinding",
            cluster,
            namespaced=False,
            labels={"app": "istiod"},
            roleRef={"apiGroup": _RBAC, "kind": "ClusterRole", "name": cluster},
            subjects=subject,
        ),
        manifest(context, COMPONENT, f"{_RBAC}/v1", "Role", account, rules=NAMESPACE_RULES),
        manifest(
            context,
            COMPONENT,
            f"{_RBAC}/v1",
            "RoleBinding",
            account,
            roleRef={"apiGroup": _RBAC, "kind": "Role", "name": account},
            subjects=subject,
        ),
    ]


def _environment(context: InstallContext) -> list[dict[str, Any]]:
    pilot = context.values.get("pilot") or {}
    own: dict[str, Any] = {
        "REVISION": context.revision_label,
        "PILOT_CERT_PROVIDER": "istiod",
        "CLUSTER_ID": ((context.values.get("global") or {}).get("multiCluster") or {}).get(
            "clusterName", "Kubernetes"
        ),
        "PILOT_TRACE_SAMPLING": str(pilot.get("traceSampling", 1.0)),
        **{key: str(value) for key, value in (pilot.get("env") or {}).items()},
    }
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    return [
        *({"name": key, "value": value} for key, value in own.items()),
        *(
            {"name": key, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
            for key, path in fields.items()
        ),
    ]


def _log_level(context: InstallContext) -> str:
    logging = (context.values.get("global") or {}).get("logging") or {}
    return str(logging.get("level") or "default:info")


def _deployment(context: InstallContext, account: str, component: dict[str, Any]) -> Manifest:
    selector = {"app": "istiod"}
    if context.revision:
        selector["istio.io/rev"] = context.revision
    else:
        selector["istio"] = "pilot"
    container = {
        "name": "discovery",
        "image": context.image("istiod", component),
        "args": [
            "discovery",
            "--monitoringAddr=:15014",
            f"--log_output_level={_log_level(context)}",
            "--domain=cluster.local",
        ],
        "env": _environment(context),
        "ports": [
            {"name": "http-debug", "containerPort": 8080, "protocol": "TCP"},
            {"name": "grpc-xds", "containerPort": 15010, "protocol": "TCP"},
            {"name": "tls-xds", "containerPort": 15012, "protocol": "TCP"},
            {"name": "mtls-xds", "containerPort": 15013, "protocol": "TCP"},
            {"name": "https-webhooks", "containerPort": 15017, "protocol": "TCP"},
            {"name": "http-monitoring", "containerPort": 15014, "protocol": "TCP"},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": 8080},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 1337,
            "runAsGroup": 1337,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config-volume", "mountPath": "/etc/istio/config", "readOnly": True},
            {"name": "local-certs", "mountPath": "/var/run/secrets/istio-dns"},
            {"name": "cacerts", "mountPath": "/etc/cacerts", "readOnly": True},
            {"name": "istio-kubeconfig", "mountPath": "/var/run/secrets/remote", "readOnly": True},
            {"name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": True},
        ],
    }
    return manifest(
        context,
        COMPONENT,
        "apps/v1",
        "Deployment",
        context.istiod,
        labels={"app": "istiod", "istio": "pilot"},
        spec={
            "replicas": 1,
            "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}},
            "selector": {"matchLabels": selector},
            "template": {
                "metadata": {
                    "labels": {
                        "app": "istiod",
                        "istio": "pilot",
                        "istio.io/rev": context.revision_label,
                        "sidecar.istio.io/inject": "false",
                    },
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": "15014",
                        "sidecar.istio.io/inject": "false",
                    },
                },
                "spec": {
                    "serviceAccountName": account,
                    "securityContext": {"fsGroup": 1337},
                    "containers": [container],
                    "volumes": [
                        {"name": "local-certs", "emptyDir": {"medium": "Memory"}},
                        {
                            "name": "istio-token",
                            "projected": {
                                "sources": [
                                    {
                                        "serviceAccountToken": {
                                            "audience": "istio-ca",
                                            "expirationSeconds": 43200,
                                            "path": "istio-token",
                                        }
                                    }
                                ]
                            },
                        },
                        {
                            "name": "config-volume",
                            "configMap": {"name": f"istio{context.suffix}", "optional": True},
                        },
                        {
                            "name": "cacerts",
                            "secret": {"secretName": "cacerts", "optional": True},
                        },
                        {
                            "name": "istio-kubeconfig",
                            "secret": {"secretName": "istio-kubeconfig", "optional": True},
                        },
                    ],
                },
            },
        },
    )


def render(context: InstallContext) -> list[Manifest]:
    """Everything of istiod, in the order in which it should be applied."""
    component = dict(context.components.get("pilot") or {})
    account = f"istiod{context.suffix}"
    networks = (context.values.get("global") or {}).get("meshNetworks") or {}
    made = [
        *_roles(context, account),
        manifest(
            context,
            COMPONENT,
            "v1",
            "ConfigMap",
            f"istio{context.suffix}",
            data={
                "mesh": yaml.safe_dump(mesh_config(context), sort_keys=True),
                "meshNetworks": yaml.safe_dump({"networks": networks}, sort_keys=True),
            },
        ),
        manifest(
            context,
            COMPONENT,
            "v1",
            "ConfigMap",
            f"istio-sidecar-injector{context.suffix}",
            data={
                "config": yaml.safe_dump(
                    {"policy": "enabled", "defaultTemplates": ["sidecar"]}, sort_keys=True
                ),
                "values": json.dumps(injector_values(context), indent=2, sort_keys=True),
            },
        ),
        manifest(
            context,
            COMPONENT,
            "v1",
            "Service",
            context.istiod,
            labels={"app": "istiod", "istio": "pilot"},
            annotations=(component.get("k8s") or {}).get("serviceAnnotations"),
            spec={
                "ports": PORTS,
                "selector": {"app": "istiod"}
                | ({"istio.io/rev": context.revision} if context.revision else {"istio": "pilot"}),
            },
        ),
        _deployment(context, account, component),
        webhooks.injection(context),
        webhooks.validation(context),
    ]
    pilot = context.values.get("pilot") or {}
    made += overlays.scaling(context, COMPONENT, context.istiod, {"app": "istiod"}, pilot)
    return overlays.apply_k8s(made, context.istiod, component.get("k8s") or {}, COMPONENT)
