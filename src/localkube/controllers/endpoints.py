"""The controllers that keep EndpointSlices and Endpoints in step with Services and pods.

In: changes of Services, pods, nodes and slices. Out: writes, within milliseconds of the change.
Services without a selector are left alone: somebody else writes their endpoints.
"""

from typing import Any

from localkube.client.resources import ENDPOINT_SLICES, ENDPOINTS, NODES, PODS, SERVICES
from localkube.controllers.actions import Create, Delete, Plan, PlanBuilder, Update
from localkube.controllers.cache import BY_NAMESPACE, Cache
from localkube.controllers.endpoint_slices import (
    MANAGED_BY,
    MANAGER,
    SERVICE_NAME,
    endpoints_object,
    slices_to_write,
)
from localkube.controllers.labels import map_matches
from localkube.controllers.loop import Controller
from localkube.controllers.pods import is_terminating, labels_of

Object = dict[str, Any]


class _ServiceController(Controller):
    """Queues a Service when it, or a pod that it selects or selected, changes."""

    resource = SERVICES

    def watch(self, cache: Cache) -> None:
        """Services and pods."""
        cache.of(SERVICES).on_change(self.enqueue)
        cache.of(PODS).on_change(self._on_pod)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None and _same_for_services(old, new):
            return
        namespace = (new or old or {})["metadata"]["namespace"]
        for service in self.cache.of(SERVICES).by_index(BY_NAMESPACE, namespace):
            selector = service["spec"].get("selector")
            if any(pod and map_matches(selector, labels_of(pod)) for pod in (old, new)):
                self.enqueue(None, service)

    def _managed(self, key: str) -> Object | None:
        service = self.cache.of(SERVICES).by_key(key)
        if service is None or is_terminating(service):
            return None
        if service["spec"].get("type") == "ExternalName" or not service["spec"].get("selector"):
            return None
        return service


def _same_for_services(old: Object, new: Object) -> bool:
    """Whether nothing changed that an endpoint shows (most pod updates are such)."""

    def shown(pod: Object) -> tuple[Any, ...]:
        status = pod.get("status") or {}
        ready = [c.get("status") for c in status.get("conditions") or [] if c["type"] == "Ready"]
        return (
            labels_of(pod),
            bool(pod["metadata"].get("deletionTimestamp")),
            pod["spec"].get("nodeName"),
            status.get("podIP"),
            status.get("phase"),
            ready,
        )

    return shown(old) == shown(new)


class EndpointSliceController(_ServiceController):
    """Writes EndpointSlices."""

    name = "endpointslice"
    workers = 4

    def watch(self, cache: Cache) -> None:
        """Also slices (somebody may change ours) and nodes (for zones)."""
        super().watch(cache)
        cache.of(ENDPOINT_SLICES).on_change(self._on_slice)
        cache.of(NODES)

    def _on_slice(self, old: Object | None, new: Object | None) -> None:
        for obj in (old, new):
            if obj is not None and labels_of(obj).get(MANAGED_BY) == MANAGER:
                name = labels_of(obj).get(SERVICE_NAME)
                self.queue.add(f"{obj['metadata']['namespace']}/{name}")

    def plan(self, key: str) -> Plan | None:
        """Decide about one Service's slices."""
        service = self._managed(key)
        namespace, _, name = key.partition("/")
        existing = [
            s
            for s in self.cache.of(ENDPOINT_SLICES).by_index(BY_NAMESPACE, namespace)
            if labels_of(s).get(MANAGED_BY) == MANAGER
            and labels_of(s).get(SERVICE_NAME) == name
            and not is_terminating(s)
        ]
        plan = PlanBuilder()
        if service is None:
            # Of a Service that is gone, or has lost its selector: nothing may remain.
            present = self.cache.of(SERVICES).by_key(key)
            if present is None or present["spec"].get("type") == "ExternalName":
                plan.add(*(Delete(ENDPOINT_SLICES, s) for s in existing))
            return plan.plan()
        pods = self.cache.of(PODS).by_index(BY_NAMESPACE, namespace)
        nodes = {node["metadata"]["name"]: node for node in self.cache.of(NODES).items()}
        existing.sort(key=lambda s: str(s["metadata"]["creationTimestamp"]))
        create, update, delete = slices_to_write(service, pods, nodes, existing)
        plan.add(*(Update(ENDPOINT_SLICES, s) for s in update))
        plan.add(*(Create(ENDPOINT_SLICES, s) for s in create))
        plan.add(*(Delete(ENDPOINT_SLICES, s) for s in delete))
        return plan.plan()


class EndpointsController(_ServiceController):
    """Writes the older Endpoints objects, for clients that still read them."""

    name = "endpoints"

    def watch(self, cache: Cache) -> None:
        """Also Endpoints (somebody may change ours)."""
        super().watch(cache)
        cache.of(ENDPOINTS).on_change(self.enqueue)

    def plan(self, key: str) -> Plan | None:
        """Decide about one Service's Endpoints."""
        service = self._managed(key)
        old = self.cache.of(ENDPOINTS).by_key(key)
        if service is None:
            gone = self.cache.of(SERVICES).by_key(key) is None
            if gone and old is not None and _ours(old):
                return Plan([Delete(ENDPOINTS, old)])
            return None
        pods = self.cache.of(PODS).by_index(BY_NAMESPACE, key.partition("/")[0])
        wanted = endpoints_object(service, pods, old)
        if wanted is None:
            return None
        if old is None:
            return Plan([Create(ENDPOINTS, wanted, exists_ok=True)])
        return Plan([Update(ENDPOINTS, wanted)])


def _ours(endpoints: Object) -> bool:
    return "endpoints.kubernetes.io/managed-by" in labels_of(endpoints)
