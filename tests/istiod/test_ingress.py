"""Kubernetes Ingresses of a cluster: served by the gateways, with addresses in their status."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from istiod.kube_server import KubeServer
from istiod.plane import LOCAL, running
from istiod.waiting import until
from meltemi.adapters.kube_connection import Connection
from meltemi.adapters.world import Change, World
from meltemi.model import kubernetes as k8s
from meltemi.model.config import Key
from meltemi.model.ingress import Ingress, IngressClass
from meltemi.model.mesh import MeshConfig

NETWORKING = "/apis/networking.k8s.io/v1"
CONTROLLER = "istio.io/ingress-controller"


def ingress(name: str = "shop", port: Any = 80, **spec: Any) -> dict[str, Any]:
    """One Ingress for everything."""
    backend = {
        "service": {"name": "web", "port": {"number" if isinstance(port, int) else "name": port}}
    }
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    return {
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"ingressClassName": "istio", "rules": [{"http": {"paths": [path]}}], **spec},
    }


def gateway_service(*addresses: str) -> dict[str, Any]:
    """The Service of the ingress gateway."""
    entries = [{"ip" if a[0].isdigit() else "hostname": a} for a in addresses]
    return {
        "metadata": {"name": "istio-ingressgateway", "namespace": "istio-system"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.9",
            "ports": [{"name": "http2", "port": 80}],
        },
        "status": {"loadBalancer": {"ingress": entries}},
    }


CLASS = {"metadata": {"name": "istio"}, "spec": {"controller": CONTROLLER}}


@pytest.fixture
async def kube() -> AsyncIterator[KubeServer]:
    server = await KubeServer().start()
    for plural in ("namespaces", "nodes", "services", "pods", "secrets", "configmaps"):
        server.serve(f"/api/v1/{plural}")
    server.serve(f"{NETWORKING}/ingresses")
    server.serve("/apis/coordination.k8s.io/v1/leases")
    await server.put("/api/v1/namespaces", {"metadata": {"name": "istio-system"}})
    await server.put(f"{NETWORKING}/ingressclasses", CLASS)
    yield server
    await server.stop()


def shown(kube: KubeServer, name: str = "shop") -> Any:
    """The addresses in an Ingress's status."""
    held = kube.objects[f"{NETWORKING}/ingresses"]["shop", name]
    return held.get("status", {}).get("loadBalancer", {}).get("ingress")


async def test_status_says_where_an_ingress_answers(kube: KubeServer) -> None:
    """The addresses of the gateway's Service, followed when they change; Ingresses of others are left alone."""
    await kube.put(f"{NETWORKING}/ingresses", ingress())
    await kube.put(f"{NETWORKING}/ingresses", ingress("foreign", ingressClassName="nginx"))
    async with running(LOCAL, Connection(kube.url)):
        await kube.put("/api/v1/services", gateway_service("127.0.10.1"))
        await until(lambda: shown(kube) == [{"ip": "127.0.10.1"}])
        await kube.put("/api/v1/services", gateway_service("lb.example.com", "127.0.10.2"))
        await until(lambda: shown(kube) == [{"ip": "127.0.10.2"}, {"hostname": "lb.example.com"}])
        assert shown(kube, "foreign") is None


# --- the world --------------------------------------------------------------------------------------


class Watched(World):
    """A world whose changes are counted."""

    def __init__(self, **mesh: Any) -> None:
        super().__init__(mesh=MeshConfig(**mesh))
        self.changes: list[Change] = []
        self.listener = self.changes.append

    def put(self, kind: type[k8s.K8s], body: dict[str, Any]) -> None:
        """As a watch would."""
        self.put_native(msgspec.convert(body, kind))

    def kinds(self) -> list[str]:
        """Kinds of all configs."""
        return sorted(key.kind for key in self.configs)


def test_an_ingress_comes_changes_and_goes() -> None:
    world = Watched()
    world.put(Ingress, ingress())
    assert world.kinds() == []  # nobody has said whose class it is
    world.put(IngressClass, CLASS)
    assert world.kinds() == ["Gateway", "VirtualService"]
    world.changes.clear()
    world.put(Ingress, ingress() | {"status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}})
    assert world.changes == []
    world.put(Ingress, ingress(tls=[{"hosts": ["a.example.com"], "secretName": "cert"}]))
    assert [key.kind for change in world.changes for key in change.keys] == ["Gateway"]  # type: ignore[union-attr]
    world.replace_native("Ingress", {})
    assert world.kinds() == []


def test_what_was_converted_outlives_a_list_of_the_kinds() -> None:
    """A watch that lists Gateways anew does not know those that Ingresses became."""
    world = Watched()
    world.put(IngressClass, CLASS)
    world.put(Ingress, ingress())
    world.replace_configs("Gateway", {})
    world.replace_configs("VirtualService", {})
    assert world.kinds() == ["Gateway", "VirtualService"]


def test_ports_by_name_follow_the_service() -> None:
    world = Watched()
    world.put(IngressClass, CLASS)
    world.put(Ingress, ingress(port="http"))
    assert "VirtualService" not in world.kinds()
    assert "has no port" in str(world.findings[Key("Ingress", "shop", "shop")])
    service = {
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 8080}]},
    }
    world.put(k8s.Service, service)
    assert Key("Ingress", "shop", "shop") not in world.findings
    (config,) = [c for c in world.configs.values() if c.kind == "VirtualService"]
    assert config.spec.http[0].route[0].destination.port.number == 8080


def test_the_mesh_says_which_ingresses_are_served() -> None:
    world = Watched()
    world.put(IngressClass, CLASS)
    world.put(Ingress, ingress(ingressClassName=None))
    assert world.kinds() == []
    world.set_mesh(MeshConfig(ingress_controller_mode="DEFAULT", ingress_selector="front"))
    (config,) = [c for c in world.configs.values() if c.kind == "Gateway"]
    assert config.spec.selector == {"istio": "front"}
    world.set_mesh(MeshConfig(ingress_controller_mode="OFF"))
    assert world.kinds() == []


def test_without_a_service_the_nodes_of_the_gateways_pods_are_shown() -> None:
    mesh = MeshConfig(ingress_service="", ingress_selector="front")
    world = Watched()
    world.set_mesh(mesh)
    for number, kind in ((1, "ExternalIP"), (2, "InternalIP")):
        addresses = [{"type": "InternalIP", "address": f"10.0.0.{number}"}]
        if kind == "ExternalIP":
            addresses.append({"type": kind, "address": f"203.0.113.{number}"})
        world.put(
            k8s.Node, {"metadata": {"name": f"n{number}"}, "status": {"addresses": addresses}}
        )
        world.put(
            k8s.Pod,
            {
                "metadata": {
                    "name": f"gw-{number}",
                    "namespace": "istio-system",
                    "labels": {"istio": "front"},
                },
                "spec": {"nodeName": f"n{number}"},
                "status": {"phase": "Running", "podIP": f"10.1.0.{number}"},
            },
        )
    assert world.ingresses.addresses(mesh) == ({"ip": "10.0.0.2"}, {"ip": "203.0.113.1"})
