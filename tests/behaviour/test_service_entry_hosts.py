"""Several ServiceEntries for one host, and automatic addresses that tell hosts apart."""

from __future__ import annotations

import pytest

from behaviour.entries import CLOSED, HTTP, TCP, entry
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

RESOLVER = """
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: resolver}
spec:
  template:
    metadata:
      labels: {app: resolver}
      annotations:
        proxy.istio.io/config: 'proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true"}'
    spec: {containers: [{name: app}]}
"""


# --- several entries for one host ---------------------------------------------------------------------


def test_entries_of_a_namespace_add_up_their_ports(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry("books", f"hosts: [books.example], {HTTP}, resolution: DNS")
        + entry(
            "more",
            "hosts: [books.example], resolution: DNS, ports: [{number: 8000, name: http-two, protocol: HTTP}]",
        ),
        mesh_config=CLOSED,
    )
    for port in (80, 8000):
        assert caller.get(f"http://books.example:{port}/").destination.port == port


def test_entries_of_a_namespace_add_up_their_endpoints(shop: Mesh, caller: Client) -> None:
    for version, address in (("a", "198.51.100.1"), ("b", "198.51.100.2")):
        shop.apply(
            entry(
                version,
                f"hosts: [books.example], {HTTP}, resolution: STATIC, endpoints: [{{address: {address}}}]",
            )
        )
    assert set(caller.send("http://books.example/", n=20).counts) == {"a", "b"}


def test_a_namespaces_own_entry_comes_before_older_ones(shop: Mesh) -> None:
    for name, namespace, address in (
        ("first", "third", "198.51.100.1"),
        ("own", "default", "198.51.100.2"),
    ):
        shop.apply(
            entry(
                name,
                f"hosts: [books.example], {HTTP}, resolution: STATIC, endpoints: [{{address: {address}}}]",
                namespace,
            )
        )
    assert shop.client("caller").get("http://books.example/").workload == "own"
    assert shop.client("other").get("http://books.example/").workload == "first"


def test_an_entry_adds_endpoints_to_a_kubernetes_service(shop: Mesh, caller: Client) -> None:
    """The Service's ports and protocols hold; who answers for them may come from both."""
    shop.apply(
        entry(
            "details",
            "hosts: [details.default.svc.cluster.local], resolution: STATIC, "
            "ports: [{number: 9080, name: http, protocol: TCP}], endpoints: [{address: 198.51.100.1}]",
        )
    )
    found = caller.send("http://details:9080/", n=30)
    assert set(found.counts) == {"details", "details-v1"}
    assert {answer.mtls for answer in found.responses if answer.workload == "details-v1"} == {True}


# --- automatic addresses ------------------------------------------------------------------------------


def two_ledgers(labels: str = "{}") -> str:
    """Two TCP services on one port, without addresses."""
    return "".join(
        entry(
            name,
            f"hosts: [{name}.example], {TCP}, resolution: STATIC, endpoints: [{{address: 198.51.100.{number}}}]",
            labels=labels,
        )
        for number, name in enumerate(("one", "two"), 1)
    )


def test_automatic_addresses_tell_tcp_services_of_one_port_apart(shop: Mesh) -> None:
    shop.apply(RESOLVER + two_ledgers())
    client = shop.client("resolver")
    for name in ("one", "two"):
        with client.tcp(f"{name}.example:5000") as connection:
            assert connection.ask("hi")["workload"] == name


def test_automatic_addresses_are_opted_out_of_by_label(shop: Mesh) -> None:
    label = "{networking.istio.io/enable-autoallocate-ip: 'false'}"
    shop.apply(RESOLVER + two_ledgers(label))
    with shop.client("resolver").tcp("two.example:5000") as connection:
        assert connection.ask("hi")["workload"] == "one", (
            "nothing tells them apart: the older holds"
        )
    assert [f.code for f in shop.findings if f.origin.name == "two"] == ["MLT0101"]


def test_an_address_in_the_status_stays(shop: Mesh) -> None:
    shop.apply(
        RESOLVER
        + two_ledgers().replace(
            "endpoints: [{address: 198.51.100.2}]}",
            "endpoints: [{address: 198.51.100.2}]}\n"
            "status: {addresses: [{value: 240.240.9.9, host: two.example}]}",
        ),
    )
    with shop.client("resolver").tcp("240.240.9.9:5000") as connection:
        assert connection.ask("hi")["workload"] == "two"
