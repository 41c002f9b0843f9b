"""Built-in admission: what Kubernetes does to objects besides calling webhooks.

In: an operation. Out: its object, changed in place, or ApiError. Here: service accounts of pods
(with the token volume), priorities, the status of CustomResourceDefinitions, and the guard against
granting more rights than one has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from secrets import choice
from typing import TYPE_CHECKING

from localkube.apiserver import authz, crd, errors, rbac, tokens

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import Object, ObjectReader, Operation
    from localkube.apiserver.authn import User

TOKEN_MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a directory
_MIRROR = "kubernetes.io/config.mirror"
_ACCOUNT_WAIT_S = 2.0
"""A new namespace's default account is made by a controller; Kubernetes waits about a second."""
_ACCOUNT_POLL_S = 0.05
_NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_SYSTEM_PRIORITIES = {"system-cluster-critical": 2000000000, "system-node-critical": 2000001000}
_SCHEDULING_GROUP = "scheduling.k8s.io"


class BuiltinAdmission:
    """The built-in plugins over one store."""

    def __init__(
        self,
        reader: ObjectReader,
        authorizer: authz.Authorizer,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reader = reader
        self._authorizer = authorizer
        self._clock = clock

    async def mutate(self, operation: Operation) -> None:
        """Change the object before any webhook sees it. Raises ApiError."""
        obj, resource = operation.object, operation.resource
        if obj is None or operation.subresource:
            return
        if (resource.group, resource.plural) == ("", "pods") and operation.verb == "CREATE":
            await self._assign_account(operation, obj)
            self._assign_priority(operation, obj)

    async def settle(self, operation: Operation) -> None:
        """Set what only the server may set, after all webhooks have run."""
        obj, resource = operation.object, operation.resource
        if obj is None or (resource.group, resource.plural) != (crd.GROUP, crd.PLURAL):
            return
        if operation.subresource or crd.validate_crd(obj):
            return  # validation rejects it next
        others = self._reader.read_all(crd.GROUP, crd.PLURAL)
        obj["status"] = crd.build_status(obj, others, tokens.timestamp(self._clock()))
        operation.warnings.extend(crd.warnings_for(obj))

    def validate(self, operation: Operation) -> None:
        """Check the final object. Raises ApiError."""
        if operation.resource.group != rbac.GROUP or operation.object is None:
            return
        if operation.verb not in ("CREATE", "UPDATE"):
            return
        if authz.MASTERS_GROUP in operation.user.groups:
            return
        match operation.resource.plural:
            case "roles" | "clusterroles":
                self._check_role(operation, operation.object)
            case "rolebindings" | "clusterrolebindings":
                self._check_binding(operation, operation.object)

    # -- pods ---------------------------------------------------------------------------------

    async def _assign_account(self, operation: Operation, pod: Object) -> None:
        annotations = pod["metadata"].get("annotations") or {}
        spec = pod.setdefault("spec", {})
        if _MIRROR in annotations:
            return
        name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        account = await self._wait_for_account(operation.namespace or "", name)
        if account is None:
            raise errors.forbidden(
                "pods",
                operation.name,
                f"error looking up service account {operation.namespace}/{name}: "
                f'serviceaccount "{name}" not found',
            )
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = [dict(ref) for ref in account["imagePullSecrets"]]
        automount = spec.get("automountServiceAccountToken")
        if automount is None:
            automount = account.get("automountServiceAccountToken")
        if automount is not False:
            _mount_token(spec)

    async def _wait_for_account(self, namespace: str, name: str) -> Object | None:
        deadline = time.monotonic() + _ACCOUNT_WAIT_S
        while True:
            account = self._reader.read("", "serviceaccounts", namespace, name)
            if account is not None or time.monotonic() >= deadline:
                return account
            await asyncio.sleep(_ACCOUNT_POLL_S)

    def _assign_priority(self, operation: Operation, pod: Object) -> None:
        spec = pod["spec"]
        name = spec.get("priorityClassName")
        if not name:
            default = next(
                (
                    entry
                    for entry in self._reader.read_all(_SCHEDULING_GROUP, "priorityclasses")
                    if entry.get("globalDefault")
                ),
                None,
            )
            if default is None:
                spec.setdefault("priority", 0)
                spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
                return
            name = spec["priorityClassName"] = default["metadata"]["name"]
        entry = self._reader.read(_SCHEDULING_GROUP, "priorityclasses", None, name)
        value = entry.get("value") if entry is not None else _SYSTEM_PRIORITIES.get(name)
        if value is None:
            raise errors.forbidden(
                "pods", operation.name, f"no PriorityClass with name {name} was found"
            )
        spec["priority"] = value
        policy = (entry or {}).get("preemptionPolicy") or "PreemptLowerPriority"
        spec.setdefault("preemptionPolicy", policy)

    # -- rights -------------------------------------------------------------------------------

    def _check_role(self, operation: Operation, role: Object) -> None:
        old = operation.old_object or {}
        unchanged = all(old.get(k) == role.get(k) for k in ("rules", "aggregationRule"))
        if operation.verb == "UPDATE" and unchanged:
            return
        if self._may(operation, "escalate", operation.resource.plural, operation.name):
            return
        wanted: Sequence[rbac.Rule] = rbac.decode_rules(role)
        if role.get("aggregationRule"):
            wanted = [*wanted, rbac.Rule(("*",), ("*",), ("*",)), rbac.Rule(("*",), urls=("*",))]
        self._check_rules(operation, wanted)

    def _check_binding(self, operation: Operation, binding: Object) -> None:
        old = operation.old_object or {}
        unchanged = all(old.get(k) == binding.get(k) for k in ("roleRef", "subjects"))
        if operation.verb == "UPDATE" and unchanged:
            return
        ref = binding.get("roleRef") or {}
        plural = "clusterroles" if ref.get("kind") == "ClusterRole" else "roles"
        name = str(ref.get("name") or "")
        if self._may(operation, "bind", plural, name):
            return
        rules = self._authorizer.index.rules_of_role(ref, operation.namespace or "")
        if rules is None:
            raise errors.not_found(plural, name, rbac.GROUP)
        self._check_rules(operation, rules)

    def _may(self, operation: Operation, verb: str, plural: str, name: str) -> bool:
        attributes = authz.Attributes(
            verb,
            rbac.GROUP,
            "v1",
            plural,
            namespace=operation.namespace or "",
            name=name,
        )
        return self._authorizer.authorize(operation.user, attributes).allowed

    def _check_rules(self, operation: Operation, wanted: Sequence[rbac.Rule]) -> None:
        missing = self._authorizer.index.missing_rules(
            operation.user, operation.namespace or "", wanted
        )
        if missing:
            raise errors.forbidden(
                operation.resource.plural,
                operation.name,
                _escalation_text(operation.user, missing),
                rbac.GROUP,
            )


def _escalation_text(user: User, missing: Sequence[rbac.Rule]) -> str:
    groups = ", ".join(f'"{group}"' for group in user.groups)
    lines = "\n".join(dict.fromkeys(_compact(rule) for rule in missing))
    return (
        f'user "{user.name}" (groups=[{groups}]) is attempting to grant RBAC permissions not '
        f"currently held:\n{lines}"
    )


def _compact(rule: rbac.Rule) -> str:
    fields = (
        ("APIGroups", rule.groups),
        ("Resources", rule.resources),
        ("ResourceNames", rule.resource_names),
        ("NonResourceURLs", rule.urls),
        ("Verbs", rule.verbs),
    )
    shown = [
        f"{name}:[{', '.join(f'{value!r}' for value in values)}]".replace("'", '"')
        for name, values in fields
        if values
    ]
    return "{" + ", ".join(shown) + "}"


def _mount_token(spec: Object) -> None:
    """Add the token volume to a pod, and its mount to every container that has none there."""
    volumes = spec.setdefault("volumes", [])
    if not isinstance(volumes, list):
        return
    name = next(
        (v["name"] for v in volumes if str(v.get("name", "")).startswith("kube-api-access-")), ""
    )
    new_name = name or "kube-api-access-" + "".join(choice(_NAME_ALPHABET) for _ in range(5))
    mounted = False
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            mounts = container.setdefault("volumeMounts", [])
            if any(mount.get("mountPath") == TOKEN_MOUNT_PATH for mount in mounts):
                continue
            mounts.append({"name": new_name, "readOnly": True, "mountPath": TOKEN_MOUNT_PATH})
            mounted = True
    if mounted and not name:
        volumes.append(_token_volume(new_name))
    if not volumes:
        del spec["volumes"]


def _token_volume(name: str) -> Object:
    """The volume that Kubernetes projects: token, the cluster's CA, and the namespace."""
    namespace = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    return {
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {
                    "serviceAccountToken": {
                        "expirationSeconds": tokens.EXTENDED_FROM_S,
                        "path": "token",
                    }
                },
                {
                    "configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                    }
                },
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": namespace}]}},
            ],
        },
    }
