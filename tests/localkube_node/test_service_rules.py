"""Services and endpoints become the right ports, and only changes become netlink messages."""

from __future__ import annotations

from typing import Any

from localkube.node.network.service_rules import (
    build_changes,
    derive_backends,
    derive_service_ports,
)


def service(**spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    base = {"clusterIP": "10.96.0.7", "type": "ClusterIP", "ports": ports}
    return {"metadata": {"name": "web", "namespace": "shop"}, "spec": {**base, **spec}}


def endpoint_slice(*endpoints: dict[str, Any], name: str = "http") -> dict[str, Any]:
    return {
        "metadata": {"namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": name, "port": 8080, "protocol": "TCP"}],
        "endpoints": list(endpoints),
    }


def endpoint(address: str, **conditions: bool) -> dict[str, Any]:
    return {"addresses": [address], "conditions": conditions}


def test_ready_endpoints_answer() -> None:
    slices = [endpoint_slice(endpoint("10.1.0.2", ready=True), endpoint("10.1.0.3", ready=False))]
    ports = derive_service_ports([service()], slices, "172.30.0.1")
    entry = ports["shop/web:80/TCP"]
    assert entry.addresses == (("10.96.0.7", 80),)
    assert entry.backends == (("10.1.0.2", 8080),)


def test_serving_terminating_endpoints_answer_when_none_is_ready() -> None:
    going = endpoint("10.1.0.3", ready=False, serving=True, terminating=True)
    gone = endpoint("10.1.0.4", ready=False, serving=False, terminating=True)
    assert derive_backends([endpoint_slice(going, gone)], "http", "TCP") == (("10.1.0.3", 8080),)
    ready = endpoint("10.1.0.2", ready=True)
    assert derive_backends([endpoint_slice(going, ready)], "http", "TCP") == (("10.1.0.2", 8080),)


def test_ports_are_matched_by_name() -> None:
    slices = [endpoint_slice(endpoint("10.1.0.2"), name="other")]
    assert derive_backends(slices, "http", "TCP") == ()


def test_node_ports_are_at_the_nodes_address() -> None:
    ports = [{"name": "http", "port": 80, "nodePort": 30001}]
    entry = derive_service_ports([service(ports=ports)], [], "172.30.0.1")["shop/web:80/TCP"]
    assert entry.addresses == (("10.96.0.7", 80), ("172.30.0.1", 30001))


def test_headless_and_external_services_have_no_address() -> None:
    services = [service(clusterIP="None"), service(type="ExternalName", clusterIP="")]
    assert derive_service_ports(services, [], "172.30.0.1") == {}


def test_equal_services_make_no_change() -> None:
    slices = [endpoint_slice(endpoint("10.1.0.2"))]
    ports = derive_service_ports([service()], slices, "172.30.0.1")
    assert build_changes({}, ports)
    assert not build_changes(ports, dict(ports))


def test_a_changed_backend_rewrites_one_chain_only() -> None:
    one = derive_service_ports([service()], [endpoint_slice(endpoint("10.1.0.2"))], "172.30.0.1")
    two = derive_service_ports([service()], [endpoint_slice(endpoint("10.1.0.3"))], "172.30.0.1")
    _, messages = build_changes(one, two).encode()
    # Flush the chain, make the anonymous map, fill it, add the rule; the address map stays.
    assert messages == 4
