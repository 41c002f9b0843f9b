"""ServiceEntry: services that no platform knows, how they are found, and who sees them."""

from __future__ import annotations

import pytest

from behaviour.entries import CLOSED, HTTP, TCP, entry
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer

pytestmark = pytest.mark.envoy


# --- hosts, addresses and ports -----------------------------------------------------------------------


@pytest.mark.covers("ServiceEntry.hosts", "ServiceEntry.ports.number", "ServiceEntry.ports.name")
def test_hosts_are_known_by_name(shop: Mesh, caller: Client) -> None:
    shop.apply(entry("books", f"hosts: [books.example, tomes.example], {HTTP}, resolution: DNS"))
    for host in ("books.example", "tomes.example"):
        answer = caller.get(f"http://{host}/")
        assert answer.destination.service == host
        assert answer.destination.port == 80


@pytest.mark.covers("ServiceEntry.hosts", "ServiceEntry.resolution=NONE")
def test_a_wildcard_host_stands_for_all_below_it(shop: Mesh, caller: Client) -> None:
    shop.apply(entry("books", f"hosts: ['*.books.example'], {HTTP}"), mesh_config=CLOSED)
    answer = caller.get("http://old.books.example/")
    assert answer.destination.service == "*.books.example"
    assert answer.json()["host"] == "old.books.example"
    assert caller.get("http://films.example/").status == 502


def test_a_wildcard_in_the_clusters_domain_is_not_every_host(shop: Mesh, caller: Client) -> None:
    shop.apply(entry("all", f"hosts: ['*.default.svc.cluster.local'], {HTTP}"), mesh_config=CLOSED)
    assert caller.get("http://new.default.svc.cluster.local/").status != 502
    assert caller.get("http://films.example/").status == 502


@pytest.mark.covers("ServiceEntry.addresses")
def test_tcp_is_known_by_its_address(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry(
            "ledger",
            f"hosts: [ledger.example], addresses: [203.0.113.7], {TCP}, resolution: STATIC, "
            "endpoints: [{address: 198.51.100.1, labels: {version: a}}]",
        ),
        mesh_config=CLOSED,
    )
    with caller.tcp("203.0.113.7:5000") as connection:
        assert connection.ask("hi")["workload"] == "ledger-a"
        assert connection.destination.service == "ledger.example"
    with caller.tcp("203.0.113.8:5000") as connection:
        assert connection.ask("hi") is None


@pytest.mark.covers("ServiceEntry.addresses", "ServiceEntry.resolution=NONE")
def test_an_address_range_takes_what_is_in_it(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry("rack", f"hosts: [rack.example], addresses: [203.0.113.0/28], {TCP}"),
        mesh_config=CLOSED,
    )
    with caller.tcp("203.0.113.5:5000") as connection:
        assert connection.ask("hi")["service"] == "203.0.113.5"
        assert connection.destination.service == "rack.example"
    with caller.tcp("203.0.113.77:5000") as connection:
        assert connection.ask("hi") is None


def test_names_tell_tls_services_of_one_range_apart(shop: Mesh, caller: Client) -> None:
    for name in ("one", "two"):
        shop.apply(
            entry(
                name,
                f"hosts: [{name}.example], addresses: [203.0.113.0/28], "
                "ports: [{number: 443, name: tls, protocol: TLS}]",
            ),
            mesh_config=CLOSED,
        )
    for name in ("one", "two"):
        with caller.tls("203.0.113.5:443", sni=f"{name}.example") as connection:
            assert connection.ask("hi")["tls"]["sni"] == f"{name}.example"
            assert connection.destination.service == f"{name}.example"


@pytest.mark.covers("ServiceEntry.ports.number")
def test_tcp_without_an_address_takes_its_port(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry(
            "ledger",
            f"hosts: [ledger.example], {TCP}, resolution: STATIC, endpoints: [{{address: 198.51.100.1}}]",
        )
    )
    with caller.tcp("ledger.example:5000") as connection:
        assert connection.ask("hi")["workload"] == "ledger"
    with caller.tcp("203.0.113.99:5000") as connection:
        assert connection.ask("hi")["workload"] == "ledger", "the port alone tells"


@pytest.mark.covers("ServiceEntry.ports.protocol")
@pytest.mark.parametrize("protocol", ["HTTP", "HTTP2", "GRPC", "GRPC-Web"])
def test_http_protocols_are_routed_by_host(shop: Mesh, caller: Client, protocol: str) -> None:
    for name in ("one", "two"):
        shop.apply(
            entry(
                name,
                f"hosts: [{name}.example], resolution: DNS, "
                f"ports: [{{number: 8000, name: web, protocol: {protocol}}}]",
            )
        )
    for name in ("one", "two"):
        answer = caller.get(f"http://{name}.example:8000/", http2=protocol != "HTTP")
        assert answer.destination.service == f"{name}.example"
        assert answer.json()["protocol"] == ("http/1.1" if protocol == "HTTP" else "http/2")


@pytest.mark.covers("ServiceEntry.ports.protocol")
@pytest.mark.parametrize("protocol", ["HTTPS", "TLS"])
def test_tls_protocols_are_routed_by_server_name(shop: Mesh, caller: Client, protocol: str) -> None:
    for name in ("one", "two"):
        shop.apply(
            entry(
                name,
                f"hosts: [{name}.example], resolution: DNS, "
                f"ports: [{{number: 8443, name: web, protocol: {protocol}}}]",
            ),
            mesh_config=CLOSED,
        )
    for name in ("one", "two"):
        with caller.tls(f"{name}.example:8443") as connection:
            assert connection.ask("hi")["tls"]["sni"] == f"{name}.example"
            assert connection.destination.service == f"{name}.example"
    with pytest.raises(NoAnswer):
        caller.tls("three.example:8443")


@pytest.mark.covers("ServiceEntry.ports.protocol")
@pytest.mark.parametrize("protocol", ["TCP", "MONGO", "REDIS", "MYSQL"])
def test_other_protocols_are_bytes(shop: Mesh, caller: Client, protocol: str) -> None:
    shop.apply(
        entry(
            "ledger",
            "hosts: [ledger.example], addresses: [203.0.113.7], resolution: STATIC, "
            f"ports: [{{number: 5000, name: db, protocol: {protocol}}}], "
            "endpoints: [{address: 198.51.100.1}]",
        )
    )
    with caller.tcp("ledger.example:5000") as connection:
        assert connection.ask("hello")["received"] == "hello"
        assert connection.destination.service == "ledger.example"


def test_several_ports_of_one_host(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry(
            "books",
            "hosts: [books.example], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}, "
            "{number: 8000, name: http-admin, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]",
        ),
        mesh_config=CLOSED,
    )
    for port in (80, 8000):
        assert caller.get(f"http://books.example:{port}/").destination.port == port
    with caller.tls("books.example:443") as connection:
        assert connection.destination.port == 443
    assert caller.get("http://books.example:8000/", host="films.example:8000").status == 502


# --- resolution ---------------------------------------------------------------------------------------


@pytest.mark.covers(
    "ServiceEntry.resolution=STATIC",
    "ServiceEntry.endpoints.address",
    "ServiceEntry.endpoints.ports",
    "ServiceEntry.ports.targetPort",
)
def test_static_endpoints_have_their_own_ports(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry(
            "books",
            "hosts: [books.example], resolution: STATIC, "
            "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}], endpoints: ["
            "{address: 198.51.100.1, labels: {version: a}}, "
            "{address: 198.51.100.2, labels: {version: b}, ports: {http: 9000}}]",
        )
    )
    found = caller.send("http://books.example/", n=20)
    seen = {(answer.workload, answer.json()["port"]) for answer in found.responses}
    assert seen == {("books-a", 8000), ("books-b", 9000)}


@pytest.mark.covers("ServiceEntry.endpoints.weight")
@pytest.mark.parametrize("resolution", ["STATIC", "DNS"])
def test_weights_share_requests(shop: Mesh, caller: Client, resolution: str) -> None:
    hosts = (
        ("198.51.100.1", "198.51.100.2") if resolution == "STATIC" else ("a.example", "b.example")
    )
    shop.apply(
        entry(
            "books",
            f"hosts: [books.example], {HTTP}, resolution: {resolution}, endpoints: ["
            f"{{address: {hosts[0]}, weight: 1, labels: {{version: a}}}}, "
            f"{{address: {hosts[1]}, weight: 4, labels: {{version: b}}}}]",
        )
        + """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: books}
spec: {host: books.example, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
"""
    )
    found = caller.send("http://books.example/", n=50)
    assert found.counts == {"books-a": 10, "books-b": 40}


@pytest.mark.covers("ServiceEntry.endpoints.labels")
@pytest.mark.parametrize("resolution", ["STATIC", "DNS"])
def test_labels_make_subsets(shop: Mesh, caller: Client, resolution: str) -> None:
    hosts = (
        ("198.51.100.1", "198.51.100.2") if resolution == "STATIC" else ("a.example", "b.example")
    )
    shop.apply(
        entry(
            "books",
            f"hosts: [books.example], {HTTP}, resolution: {resolution}, endpoints: ["
            f"{{address: {hosts[0]}, labels: {{version: a}}}}, "
            f"{{address: {hosts[1]}, labels: {{version: b}}}}]",
        )
        + """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: books}
spec: {host: books.example, subsets: [{name: b, labels: {version: b}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: books}
spec: {hosts: [books.example], http: [{route: [{destination: {host: books.example, subset: b}}]}]}
"""
    )
    assert caller.send("http://books.example/", n=10).counts == {"books-b": 10}


@pytest.mark.covers("ServiceEntry.endpoints.locality")
@pytest.mark.parametrize("resolution", ["STATIC", "DNS"])
def test_near_endpoints_come_first(shop: Mesh, caller: Client, resolution: str) -> None:
    hosts = (
        ("198.51.100.1", "198.51.100.2") if resolution == "STATIC" else ("a.example", "b.example")
    )
    shop.apply(
        entry(
            "books",
            f"hosts: [books.example], {HTTP}, resolution: {resolution}, endpoints: ["
            f"{{address: {hosts[0]}, locality: us/east/a, labels: {{version: far}}}}, "
            f"{{address: {hosts[1]}, locality: eu/west/a, labels: {{version: near}}}}]",
        )
        + """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: books}
spec: {host: books.example, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 5}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller}
spec:
  template:
    metadata: {labels: {app: caller, istio-locality: eu.west.a}}
    spec: {serviceAccountName: caller, containers: [{name: app}]}
"""
    )
    assert shop.client("caller").send("http://books.example/", n=10).counts == {"books-near": 10}


@pytest.mark.covers("ServiceEntry.resolution=DNS")
def test_dns_resolves_the_host_or_its_endpoints(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry("plain", f"hosts: [plain.example], {HTTP}, resolution: DNS")
        + entry(
            "behind",
            f"hosts: ['*.behind.example'], {HTTP}, resolution: DNS, "
            "endpoints: [{address: real.example, labels: {version: a}}, {address: 198.51.100.3, labels: {version: b}}]",
        )
    )
    assert caller.get("http://plain.example/").json()["service"] == "plain.example"
    found = caller.send("http://any.behind.example/", n=20)
    assert set(found.counts) == {"behind-a", "behind-b"}


@pytest.mark.covers("ServiceEntry.resolution=DNS_ROUND_ROBIN")
def test_dns_round_robin_resolves_one_name(shop: Mesh, caller: Client) -> None:
    shop.apply(
        entry("plain", f"hosts: [plain.example], {HTTP}, resolution: DNS_ROUND_ROBIN")
        + entry(
            "behind",
            f"hosts: [behind.example], {HTTP}, resolution: DNS_ROUND_ROBIN, endpoints: [{{address: real.example}}]",
        )
    )
    assert caller.get("http://plain.example/").json()["service"] == "plain.example"
    assert caller.get("http://behind.example/").workload == "behind"


@pytest.mark.covers("ServiceEntry.resolution=NONE")
def test_none_connects_to_what_the_client_asked_for(shop: Mesh, caller: Client) -> None:
    shop.apply(entry("books", f"hosts: [books.example], {HTTP}"), mesh_config=CLOSED)
    answer = caller.get("http://203.0.113.9/", host="books.example")
    assert answer.destination.service == "books.example"
    assert answer.json()["service"] == "203.0.113.9"


# --- inside the mesh ----------------------------------------------------------------------------------


MACHINE = """
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm, labels: {app: vm}}
spec: {address: 10.9.0.1, serviceAccount: vm, labels: {app: vm}}
"""
INSIDE = (
    f"hosts: [vm.internal], location: MESH_INTERNAL, {HTTP}, resolution: STATIC, "
    "workloadSelector: {labels: {app: vm}}"
)


@pytest.mark.covers("ServiceEntry.location=MESH_INTERNAL", "ServiceEntry.workloadSelector.labels")
def test_members_of_the_mesh_are_reached_by_mtls(shop: Mesh, caller: Client) -> None:
    shop.apply(MACHINE + entry("vm", INSIDE))
    answer = caller.get("http://vm.internal/")
    assert answer.workload == "vm"
    assert answer.mtls


@pytest.mark.covers("ServiceEntry.location=MESH_EXTERNAL")
def test_what_is_outside_the_mesh_gets_no_mtls(shop: Mesh, caller: Client) -> None:
    shop.apply(MACHINE + entry("vm", INSIDE.replace("MESH_INTERNAL", "MESH_EXTERNAL")))
    answer = caller.get("http://vm.internal/")
    assert answer.workload == "vm"
    assert not answer.mtls


@pytest.mark.covers("ServiceEntry.workloadSelector.labels")
def test_a_selector_takes_pods_and_machines(shop: Mesh, caller: Client) -> None:
    shop.apply(
        MACHINE.replace("app: vm", "app: reviews")
        + entry(
            "all", INSIDE.replace("app: vm", "app: reviews").replace("number: 80", "number: 9080")
        )
    )
    found = caller.send("http://vm.internal:9080/", n=40)
    assert set(found.counts) == {"vm", "reviews-v1", "reviews-v2", "reviews-v3"}
    assert all(answer.mtls for answer in found.responses)


@pytest.mark.covers("ServiceEntry.endpoints.serviceAccount")
@pytest.mark.parametrize(("account", "status"), [("details", 200), ("impostor", 503)])
def test_an_endpoint_must_prove_its_service_account(
    shop: Mesh, caller: Client, account: str, status: int
) -> None:
    address = shop.objects.proxies[
        [p.workload for p in shop.objects.proxies].index("details-v1")
    ].address
    shop.apply(
        entry(
            "inside",
            "hosts: [inside.internal], location: MESH_INTERNAL, resolution: STATIC, "
            "ports: [{number: 9080, name: http, protocol: HTTP}], "
            f"endpoints: [{{address: {address}, serviceAccount: {account}}}]",
        )
    )
    answer = caller.get("http://inside.internal:9080/")
    assert answer.status == status
    if status == 200:
        assert answer.mtls


@pytest.mark.covers("ServiceEntry.subjectAltNames")
@pytest.mark.parametrize(("account", "status"), [("vm", 200), ("other", 503)])
def test_subject_alt_names_are_demanded(
    shop: Mesh, caller: Client, account: str, status: int
) -> None:
    names = f"subjectAltNames: ['spiffe://cluster.local/ns/default/sa/{account}']"
    shop.apply(MACHINE + entry("vm", f"{INSIDE}, {names}"))
    assert caller.get("http://vm.internal/").status == status


# --- who sees it --------------------------------------------------------------------------------------


@pytest.mark.covers("ServiceEntry.exportTo")
@pytest.mark.parametrize(
    ("export", "here", "there"),
    [
        ("'.'", True, False),
        ("'*'", True, True),
        ("elsewhere", False, True),
        ("'~'", False, False),
    ],
)
def test_export_to_names_the_namespaces_that_see_it(
    shop: Mesh, export: str, here: bool, there: bool
) -> None:
    shop.apply(
        entry("books", f"hosts: [books.example], {HTTP}, resolution: DNS, exportTo: [{export}]"),
        mesh_config=CLOSED,
    )
    for name, seen in (("caller", here), ("other", there)):
        if seen:
            assert shop.client(name).get("http://books.example/").status == 200
        else:
            with pytest.raises(NoAnswer):
                shop.client(name).get("http://books.example/")
