"""A policy over a store in memory, and short ways to put objects through it."""

from __future__ import annotations

import copy
import uuid
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from localkube.apiserver.admission_contract import Operation
from localkube.apiserver.admission_wiring import ClusterPolicy
from localkube.apiserver.authn import User
from localkube.apiserver.builtin_resources import builtin_table
from localkube.apiserver.errors import ApiError, FieldError, invalid
from localkube.apiserver.resources import Resource
from localkube.apiserver.store import Store

Object = dict[str, Any]
ADMIN = User("kubernetes-admin", groups=("system:masters", "system:authenticated"))
JANE = User("jane", groups=("system:authenticated",))


class World:
    """One cluster without HTTP: what the API core does around the policy, in the same order."""

    def __init__(self) -> None:
        self.store = Store(None)
        self.table = builtin_table()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.policy = ClusterPolicy(self.store, self.table, self.key)
        for plural, obj in self.policy.bootstrap_objects():
            self.put(plural, obj, "rbac.authorization.k8s.io")
        self.put("namespaces", {"metadata": {"name": "default"}})
        self.put("serviceaccounts", {"metadata": {"name": "default", "namespace": "default"}})

    def put(self, plural: str, obj: Object, group: str = "") -> Object:
        """Store an object as it is; it gets a uid."""
        obj = copy.deepcopy(obj)
        metadata = obj["metadata"]
        metadata.setdefault("uid", str(uuid.uuid4()))
        storage = f"{plural}.{group}" if group else plural
        namespace = metadata.get("namespace", "")
        if self.store.get(storage, namespace, metadata["name"]) is None:
            return self.store.create(storage, namespace, metadata["name"], obj).object
        return self.store.update(storage, namespace, metadata["name"], obj).object

    def remove(self, plural: str, name: str, namespace: str = "", group: str = "") -> None:
        self.store.delete(f"{plural}.{group}" if group else plural, namespace, name)

    def resource(self, obj: Object) -> Resource:
        group, _, version = obj["apiVersion"].rpartition("/")
        found = self.table.for_kind(group, version, obj["kind"])
        assert found is not None, obj
        return found

    def decode(self, obj: Object, field_validation: str = "Strict") -> tuple[Object, list[str]]:
        """(object with defaults, warnings)."""
        obj = copy.deepcopy(obj)
        warnings = self.policy.prune(self.resource(obj), obj, field_validation)
        return self.policy.default(self.resource(obj), obj), warnings

    def check(self, obj: Object) -> list[str]:
        """The errors of a new object, as text."""
        try:
            decoded, _ = self.decode(obj)
        except ApiError as error:
            return [error.message]
        return _texts(self.policy.validate_create(self.resource(obj), decoded))

    def check_update(self, new: Object, old: Object) -> list[str]:
        decoded, _ = self.decode(new)
        before, _ = self.decode(old)
        return _texts(self.policy.validate_update(self.resource(new), decoded, before))

    def operation(self, obj: Object, user: User = ADMIN, **more: Any) -> Operation:
        metadata = obj["metadata"]
        return Operation(
            verb=more.pop("verb", "CREATE"),
            resource=self.resource(obj),
            subresource=more.pop("subresource", ""),
            namespace=metadata.get("namespace"),
            name=metadata.get("name", ""),
            object=more.pop("object", obj),
            old_object=more.pop("old_object", None),
            user=user,
            **more,
        )

    async def create(
        self, obj: Object, user: User = ADMIN, field_validation: str = "Strict", **more: Any
    ) -> tuple[Object, list[str]]:
        """Put a new object through the whole policy and store it: (object, warnings)."""
        resource = self.resource(obj)
        decoded, warnings = self.decode(obj, field_validation)
        operation = self.operation(decoded, user, warnings=warnings, **more)
        await self.policy.mutate(operation)
        assert operation.object is not None
        errors = self.policy.validate_create(resource, operation.object)
        if errors:
            raise invalid(resource.kind, operation.name, errors, resource.group)
        await self.policy.validate(operation)
        stored = self.put(resource.plural, operation.object, resource.group)
        return stored, operation.warnings


def _texts(errors: list[FieldError]) -> list[str]:
    return [str(error) for error in errors]


def pod(name: str = "web", namespace: str = "default", **spec: Any) -> Object:
    """A small valid pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "app", "image": "example/app:1"}], **spec},
    }


def deployment(**spec: Any) -> Object:
    """A small valid Deployment."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "app", "image": "example/app:1"}]},
            },
            **spec,
        },
    }


def crd(schema: Object, group: str = "example.com", **version: Any) -> Object:
    """A CRD of kind Widget (widgets.example.com) with this schema for spec and status."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    **version,
                }
            ],
        },
    }


def widget(name: str = "w", **fields: Any) -> Object:
    return {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": name, "namespace": "default"},
        **fields,
    }
