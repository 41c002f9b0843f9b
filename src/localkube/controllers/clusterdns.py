"""The Service `kube-system/kube-dns`, by which programs find the cluster's DNS server.

The node itself answers on that address, so the Service has no selector and no pods; its one
endpoint is the address itself, for clients (proxies, say) that go to endpoints directly.
"""

from typing import Any, Final

from localkube.client.resources import ENDPOINT_SLICES, SERVICES
from localkube.controllers.actions import Create, Plan, PlanBuilder
from localkube.controllers.cache import Cache
from localkube.controllers.loop import Controller

DNS_IP: Final = "10.96.0.10"
_NAMESPACE: Final = "kube-system"
_NAME: Final = "kube-dns"
_LABELS: Final = {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true"}
_PORTS: Final = (("dns", "UDP"), ("dns-tcp", "TCP"))


def service() -> dict[str, Any]:
    """The Service."""
    ports = [{"name": n, "protocol": p, "port": 53, "targetPort": 53} for n, p in _PORTS]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _NAME, "namespace": _NAMESPACE, "labels": dict(_LABELS)},
        "spec": {"type": "ClusterIP", "clusterIP": DNS_IP, "ports": ports},
    }


def endpoint_slice() -> dict[str, Any]:
    """Its endpoints."""
    labels = {
        **_LABELS,
        "kubernetes.io/service-name": _NAME,
        "endpointslice.kubernetes.io/managed-by": "localkube",
    }
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": _NAME, "namespace": _NAMESPACE, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [DNS_IP], "conditions": {"ready": True}}],
        "ports": [{"name": n, "protocol": p, "port": 53} for n, p in _PORTS],
    }


class ClusterDnsController(Controller):
    """Puts the Service back whenever it is missing."""

    name = "cluster-dns"
    resource = SERVICES

    def watch(self, cache: Cache) -> None:
        """The two objects."""
        cache.of(SERVICES).on_change(self._on_change)
        cache.of(ENDPOINT_SLICES).on_change(self._on_change)

    def _on_change(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        if new is None and old is not None and old["metadata"]["name"] == _NAME:
            self.queue.add(_NAME)

    def start(self) -> None:
        """Look once at the start."""
        self.queue.add(_NAME)
        super().start()

    def plan(self, key: str) -> Plan | None:
        """Create what is missing."""
        plan = PlanBuilder()
        for resource, made in ((SERVICES, service()), (ENDPOINT_SLICES, endpoint_slice())):
            if self.cache.of(resource).get(_NAME, _NAMESPACE) is None:
                plan.add(Create(resource, made, exists_ok=True))
        return plan.plan()
