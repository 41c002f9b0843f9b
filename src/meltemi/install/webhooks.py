"""The webhook configurations: sidecar injection and validation.

istiod fills in ``caBundle``; it is left out here so that applying again does not take it away.
"""

from __future__ import annotations

from typing import Any

from meltemi.install.context import REVISION, InstallContext, Manifest, manifest

COMPONENT = "Pilot"
NEVER = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"]


def _expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    made: dict[str, Any] = {"key": key, "operator": operator}
    if values:
        made["values"] = list(values)
    return made


def _injector(
    context: InstallContext,
    name: str,
    namespace_rules: list[dict[str, Any]],
    object_rules: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "name": f"{name}.sidecar-injector.istio.io",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "timeoutSeconds": 10,
        "clientConfig": {
            "service": {
                "name": context.istiod,
                "namespace": context.namespace,
                "path": "/inject",
                "port": 443,
            }
        },
        "rules": [
            {
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "*",
            }
        ],
        "namespaceSelector": {"matchExpressions": namespace_rules},
        "objectSelector": {"matchExpressions": object_rules},
    }


def injection(context: InstallContext) -> Manifest:
    """MutatingWebhookConfiguration ``istio-sidecar-injector``.

    Four cases, at most one of which matches a pod: namespace or pod labelled with the revision; and, for the
    default revision, namespace labelled ``istio-injection=enabled`` or pod labelled
    ``sidecar.istio.io/inject=true`` in a namespace that says nothing.
    """
    inject, rev, switch = "sidecar.istio.io/inject", REVISION, "istio-injection"
    not_refused = _expression(inject, "NotIn", "false")
    outside = _expression("kubernetes.io/metadata.name", "NotIn", *NEVER)
    webhooks = [
        _injector(
            context,
            "rev.namespace",
            [
                _expression(rev, "In", context.revision_label),
                _expression(switch, "DoesNotExist"),
                outside,
            ],
            [not_refused],
        ),
        _injector(
            context,
            "rev.object",
            [_expression(rev, "DoesNotExist"), _expression(switch, "DoesNotExist"), outside],
            [not_refused, _expression(rev, "In", context.revision_label)],
        ),
    ]
    if not context.revision:
        webhooks += [
            _injector(
                context,
                "namespace",
                [_expression(switch, "In", "enabled"), outside],
                [not_refused],
            ),
            _injector(
                context,
                "object",
                [_expression(switch, "DoesNotExist"), _expression(rev, "DoesNotExist"), outside],
                [_expression(inject, "In", "true"), _expression(rev, "DoesNotExist")],
            ),
        ]
    return manifest(
        context,
        COMPONENT,
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        f"istio-sidecar-injector{context.suffix}"
        + ("" if context.namespace == "istio-system" else f"-{context.namespace}"),
        namespaced=False,
        labels={"app": "sidecar-injector"},
        webhooks=webhooks,
    )


def validation(context: InstallContext) -> Manifest:
    """ValidatingWebhookConfiguration ``istio-validator-istio-system``.

    It starts with failurePolicy Ignore; istiod turns it to Fail when it is ready to answer, so that a cluster
    whose istiod has never run can still be configured.
    """
    return manifest(
        context,
        COMPONENT,
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        f"istio-validator{context.suffix}-{context.namespace}",
        namespaced=False,
        labels={"app": context.istiod, "istio": "istiod"},
        webhooks=[
            {
                "name": "rev.validation.istio.io",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Ignore",
                "timeoutSeconds": 10,
                "clientConfig": {
                    "service": {
                        "name": context.istiod,
                        "namespace": context.namespace,
                        "path": "/validate",
                        "port": 443,
                    }
                },
                "rules": [
                    {
                        "apiGroups": [
                            "security.istio.io",
                            "networking.istio.io",
                            "telemetry.istio.io",
                            "extensions.istio.io",
                        ],
                        "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["*"],
                        "scope": "*",
                    }
                ],
                # Objects that name another revision are that revision's to judge.
                "objectSelector": {
                    "matchExpressions": [
                        _expression(REVISION, "In", context.revision_label)
                        if context.revision
                        else _expression(REVISION, "DoesNotExist")
                    ]
                },
            }
        ],
    )
