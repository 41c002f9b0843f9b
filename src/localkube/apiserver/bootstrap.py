"""What exists in every cluster from the start.

In: an opened store and the policy. Out: the store with the default namespaces, the `kubernetes`
Service and its endpoints, priority classes and RBAC defaults. Only what is missing is created (what
a user changed stays), but the endpoints of the API server are always made right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from localkube.apiserver.context import Server
from localkube.apiserver.ipalloc import ServiceAllocator
from localkube.apiserver.strategies import prepare_create

JsonObject = dict[str, Any]

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_SERVICE = "kubernetes"


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """Where the API server is: the Service's ClusterIP, and the address and port behind it."""

    cluster_ip: str
    address: str
    port: int


def bootstrap(
    server: Server,
    allocator: ServiceAllocator,
    where: ApiAddress,
    more: Iterable[tuple[str, JsonObject]] = (),
) -> None:
    """Create what is missing. `more` are further cluster-scoped objects as (storage, object)."""
    for storage, namespace, obj in _objects(where):
        _create(server, allocator, storage, namespace, obj)
    for storage, obj in more:
        _create(server, allocator, storage, "", obj)
    _correct_endpoints(server, where)


def _create(
    server: Server, allocator: ServiceAllocator, storage: str, namespace: str, obj: JsonObject
) -> None:
    name = obj["metadata"]["name"]
    if server.store.get(storage, namespace, name) is not None:
        return
    plural, _, group = storage.partition(".")
    resource = server.resource(group, plural)
    obj = {**obj, "metadata": {**obj["metadata"]}}
    if namespace:
        obj["metadata"]["namespace"] = namespace
    obj = prepare_create(resource, server.policy.default(resource, obj), server.timestamp())
    if storage == "services":
        allocator.allocate(obj, None, (one.object for one in server.store.list("services")))
    server.store.create(storage, namespace, name, obj)


def _objects(where: ApiAddress) -> Iterator[tuple[str, str, JsonObject]]:
    for name in NAMESPACES:
        yield (
            "namespaces",
            "",
            {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}},
        )
    labels = {"component": "apiserver", "provider": "kubernetes"}
    port = {"name": "https", "port": 443, "protocol": "TCP", "targetPort": where.port}
    yield (
        "services",
        "default",
        {
            "kind": "Service",
            "apiVersion": "v1",
            "metadata": {"name": _SERVICE, "labels": labels},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": where.cluster_ip,
                "sessionAffinity": "None",
                "ports": [port],
            },
        },
    )
    yield "endpoints", "default", _endpoints(where)
    yield "endpointslices.discovery.k8s.io", "default", _endpoint_slice(where)
    for name, value, text in (
        ("system-cluster-critical", 2_000_000_000, "that must run in the cluster"),
        ("system-node-critical", 2_000_001_000, "that must not be moved from their node"),
    ):
        yield (
            "priorityclasses.scheduling.k8s.io",
            "",
            {
                "kind": "PriorityClass",
                "apiVersion": "scheduling.k8s.io/v1",
                "metadata": {"name": name},
                "value": value,
                "description": f"For system pods {text}.",
                "preemptionPolicy": "PreemptLowerPriority",
            },
        )


def _endpoints(where: ApiAddress) -> JsonObject:
    return {
        "kind": "Endpoints",
        "apiVersion": "v1",
        # The label keeps the endpoints controllers away: there is no selector to follow.
        "metadata": {
            "name": _SERVICE,
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [
            {
                "addresses": [{"ip": where.address}],
                "ports": [{"name": "https", "port": where.port, "protocol": "TCP"}],
            }
        ],
    }


def _endpoint_slice(where: ApiAddress) -> JsonObject:
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": _SERVICE, "labels": {"kubernetes.io/service-name": _SERVICE}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [where.address], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": where.port, "protocol": "TCP"}],
    }


def _correct_endpoints(server: Server, where: ApiAddress) -> None:
    """The address or port may differ from the last run's."""
    for storage, wanted, fields in (
        ("endpoints", _endpoints(where), ("subsets",)),
        ("endpointslices.discovery.k8s.io", _endpoint_slice(where), ("endpoints", "ports")),
    ):
        stored = server.store.get(storage, "default", _SERVICE)
        if stored is None or all(stored.object.get(f) == wanted[f] for f in fields):
            continue
        corrected = {**stored.object, **{f: wanted[f] for f in fields}}
        server.store.update(storage, "default", _SERVICE, corrected)
