"""EndpointSlices of Endpoints objects that people write by hand, for Services without a selector.

In: an Endpoints object, its Service, the slices made of it so far. Out: slices with the same
addresses, which the node and a mesh read. Source: the Kubernetes documentation "EndpointSlices",
section "EndpointSlice mirroring".
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from localkube.client.resources import ENDPOINT_SLICES, ENDPOINTS, SERVICES
from localkube.controllers.actions import Create, Delete, Plan, PlanBuilder, Update
from localkube.controllers.cache import BY_NAMESPACE, Cache
from localkube.controllers.endpoint_slices import MANAGED_BY, SERVICE_NAME
from localkube.controllers.loop import Controller
from localkube.controllers.pods import is_terminating, labels_of, owner_reference

Object = dict[str, Any]
MIRROR: Final = "endpointslicemirroring-controller.k8s.io"
SKIP: Final = "endpointslice.kubernetes.io/skip-mirror"
_LEADER: Final = "control-plane.alpha.kubernetes.io/leader"
_PRIVATE: Final = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "endpoints.kubernetes.io/last-change-trigger-time",
    }
)


def mirrored(endpoints: Object) -> list[Object]:
    """The slices that say what an Endpoints object says: one per subset and address family."""
    meta = endpoints["metadata"]
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k not in _PRIVATE}
    labels = {**labels_of(endpoints), SERVICE_NAME: meta["name"], MANAGED_BY: MIRROR}
    slices: list[Object] = []
    for subset in endpoints.get("subsets") or []:
        families: dict[str, list[Object]] = {}
        for field, ready in (("addresses", True), ("notReadyAddresses", False)):
            for address in subset.get(field) or []:
                family = f"IPv{ip_address(address['ip']).version}"
                families.setdefault(family, []).append(_endpoint(address, ready))
        slices.extend(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "generateName": f"{meta['name']}-",
                    "namespace": meta["namespace"],
                    "labels": labels,
                    **({"annotations": annotations} if annotations else {}),
                    "ownerReferences": [owner_reference(ENDPOINTS, endpoints)],
                },
                "addressType": family,
                "endpoints": found,
                "ports": [_port(port) for port in subset.get("ports") or []],
            }
            for family, found in families.items()
        )
    return slices


def _endpoint(address: Object, ready: bool) -> Object:
    endpoint: Object = {"addresses": [address["ip"]], "conditions": {"ready": ready}}
    for field in ("hostname", "nodeName", "targetRef"):
        if address.get(field):
            endpoint[field] = address[field]
    return endpoint


def _port(port: Object) -> Object:
    wanted = {"name": port.get("name") or "", "protocol": port.get("protocol") or "TCP"}
    app = {"appProtocol": port["appProtocol"]} if port.get("appProtocol") else {}
    return {**wanted, "port": port["port"], **app}


def plan_mirror(endpoints: Object | None, service: Object | None, known: Sequence[Object]) -> Plan:
    """Decide; `known`: the slices made of these Endpoints before."""
    wanted = mirrored(endpoints) if endpoints and service and _concerns(endpoints, service) else []
    plan = PlanBuilder()
    spare = sorted(known, key=lambda one: str(one["metadata"]["name"]))
    for fresh in wanted:
        # An address type is for ever; all else of a slice may change.
        old = next((s for s in spare if s["addressType"] == fresh["addressType"]), None)
        if old is None:
            plan.add(Create(ENDPOINT_SLICES, fresh))
            continue
        spare.remove(old)
        labels = fresh["metadata"]["labels"]
        content = {field: fresh[field] for field in ("endpoints", "ports")}
        if labels_of(old) != labels or any(old.get(f) != v for f, v in content.items()):
            metadata = {**old["metadata"], "labels": labels}
            plan.add(Update(ENDPOINT_SLICES, {**old, "metadata": metadata, **content}))
    plan.add(*(Delete(ENDPOINT_SLICES, one) for one in spare))
    return plan.plan()


def _concerns(endpoints: Object, service: Object) -> bool:
    return not (
        service["spec"].get("selector")
        or is_terminating(endpoints)
        or labels_of(endpoints).get(SKIP) == "true"
        or _LEADER in (endpoints["metadata"].get("annotations") or {})
    )


class EndpointSliceMirroringController(Controller):
    """Keeps the slices of hand-written Endpoints."""

    name = "endpointslice-mirroring"
    resource = ENDPOINTS

    def watch(self, cache: Cache) -> None:
        """Endpoints, their Services, and the slices made of them."""
        cache.of(ENDPOINTS).on_change(self.enqueue)
        cache.of(SERVICES).on_change(self.enqueue)
        cache.of(ENDPOINT_SLICES).on_change(self._on_slice)

    def _on_slice(self, old: Object | None, new: Object | None) -> None:
        for obj in (old, new):
            if obj is not None and labels_of(obj).get(MANAGED_BY) == MIRROR:
                name = labels_of(obj).get(SERVICE_NAME)
                self.queue.add(f"{obj['metadata']['namespace']}/{name}")

    def plan(self, key: str) -> Plan | None:
        """Decide about one Endpoints object."""
        namespace, _, name = key.partition("/")
        known = [
            one
            for one in self.cache.of(ENDPOINT_SLICES).by_index(BY_NAMESPACE, namespace)
            if labels_of(one).get(MANAGED_BY) == MIRROR
            and labels_of(one).get(SERVICE_NAME) == name
            and not is_terminating(one)
        ]
        endpoints = self.cache.of(ENDPOINTS).by_key(key)
        return plan_mirror(endpoints, self.cache.of(SERVICES).by_key(key), known)
