"""Platforms -> services, endpoints, workloads: rules, and exactly what each event changes."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meltemi.config.decode import load
from meltemi.model import kubernetes as k8s
from meltemi.model.config import Config, Key, Status
from meltemi.model.service import Health, Protocol, Resolution
from meltemi.registry.from_kubernetes import RegistrySettings, controller_of, node_locality
from meltemi.registry.index import ServiceKey
from meltemi.registry.protocol import port_protocol
from meltemi.registry.store import Changes, RegistryStore

HOST = "reviews.bookinfo.svc.cluster.local"
KEY = ServiceKey(HOST, "bookinfo")
SPIFFE = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-reviews"


def service(**spec: Any) -> k8s.Service:
    body = {
        "metadata": {
            "name": "reviews",
            "namespace": "bookinfo",
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "annotations": {"networking.istio.io/exportTo": ".,other"},
        },
        "spec": {
            "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7"],
            "selector": {"app": "reviews"},
            "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
            **spec,
        },
    }
    return k8s.decode_service(json.dumps(body).encode())


def pod(name: str = "reviews-v1-5d8-x", ip: str = "10.1.0.5", **labels: str) -> k8s.Pod:
    body = {
        "metadata": {
            "name": name,
            "namespace": "bookinfo",
            "labels": {
                "app": "reviews", "version": "v1", "pod-template-hash": "5d8",
                "security.istio.io/tlsMode": "istio", **labels,
            },
            "ownerReferences": [{"kind": "ReplicaSet", "name": "reviews-v1-5d8", "controller": True}],
        },
        "spec": {
            "serviceAccountName": "bookinfo-reviews",
            "nodeName": "n1",
            "containers": [{"name": "app", "ports": [{"name": "web", "containerPort": 9080}]}],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }  # fmt: skip
    return k8s.decode_pod(json.dumps(body).encode())


def endpoint_slice(
    name: str = "s1", pods: tuple[str, ...] = ("reviews-v1-5d8-x",), **cond: Any
) -> k8s.EndpointSlice:
    body = {
        "metadata": {
            "name": name,
            "namespace": "bookinfo",
            "labels": {"kubernetes.io/service-name": "reviews"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 9080}],
        "endpoints": [
            {
                "addresses": ["10.1.0.6" if "v2" in pod_name else "10.1.0.5"],
                "conditions": {"ready": True, **cond},
                "targetRef": {"kind": "Pod", "name": pod_name, "namespace": "bookinfo"},
            }
            for pod_name in pods
        ],
    }
    return k8s.decode_endpoint_slice(json.dumps(body).encode())


def node(region: str) -> k8s.Node:
    labels = {"topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": "z"}
    return k8s.decode_node(json.dumps({"metadata": {"name": "n1", "labels": labels}}).encode())


def config(kind: str, spec: dict[str, Any], name: str = "a", **meta: Any) -> Config[Any]:
    found, findings = load(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": kind,
            "metadata": {"name": name, "namespace": "bookinfo", **meta},
            "spec": spec,
        }
    )
    assert found is not None, findings
    return found


def entry(host: str, name: str = "a", **spec: Any) -> Config[Any]:
    ports = [{"number": 443, "name": "tls", "protocol": "TLS"}]
    return config(
        "ServiceEntry", {"hosts": [host], "ports": ports, "resolution": "DNS", **spec}, name
    )


@pytest.fixture
def store() -> RegistryStore:
    return RegistryStore(RegistrySettings(network="n"))


@pytest.mark.parametrize(
    ("number", "name", "transport", "app", "protocol"),
    [
        (80, "http", "TCP", None, Protocol.HTTP), (80, "http-web", "TCP", None, Protocol.HTTP),
        (80, "HTTP2-x", "TCP", None, Protocol.HTTP2), (80, "grpc-web-x", "TCP", None, Protocol.GRPC_WEB),
        (80, "grpc", "TCP", None, Protocol.GRPC), (80, "web", "TCP", None, Protocol.UNSUPPORTED),
        (80, "httpx", "TCP", None, Protocol.UNSUPPORTED), (443, "https-a", "TCP", None, Protocol.HTTPS),
        (3306, "", "TCP", None, Protocol.TCP), (3306, "mysql", "TCP", None, Protocol.MYSQL),
        (53, "http", "UDP", "http", Protocol.UDP), (80, "tcp", "TCP", "http", Protocol.HTTP),
        (80, "x", "TCP", "kubernetes.io/h2c", Protocol.HTTP2), (80, "x", "TCP", "kubernetes.io/ws", Protocol.HTTP),
        (80, "x", "TCP", "kubernetes.io/wss", Protocol.HTTPS), (27017, "db", "TCP", None, Protocol.TCP),
        (80, "http", "TCP", "example.com/own", Protocol.UNSUPPORTED),
    ],
)  # fmt: skip
def test_protocol_selection(
    number: int, name: str, transport: str, app: str | None, protocol: Protocol
) -> None:
    assert port_protocol(number, name, transport, app) is protocol


def test_a_service(store: RegistryStore) -> None:
    assert store.put(service()) == Changes(services=frozenset({HOST}))
    found = store.snapshot().service(HOST)
    assert found is not None
    assert found.addresses == ("10.96.0.7",)
    assert found.resolution is Resolution.CLIENT_SIDE_LB
    assert found.export_to == {".", "other"}
    assert found.meta.created == 1767323045.0
    assert (found.ports[0].target_name, found.ports[0].target_port) == ("web", 0)
    hash(found)


def test_headless_and_external_name(store: RegistryStore) -> None:
    store.put(service(clusterIP="None", clusterIPs=["None"]))
    found = store.snapshot().service(HOST)
    assert found is not None
    assert (found.headless, found.resolution, found.addresses) == (True, Resolution.PASSTHROUGH, ())
    store.put(
        service(type="ExternalName", externalName="example.com", clusterIP="", clusterIPs=None)
    )
    found = store.snapshot().service(HOST)
    assert found is not None
    assert (found.resolution, found.external_name) == (Resolution.ALIAS, "example.com")


def test_a_slice_waits_for_its_pod(store: RegistryStore) -> None:
    store.put(service())
    assert not store.put(endpoint_slice())
    assert store.pending_pods == {("bookinfo", "reviews-v1-5d8-x")}
    changes = store.put(pod())
    assert changes.endpoints == {KEY}
    assert changes.workloads == {("bookinfo", "reviews-v1-5d8-x")}
    assert store.pending_pods == frozenset()
    (found,) = store.endpoints.endpoints(*KEY)
    assert (found.address, found.port, found.service_port) == ("10.1.0.5", 9080, "http")
    assert found.service_account == SPIFFE
    assert (found.workload, found.tls_mode, found.network) == ("reviews-v1", "istio", "n")
    assert found.labels["version"] == "v1"


def test_only_what_differs_is_reported(store: RegistryStore) -> None:
    store.put(service())
    store.put(pod())
    store.put(endpoint_slice())
    before, version = store.snapshot(), store.endpoints.version(*KEY)
    assert not store.put(service()) and not store.put(pod()) and not store.put(endpoint_slice())
    assert store.snapshot() is before
    assert store.endpoints.version(*KEY) == version
    # Another slice of the service, then a change of one endpoint: EDS only.
    store.put(pod("reviews-v2-5d8-y", "10.1.0.6"))
    snapshot = store.snapshot()
    changes = store.put(endpoint_slice("s2", ("reviews-v2-5d8-y",)))
    assert changes == Changes(endpoints=frozenset({KEY}))
    assert store.snapshot() is snapshot
    assert len(store.endpoints.endpoints(*KEY)) == 2
    assert store.put(endpoint_slice("s2", (), ready=False)).endpoints == {KEY}
    assert store.drop("EndpointSlice", "bookinfo", "s1").endpoints == {KEY}
    assert store.endpoints.endpoints(*KEY) == ()
    assert store.drop("Service", "bookinfo", "reviews").services == {HOST}
    assert store.snapshot().service(HOST) is None


def test_node_gives_locality_and_label_overrides(store: RegistryStore) -> None:
    store.put(pod())
    store.put(endpoint_slice())
    assert store.put(node("r1")).endpoints == {KEY}
    assert store.endpoints.endpoints(*KEY)[0].locality == "r1/z"
    store.put(pod(**{"istio-locality": "r2.z2.s2"}))
    assert store.endpoints.endpoints(*KEY)[0].locality == "r2/z2/s2"
    assert node_locality(None) == ""


@pytest.mark.parametrize(
    ("conditions", "health"),
    [
        ({}, Health.HEALTHY),
        ({"ready": False}, Health.UNHEALTHY),
        ({"ready": False, "serving": True, "terminating": True}, Health.DRAINING),
        ({"ready": False, "serving": False, "terminating": True}, Health.TERMINATING),
    ],
)
def test_health(store: RegistryStore, conditions: dict[str, bool], health: Health) -> None:
    store.put(service())
    store.put(pod())
    store.put(endpoint_slice(**conditions))
    assert store.endpoints.endpoints(*KEY)[0].health is health


def test_publish_not_ready(store: RegistryStore) -> None:
    store.put(pod())
    store.put(endpoint_slice(ready=False))
    assert store.endpoints.endpoints(*KEY)[0].health is Health.UNHEALTHY
    assert store.put(service(publishNotReadyAddresses=True)).endpoints == {KEY}
    assert store.endpoints.endpoints(*KEY)[0].health is Health.HEALTHY


def test_service_targets(store: RegistryStore) -> None:
    store.put(service())
    store.put(pod())
    registry = store.snapshot()
    workload = registry.workload("10.1.0.5", "bookinfo")
    assert workload is not None
    (target,) = registry.service_targets(workload)
    assert (target.service.hostname, target.port.number, target.target_port) == (HOST, 80, 9080)
    store.put(pod(app="other"))
    workload = store.snapshot().workload("10.1.0.5")
    assert workload is not None
    assert store.snapshot().service_targets(workload) == ()


@pytest.mark.parametrize(
    ("kind", "owner", "labels", "expected"),
    [
        ("ReplicaSet", "web-abc", {"pod-template-hash": "abc"}, ("web", "Deployment")),
        ("ReplicaSet", "web", {}, ("web", "ReplicaSet")),
        ("Job", "tick-28900000", {}, ("tick", "CronJob")),
        ("Job", "once", {}, ("once", "Job")),
        ("StatefulSet", "db", {}, ("db", "StatefulSet")),
    ],
)
def test_controllers(
    kind: str, owner: str, labels: dict[str, str], expected: tuple[str, str]
) -> None:
    reference = k8s.OwnerReference(kind=kind, name=owner, controller=True)
    metadata = k8s.ObjectMeta(name="p", labels=labels, owner_references=(reference,))
    assert controller_of(metadata) == expected
    assert controller_of(k8s.ObjectMeta(name="p")) == ("p", "Pod")


def test_service_entry_dns(store: RegistryStore) -> None:
    changes = store.put_config(entry("api.example.com"))
    assert changes.services == {"api.example.com"}
    found = store.snapshot().service("api.example.com")
    assert found is not None
    assert found.mesh_external
    assert found.resolution is Resolution.DNS_LB
    assert found.auto_allocated[0].startswith("240.240.")
    (endpoint,) = store.endpoints.endpoints("api.example.com", "bookinfo")
    assert (endpoint.address, endpoint.port) == ("api.example.com", 443)
    assert not store.put_config(entry("api.example.com"))
    changes = store.drop_config(Key("ServiceEntry", "bookinfo", "a"))
    assert changes.services == {"api.example.com"}
    assert store.endpoints.endpoints("api.example.com", "bookinfo") == ()


def test_addresses_are_stable_and_distinct(store: RegistryStore) -> None:
    configs = [entry(f"h{n}.example.com", f"e{n}") for n in range(300)]
    store.put_configs(configs)
    given = {s.hostname: s.auto_allocated for s in store.snapshot().all_services}
    assert len(set(given.values())) == 300
    assert all(a and a[0].rpartition(".")[2] not in ("0", "255") for a in given.values())
    other = RegistryStore(RegistrySettings())
    for one in reversed(configs):
        other.put_config(one)
    assert {s.hostname: s.auto_allocated for s in other.snapshot().all_services} == given


def with_status(one: Config[Any], **status: Any) -> Config[Any]:
    """The same object as the API server has it, with a status."""
    return replace(one, status=Status(**status))


def test_addresses_of_both_families(store: RegistryStore) -> None:
    store.put_config(entry("h.example.com"))
    (four, six) = store.snapshot().all_services[0].auto_allocated
    assert ip_address(four) in ip_network("240.240.0.0/16")
    assert ip_address(six) in ip_network("2001:2::/48")
    assert store.status_addresses(entry("h.example.com")) == [
        {"value": four, "host": "h.example.com"},
        {"value": six, "host": "h.example.com"},
    ]


def test_addresses_in_a_status_stay(store: RegistryStore) -> None:
    """A status decides over the hash; of two claims the older object's holds; what is no such address is ignored."""
    claim = (("h.example.com", "240.240.1.1"), ("h.example.com", "10.0.0.1"), ("x", "240.240.1.2"))
    first = with_status(entry("h.example.com", "a"), addresses=claim)
    second = with_status(entry("i.example.com", "b"), addresses=(("i.example.com", "240.240.1.1"),))
    store.put_configs([second, first])
    given = {s.hostname: s.auto_allocated[0] for s in store.snapshot().all_services}
    assert given["h.example.com"] == "240.240.1.1"
    assert given["i.example.com"] != "240.240.1.1"


def test_statuses_are_read() -> None:
    body = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "a", "namespace": "n"},
        "spec": {"hosts": ["h.example.com"]},
        "status": {"addresses": [{"host": "h.example.com", "value": "240.240.1.1"}, 7, {}]},
    }
    found, findings = load(body)
    assert found is not None
    assert not findings
    assert found.status.addresses == (("h.example.com", "240.240.1.1"),)


def test_entries_of_one_host_add_up(store: RegistryStore) -> None:
    """Ports of a namespace's entries for a host; one that is resolved in another way stays apart."""
    more = [{"number": 80, "name": "http", "protocol": "HTTP"}]
    store.put_config(entry("h.example.com", "a"))
    store.put_config(entry("h.example.com", "b", ports=more))
    store.put_config(entry("h.example.com", "c", resolution="NONE"))
    group = store.snapshot().services["h.example.com"]
    assert [[port.number for port in one.ports] for one in group] == [[443, 80], [443]]
    store.drop_config(Key("ServiceEntry", "bookinfo", "a"))
    group = store.snapshot().services["h.example.com"]
    assert [[port.number for port in one.ports] for one in group] == [[80], [443]]


def test_a_service_selects_workload_entries(store: RegistryStore) -> None:
    """By the labels of spec and object; the port by its name there, else the Service's target."""
    vm = config("WorkloadEntry", {"address": "10.9.0.1", "serviceAccount": "vm"}, "vm")
    labelled = replace(vm, meta=replace(vm.meta, labels={"app": "reviews"}))
    store.put_config(labelled)
    assert (
        KEY
        in store.put(service(ports=[{"name": "http", "port": 80, "targetPort": 8080}])).endpoints
    )
    (endpoint,) = store.endpoints.endpoints(*KEY)
    assert (endpoint.address, endpoint.port, endpoint.tls_mode) == ("10.9.0.1", 8080, "istio")
    ports = replace(labelled, spec=msgspec.structs.replace(vm.spec, ports={"http": 8081}))
    assert KEY in store.put_config(ports).endpoints
    assert [e.port for e in store.endpoints.endpoints(*KEY)] == [8081]
    found = store.snapshot().workload("10.9.0.1")
    assert found is not None
    assert [t.target_port for t in store.snapshot().service_targets(found)] == [8081]
    assert KEY in store.put_config(vm).endpoints
    assert store.endpoints.endpoints(*KEY) == ()


@pytest.mark.parametrize(
    ("checked", "healthy", "health"),
    [
        ("true", None, Health.UNHEALTHY), ("true", True, Health.HEALTHY), ("true", False, Health.UNHEALTHY),
        ("", None, Health.HEALTHY), ("", False, Health.UNHEALTHY),
    ],
)  # fmt: skip
def test_health_of_a_workload_entry(
    store: RegistryStore, checked: str, healthy: bool | None, health: Health
) -> None:
    notes = {"proxy.istio.io/health-checks-enabled": checked} if checked else {}
    vm = config(
        "WorkloadEntry",
        {"address": "10.9.0.1", "labels": {"app": "reviews"}},
        "vm",
        annotations=notes,
    )
    store.put(service())
    store.put_config(with_status(vm, healthy=healthy))
    assert [e.health for e in store.endpoints.endpoints(*KEY)] == [health]


def test_static_entry_and_its_workload(store: RegistryStore) -> None:
    workload = {"address": "10.9.0.1", "serviceAccount": "vm", "ports": {"tls": 8443}, "weight": 3}
    store.put_config(
        entry("vm.mesh", resolution="STATIC", location="MESH_INTERNAL", endpoints=[workload])
    )
    (endpoint,) = store.endpoints.endpoints("vm.mesh", "bookinfo")
    assert (endpoint.port, endpoint.tls_mode, endpoint.weight) == (8443, "istio", 3)
    assert endpoint.service_account == "spiffe://cluster.local/ns/bookinfo/sa/vm"
    store.put(pod(ip="10.9.0.1"))
    registry = store.snapshot()
    found = registry.workload("10.9.0.1")
    assert found is not None
    assert [t.target_port for t in registry.service_targets(found)] == [8443]


def test_selecting_entry_follows_pods_and_workload_entries(store: RegistryStore) -> None:
    selector = {"labels": {"app": "reviews"}}
    key = ServiceKey("sel.mesh", "bookinfo")
    store.put_config(entry("sel.mesh", resolution="STATIC", workloadSelector=selector))
    assert store.endpoints.endpoints(*key) == ()
    assert key in store.put(pod()).endpoints
    vm = config("WorkloadEntry", {"address": "10.9.0.1", "labels": {"app": "reviews"}}, "vm")
    assert store.put_config(vm).endpoints == {key}
    assert {e.address for e in store.endpoints.endpoints(*key)} == {"10.1.0.5", "10.9.0.1"}
    assert key in store.drop("Pod", "bookinfo", "reviews-v1-5d8-x").endpoints
    assert store.drop_config(vm.key).endpoints == {key}
    assert store.endpoints.endpoints(*key) == ()


EVENTS = (
    service(), service(publishNotReadyAddresses=True), pod(), pod(app="other"),
    pod("reviews-v2-5d8-y", "10.1.0.6"), endpoint_slice(), endpoint_slice("s1", ()),
    endpoint_slice("s2", ("reviews-v1-5d8-x", "reviews-v2-5d8-y")), node("r1"), node("r2"),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(range(len(EVENTS))), max_size=14))
def test_order_of_events_does_not_matter(order: list[int]) -> None:
    """After the same last value of each object, every history ends in the same state; no change goes unreported."""
    store = RegistryStore(RegistrySettings())
    last: dict[tuple[str, str], Any] = {}
    for index in order:
        value = EVENTS[index]
        last[(type(value).__name__, value.metadata.name)] = value
        before = store.endpoints.endpoints(*KEY)
        changes = store.put(value)
        assert (store.endpoints.endpoints(*KEY) != before) == (KEY in changes.endpoints)
    fresh = RegistryStore(RegistrySettings())
    for value in last.values():
        fresh.put(value)
    assert fresh.snapshot() == store.snapshot()
    assert fresh.endpoints.endpoints(*KEY) == store.endpoints.endpoints(*KEY)
