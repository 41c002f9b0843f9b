"""Which names a proxy with DNS capture gets, and with which addresses."""

from __future__ import annotations

from meltemi.envoy import encode
from meltemi.model.names import NDS_TYPE
from meltemi.protos import nds_pb2
from meltemi.push.classes import class_key
from meltemi.translate import translate
from mesh_world import World, build_world, pod, service

HEADLESS = """
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: tcp, port: 5432}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: tcp, port: 5432}]
endpoints:
- {addresses: [10.2.0.1], hostname: db-0, conditions: {ready: true}}
- {addresses: [10.2.0.2], hostname: db-1, conditions: {ready: true}}
- {addresses: [10.2.0.3], hostname: db-2, conditions: {ready: false}}
"""
ENTRIES = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: auto, namespace: shop}
spec:
  hosts: [api.example.com]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: given, namespace: shop}
spec:
  hosts: [Vm.Example.com]
  addresses: [10.9.0.1, 10.9.1.0/24]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.8.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: hidden, namespace: other}
spec:
  hosts: [hidden.example.com]
  addresses: [10.9.0.2]
  exportTo: ["."]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
"""
ALIAS = """
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: www.example.org, ports: [{name: http, port: 80}]}
"""


def names(world: World, *, capture: bool = True) -> dict[str, nds_pb2.NameTable.NameInfo] | None:
    metadata = {"DNS_CAPTURE": "true"} if capture else {}
    proxy = world.proxy("client.shop", metadata=metadata)
    resources = encode(translate(world.context, class_key(world.context, proxy)))[NDS_TYPE]
    if not resources:
        return None
    (resource,) = resources
    return dict(nds_pb2.NameTable.FromString(resource.body).table)


def shop(extra: str = "") -> World:
    base = service("web", ("http", 80), namespace="shop") + pod(
        "client", "10.0.0.2", namespace="shop"
    )
    return build_world(base + extra)


def test_a_service_has_its_address_and_its_short_name() -> None:
    found = names(shop())
    assert found is not None
    web = found["web.shop.svc.cluster.local"]
    assert (web.registry, web.shortname, web.namespace) == ("Kubernetes", "web", "shop")
    assert len(web.ips) == 1


def test_without_capture_there_is_no_table() -> None:
    assert names(shop(), capture=False) is None


def test_headless_services_have_their_ready_pods() -> None:
    found = names(shop(HEADLESS))
    assert found is not None
    assert list(found["db.shop.svc.cluster.local"].ips) == ["10.2.0.1", "10.2.0.2"]
    assert list(found["db-1.db.shop.svc.cluster.local"].ips) == ["10.2.0.2"]
    assert found["db-1.db.shop.svc.cluster.local"].shortname == "db-1.db"
    assert "db-2.db.shop.svc.cluster.local" not in found


def test_entries_have_their_addresses_or_automatic_ones() -> None:
    """Ranges are nothing that a name can resolve to."""
    found = names(shop(ENTRIES))
    assert found is not None
    assert [ip.rpartition(".")[0].rpartition(".")[0] for ip in found["api.example.com"].ips] == [
        "240.240"
    ]
    assert list(found["vm.example.com"].ips) == ["10.9.0.1"]


def test_what_the_proxy_does_not_see_is_not_in_it() -> None:
    found = names(shop(ENTRIES))
    assert found is not None
    assert "hidden.example.com" not in found


def test_aliases_are_left_to_the_platform() -> None:
    found = names(shop(ALIAS))
    assert found is not None
    assert set(found) == {"web.shop.svc.cluster.local"}
