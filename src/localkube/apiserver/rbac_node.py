"""What a node agent (system:node:<name> in system:nodes) may do beyond what RBAC grants it.

In: the node's name, the request and the stored pods. Out: allowed or the reason why not. It follows
Kubernetes' node authorizer and NodeRestriction: a node writes only its own Node, Lease and the pods
bound to it, and reads only the Secrets and ConfigMaps which those pods refer to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader
    from localkube.apiserver.authn import User
    from localkube.apiserver.authz import Attributes

NODE_GROUP = "system:nodes"
NODE_USER_PREFIX = "system:node:"

_READ = frozenset({"get", "list", "watch"})
_WRITE = frozenset({"create", "update", "patch"})
_READABLE = frozenset(
    {
        ("", "nodes"),
        ("", "pods"),
        ("", "services"),
        ("", "endpoints"),
        ("", "namespaces"),
        ("", "serviceaccounts"),
        ("", "persistentvolumes"),
        ("", "persistentvolumeclaims"),
        ("discovery.k8s.io", "endpointslices"),
        ("node.k8s.io", "runtimeclasses"),
        ("coordination.k8s.io", "leases"),
    }
)
_CREATABLE = frozenset(
    {
        ("authentication.k8s.io", "tokenreviews"),
        ("authorization.k8s.io", "subjectaccessreviews"),
        ("authorization.k8s.io", "localsubjectaccessreviews"),
        ("certificates.k8s.io", "certificatesigningrequests"),
    }
)


def node_of(user: User) -> str | None:
    """The node that the user is, or None."""
    if NODE_GROUP in user.groups and user.name.startswith(NODE_USER_PREFIX):
        return user.name.removeprefix(NODE_USER_PREFIX)
    return None


def authorize_node(reader: ObjectReader, node: str, attributes: Attributes) -> tuple[bool, str]:
    """(allowed, reason for a refusal)."""
    if attributes.path:
        return False, ""
    key = (attributes.group, attributes.resource)
    verb = attributes.verb
    if key in (("", "secrets"), ("", "configmaps")):
        return _authorize_referenced(reader, node, attributes)
    if key in _READABLE and verb in _READ and not attributes.subresource:
        return True, ""
    if key in _CREATABLE and verb == "create":
        return True, ""
    if key in (("", "events"), ("events.k8s.io", "events")):
        return verb in _WRITE, ""
    if key == ("", "nodes"):
        if verb in _WRITE and attributes.name in ("", node):
            return attributes.subresource in ("", "status"), ""
        return False, f"node '{node}' cannot modify node '{attributes.name}'"
    if key == ("", "services"):
        # The agent serves LoadBalancer addresses: it annotates the Service with the ports that it
        # forwards, and reports in its status those which it could not open.
        return attributes.subresource in ("", "status") and verb == "patch", ""
    if key == ("coordination.k8s.io", "leases"):
        return (verb in _WRITE or verb == "delete") and (
            attributes.namespace == "kube-node-lease" and attributes.name in ("", node)
        ), f"node '{node}' may only write its own lease in kube-node-lease"
    if key == ("", "serviceaccounts") and attributes.subresource == "token":
        allowed = verb == "create" and any(
            _service_account(pod) == attributes.name
            for pod in _pods_of(reader, node, attributes.namespace)
        )
        return allowed, f"no relationship found between node '{node}' and this object"
    if key == ("", "pods"):
        return _authorize_pod(reader, node, attributes)
    return False, ""


def _authorize_referenced(
    reader: ObjectReader, node: str, attributes: Attributes
) -> tuple[bool, str]:
    """Secrets and ConfigMaps: one at a time, and only those that a pod of this node uses."""
    if attributes.verb not in _READ or attributes.subresource:
        return False, f"node '{node}' can only read {attributes.resource}"
    if not attributes.name:
        return False, "No Object name found"
    for pod in _pods_of(reader, node, attributes.namespace):
        if (attributes.resource, attributes.name) in set(referenced_objects(pod)):
            return True, ""
    return False, f"no relationship found between node '{node}' and this object"


def _authorize_pod(reader: ObjectReader, node: str, attributes: Attributes) -> tuple[bool, str]:
    if attributes.verb == "create" and not attributes.subresource:
        return True, ""  # a mirror pod
    if attributes.verb not in ("update", "patch", "delete", "create"):
        return False, ""
    if attributes.subresource not in ("", "status", "eviction"):
        return False, ""
    if attributes.subresource == "" and attributes.verb != "delete":
        return False, f"node '{node}' can only update the status of pods"
    pod = reader.read("", "pods", attributes.namespace, attributes.name)
    if pod is None or (pod.get("spec") or {}).get("nodeName") == node:
        return True, ""  # a pod that is gone is the handler's 404
    return False, f"node '{node}' can only change pods with spec.nodeName set to itself"


def _pods_of(reader: ObjectReader, node: str, namespace: str) -> Iterator[Object]:
    for pod in reader.read_all("", "pods", namespace):
        if (pod.get("spec") or {}).get("nodeName") == node:
            yield pod


def _service_account(pod: Object) -> str:
    return str((pod.get("spec") or {}).get("serviceAccountName") or "default")


def referenced_objects(pod: Object) -> Iterator[tuple[str, str]]:
    """("secrets" or "configmaps", name) of everything a pod's spec refers to."""
    spec = pod.get("spec") or {}
    for secret in spec.get("imagePullSecrets") or ():
        yield "secrets", secret.get("name", "")
    for volume in spec.get("volumes") or ():
        yield from _volume_references(volume)
        for source in (volume.get("projected") or {}).get("sources") or ():
            yield from _volume_references(source)
    for field in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(field) or ():
            yield from _environment_references(container)


def _volume_references(volume: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if secret := volume.get("secret"):
        yield "secrets", secret.get("secretName") or secret.get("name") or ""
    if config_map := volume.get("configMap"):
        yield "configmaps", config_map.get("name", "")


def _environment_references(container: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for source in container.get("envFrom") or ():
        if ref := source.get("secretRef"):
            yield "secrets", ref.get("name", "")
        if ref := source.get("configMapRef"):
            yield "configmaps", ref.get("name", "")
    for variable in container.get("env") or ():
        value_from = variable.get("valueFrom") or {}
        if ref := value_from.get("secretKeyRef"):
            yield "secrets", ref.get("name", "")
        if ref := value_from.get("configMapKeyRef"):
            yield "configmaps", ref.get("name", "")
