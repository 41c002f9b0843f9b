"""What a cluster says about Kubernetes Ingresses: themselves, their classes, and where the gateway that serves them can be reached.

In: Ingresses, IngressClasses, Services, Pods and Nodes as watches give them; the mesh configuration. Out: Gateways and VirtualServices
(the world stores them like any other), and the addresses that belong into ``status.loadBalancer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meltemi.config.ingress import Converted, convert_ingresses, gateway_selector, is_ours
from meltemi.model import kubernetes as k8s
from meltemi.model.ingress import Ingress, IngressClass
from meltemi.model.mesh import MeshConfig

Name = tuple[str, str]  # (namespace, name)
KINDS = frozenset({"Ingress", "IngressClass"})
_EXTERNAL, _INTERNAL = "ExternalIP", "InternalIP"


@dataclass(eq=False)
class IngressBook:
    """What the cluster says. ``changed`` hears of everything that a status may depend on."""

    domain: str = "cluster.local"
    ingresses: dict[Name, Ingress] = field(default_factory=dict)
    classes: dict[Name, IngressClass] = field(default_factory=dict)
    changed: Callable[[], None] = lambda: None
    _services: dict[Name, k8s.Service] = field(default_factory=dict)
    _pods: dict[Name, k8s.Pod] = field(default_factory=dict)
    _nodes: dict[str, k8s.Node] = field(default_factory=dict)

    def put(self, value: k8s.K8s) -> bool:
        """Note an object; True when the conversion may come out differently."""
        metadata: k8s.ObjectMeta = value.metadata  # type: ignore[attr-defined]
        where = (metadata.namespace, metadata.name)
        before: Any = None
        if isinstance(value, Ingress):
            before, self.ingresses[where] = self.ingresses.get(where), value
        elif isinstance(value, IngressClass):
            before, self.classes[where] = self.classes.get(where), value
        elif isinstance(value, k8s.Service):
            before, self._services[where] = self._services.get(where), value
        elif isinstance(value, k8s.Node):
            before, self._nodes[metadata.name] = self._nodes.get(metadata.name), value
        elif isinstance(value, k8s.Pod) and "istio" in k8s.labels_of(metadata):
            before, self._pods[where] = self._pods.get(where), value
        else:
            return False
        if self.ingresses:
            self.changed()
        return self._matters(value, before)

    def _matters(self, value: k8s.K8s, before: Any) -> bool:
        if isinstance(value, Ingress | IngressClass):
            old = (before.spec, before.metadata.annotations) if before is not None else None
            return old != (value.spec, value.metadata.annotations)
        if isinstance(value, k8s.Service) and self.ingresses:
            # Ports may be referred to by name.
            return before is None or before.spec.ports != value.spec.ports
        return False

    def drop(self, kind: str, where: Name) -> bool:
        """It is gone; True when the conversion may come out differently."""
        held: dict[str, dict[Any, Any]] = {
            "Ingress": self.ingresses,
            "IngressClass": self.classes,
            "Service": self._services,
            "Pod": self._pods,
            "Node": self._nodes,
        }
        found = held.get(kind, {}).pop(where[1] if kind == "Node" else where, None)
        if found is not None and self.ingresses:
            self.changed()
        return found is not None and kind in (*KINDS, "Service")

    def convert(self, mesh: MeshConfig) -> Converted:
        """Gateways and VirtualServices of all Ingresses that this mesh serves."""
        return convert_ingresses(
            self.ingresses.values(), self.classes.values(), mesh, self._port_number, self.domain
        )

    def _port_number(self, namespace: str, service: str, port: str) -> int | None:
        found = self._services.get((namespace, service))
        ports = (found.spec.ports or ()) if found is not None else ()
        return next((entry.port for entry in ports if entry.name == port), None)

    def ours(self, mesh: MeshConfig) -> list[Ingress]:
        """Ingresses that this mesh serves."""
        classes = tuple(self.classes.values())
        return [ingress for ingress in self.ingresses.values() if is_ours(ingress, classes, mesh)]

    def addresses(self, mesh: MeshConfig) -> tuple[dict[str, str], ...]:
        """Where Ingresses answer, as their status says it: the addresses of ``ingressService``, else of its pods' nodes."""
        space = mesh.root_namespace
        if mesh.ingress_service:
            service = self._services.get((space, mesh.ingress_service))
            return _entries(_service_addresses(service)) if service is not None else ()
        selector = gateway_selector(mesh)
        nodes = (
            pod.spec.node_name or pod.status.host_ip
            for (namespace, _), pod in sorted(self._pods.items())
            if namespace == space and pod.status.phase == "Running" and _holds(selector, pod)
        )
        return _entries(self._node_address(name) for name in nodes if name)

    def _node_address(self, name: str) -> str:
        node = self._nodes.get(name)
        if node is None:
            return name if name[:1].isdecimal() else ""
        by_type = {entry.type: entry.address for entry in node.status.addresses or ()}
        return by_type.get(_EXTERNAL) or by_type.get(_INTERNAL, "")


def _holds(selector: Mapping[str, str], pod: k8s.Pod) -> bool:
    labels = k8s.labels_of(pod.metadata)
    return all(labels.get(name) == value for name, value in selector.items())


def _service_addresses(service: k8s.Service) -> list[str]:
    if service.spec.type == "ExternalName":
        return [service.spec.external_name]
    given = service.status.load_balancer.ingress or ()
    return [entry.ip or entry.hostname for entry in given] + list(service.spec.external_ips or ())


def written(ingress: Ingress) -> tuple[dict[str, str], ...]:
    """The addresses that an Ingress's status holds."""
    held = ingress.status.load_balancer.ingress or ()
    return _entries(entry.ip or entry.hostname for entry in held)


def _entries(addresses: Iterable[str]) -> tuple[dict[str, str], ...]:
    """``ip`` or ``hostname`` entries, each once, sorted."""
    found = sorted({address for address in addresses if address})
    return tuple({"ip" if _is_ip(address) else "hostname": address} for address in found)


def _is_ip(text: str) -> bool:
    return ":" in text or text.replace(".", "").isdecimal()
