"""What every namespace gets (ServiceAccount `default`, the cluster's CA), and how it ends.

In: Namespaces and what is in them. Out: created objects; for a namespace that is being deleted:
deletion of everything in it, custom resources included, then its finalization.
"""

import copy
from typing import Any, Final

from localkube.client import ApiClient, ApiStatusError
from localkube.client.resources import CONFIG_MAPS, NAMESPACES, PODS, SERVICE_ACCOUNTS
from localkube.controllers.actions import (
    Create,
    Executor,
    Patch,
    Plan,
    PlanBuilder,
    status_patch,
)
from localkube.controllers.cache import Cache
from localkube.controllers.discovery import Discovery
from localkube.controllers.loop import Controller
from localkube.controllers.pods import is_terminating, with_condition
from localkube.kit import clock

Object = dict[str, Any]
FINALIZER: Final = "kubernetes"
_LOOK_AGAIN: Final = 0.25  # seconds; pods take their grace period to end
_LOOK_AGAIN_LATER: Final = 2.0


class NamespaceContentsController(Controller):
    """Keeps the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt` in each namespace."""

    name = "namespace-contents"
    resource = NAMESPACES

    def __init__(self, cache: Cache, executor: Executor, ca_pem: str) -> None:
        self._ca_pem = ca_pem
        super().__init__(cache, executor)

    def watch(self, cache: Cache) -> None:
        """Namespaces, and the loss or change of the two objects."""
        cache.of(NAMESPACES).on_change(self.enqueue)
        for resource, name in ((SERVICE_ACCOUNTS, "default"), (CONFIG_MAPS, "kube-root-ca.crt")):
            cache.of(resource).on_change(self._namespace_of(name))

    def _namespace_of(self, name: str) -> Any:
        def handler(old: Object | None, new: Object | None) -> None:
            obj = new if new is not None else old
            if obj is not None and obj["metadata"]["name"] == name:
                self.queue.add(obj["metadata"]["namespace"])

        return handler

    def plan(self, key: str) -> Plan | None:
        """Decide about one namespace."""
        namespace = self.cache.of(NAMESPACES).by_key(key)
        if namespace is None or is_terminating(namespace):
            return None
        plan = PlanBuilder()
        if self.cache.of(SERVICE_ACCOUNTS).get("default", key) is None:
            account = {"apiVersion": "v1", "kind": "ServiceAccount"}
            meta = {"name": "default", "namespace": key}
            plan.add(Create(SERVICE_ACCOUNTS, {**account, "metadata": meta}, exists_ok=True))
        wanted = {"ca.crt": self._ca_pem}
        known = self.cache.of(CONFIG_MAPS).get("kube-root-ca.crt", key)
        if known is None:
            plan.add(Create(CONFIG_MAPS, _root_ca(key, wanted), exists_ok=True))
        elif known.get("data") != wanted:
            plan.add(Patch(CONFIG_MAPS, known, {"data": wanted}))
        return plan.plan()


def _root_ca(namespace: str, data: dict[str, str]) -> Object:
    text = (
        "Contains a CA bundle that can be used to verify the kube-apiserver when using internal "
        "endpoints such as the internal service IP or kubernetes.default.svc."
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "kube-root-ca.crt",
            "namespace": namespace,
            "annotations": {"kubernetes.io/description": text},
        },
        "data": data,
    }


class NamespaceDeletionController(Controller):
    """Empties namespaces that are being deleted."""

    name = "namespace-deletion"
    resource = NAMESPACES
    workers = 4

    def __init__(self, cache: Cache, executor: Executor, discovery: Discovery) -> None:
        self._discovery = discovery
        super().__init__(cache, executor)

    def plan(self, key: str) -> Plan | None:
        """Unused: deleting depends on what the server answers step by step."""
        return None

    async def reconcile(self, key: str) -> float | None:
        """Delete what is left; finalize when nothing is."""
        namespace = self.cache.of(NAMESPACES).by_key(key)
        if namespace is None or not is_terminating(namespace):
            return None
        finalizers = (namespace.get("spec") or {}).get("finalizers") or []
        if FINALIZER not in finalizers:
            return None
        remaining = await self._empty(key)
        if remaining:
            await self._tell(namespace, remaining)
            return _LOOK_AGAIN if PODS.plural in remaining else _LOOK_AGAIN_LATER
        done = copy.deepcopy(namespace)
        done["spec"]["finalizers"] = [name for name in finalizers if name != FINALIZER]
        try:
            await self.executor.client.update(NAMESPACES, done, subresource="finalize")
        except ApiStatusError as error:
            if not error.not_found:
                raise
        return None

    async def _empty(self, namespace: str) -> dict[str, int]:
        """Delete everything -> what is still there: resource name -> count."""
        client = self.executor.client
        remaining: dict[str, int] = {}
        for resource in await self._discovery.namespaced_deletable():
            try:
                count = await _count(client, resource.path(namespace))
                if count == 0:
                    continue
                await client.delete_collection(resource, namespace)
                count = await _count(client, resource.path(namespace))
            except ApiStatusError as error:
                if error.code in (404, 405):
                    continue  # the resource has gone meanwhile, or cannot be listed or deleted
                raise
            if count:
                name = f"{resource.plural}.{resource.group}" if resource.group else resource.plural
                remaining[name] = count
        return remaining

    async def _tell(self, namespace: Object, remaining: dict[str, int]) -> None:
        text = ", ".join(
            f"{name} has {count} resource instances" for name, count in remaining.items()
        )
        entry = {
            "type": "NamespaceContentRemaining",
            "status": "True",
            "reason": "SomeResourcesRemain",
            "message": f"Some resources are remaining: {text}",
        }
        status = dict(namespace.get("status") or {})
        old = status.get("conditions") or []
        known = next((c for c in old if c.get("type") == entry["type"]), None)
        if known is not None and known.get("message") == entry["message"]:
            return
        status["conditions"] = with_condition(old, entry, clock.rfc3339(clock.now()))
        patch = status_patch(NAMESPACES, namespace, status)
        if patch is not None:
            await self.executor.run([patch])


async def _count(client: ApiClient, path: str) -> int:
    page = await client.request_json("GET", path, query={"limit": "500"})
    return len(page.get("items") or [])
