"""WorkloadEntry: machines and processes that no pod stands for, behind Services and ServiceEntries."""

from __future__ import annotations

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy


def machine(name: str, spec: str, meta: str = "") -> str:
    """A WorkloadEntry of app ``vm``; ``spec`` and ``meta`` are in flow style."""
    return (
        "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        f"metadata: {{name: {name}{meta}}}\nspec: {{{spec}}}\n"
    )


def plain(name: str, address: str, more: str = "") -> str:
    """One without a proxy of its own."""
    return machine(name, f"address: {address}, labels: {{app: vm}}{more}")


SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: vm}
spec:
  selector: {app: vm}
  ports: [{name: http, port: 80, targetPort: 8000}, {name: tcp, port: 5000}]
"""
ENTRY = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm}
spec:
  hosts: [vm.internal]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
  workloadSelector: {labels: {app: vm}}
"""


@pytest.mark.covers("WorkloadEntry.address", "WorkloadEntry.labels")
@pytest.mark.parametrize(("behind", "host"), [(SERVICE, "vm"), (ENTRY, "vm.internal")])
def test_services_and_entries_select_machines(
    shop: Mesh, caller: Client, behind: str, host: str
) -> None:
    shop.apply(behind + plain("one", "10.9.0.1") + plain("two", "10.9.0.2"))
    shop.apply(machine("other", "address: 10.9.0.3, labels: {app: else}"))
    found = caller.send(f"http://{host}/", n=20)
    assert set(found.counts) == {"one", "two"}
    assert {answer.json()["port"] for answer in found.responses} == {8000}


@pytest.mark.covers("WorkloadEntry.labels")
def test_labels_of_the_object_count_and_make_subsets(shop: Mesh, caller: Client) -> None:
    shop.apply(
        SERVICE
        + machine("one", "address: 10.9.0.1", ", labels: {app: vm, version: old}")
        + machine(
            "two",
            "address: 10.9.0.2, labels: {app: vm, version: old}",
            ", labels: {version: new}",
        )
        + """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vm}
spec: {host: vm, subsets: [{name: new, labels: {version: new}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: vm}
spec:
  hosts: [vm]
  http:
  - {match: [{uri: {prefix: /new}}], route: [{destination: {host: vm, subset: new}}]}
  - route: [{destination: {host: vm}}]
"""
    )
    assert caller.send("http://vm/new", n=10).counts == {"two": 10}
    assert set(caller.send("http://vm/", n=20).counts) == {"one", "two"}


@pytest.mark.covers("WorkloadEntry.ports")
@pytest.mark.parametrize(("behind", "host"), [(SERVICE, "vm"), (ENTRY, "vm.internal")])
def test_ports_are_named_by_the_service(shop: Mesh, caller: Client, behind: str, host: str) -> None:
    shop.apply(behind + plain("one", "10.9.0.1", ", ports: {http: 9999}"))
    assert caller.get(f"http://{host}/").json()["port"] == 9999


def test_tcp_to_a_machine(shop: Mesh, caller: Client) -> None:
    shop.apply(SERVICE + plain("one", "10.9.0.1"))
    with caller.tcp("vm:5000") as connection:
        assert connection.ask("hi")["workload"] == "one"


def test_a_service_spreads_over_pods_and_machines(shop: Mesh, caller: Client) -> None:
    shop.apply(machine("vm", "address: 10.9.0.1, labels: {app: details}"))
    found = caller.send("http://details:9080/", n=20)
    assert set(found.counts) == {"vm", "details-v1"}
    assert {(answer.workload, answer.mtls) for answer in found.responses} == {
        ("vm", False),
        ("details-v1", True),
    }


@pytest.mark.covers("WorkloadEntry.serviceAccount")
def test_a_service_account_means_mtls_with_that_identity(shop: Mesh, caller: Client) -> None:
    shop.apply(SERVICE + plain("one", "10.9.0.1", ", serviceAccount: keeper"))
    answer = caller.get("http://vm/")
    assert answer.mtls
    assert answer.first is not None
    assert answer.first.upstream_peer == "spiffe://cluster.local/ns/default/sa/keeper"
    back = shop.client("one").get("http://details:9080/")
    assert back.peer_identity == "spiffe://cluster.local/ns/default/sa/keeper"


@pytest.mark.covers("WorkloadEntry.weight")
def test_weights_share_requests(shop: Mesh, caller: Client) -> None:
    shop.apply(
        SERVICE
        + plain("one", "10.9.0.1", ", weight: 1")
        + plain("two", "10.9.0.2", ", weight: 4")
        + """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vm}
spec: {host: vm, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
"""
    )
    assert caller.send("http://vm/", n=50).counts == {"one": 10, "two": 40}


@pytest.mark.covers("WorkloadEntry.locality")
def test_near_machines_come_first(shop: Mesh) -> None:
    shop.apply(
        SERVICE
        + plain("far", "10.9.0.1", ", locality: us/east/a")
        + plain("near", "10.9.0.2", ", locality: eu/west/a")
        + """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vm}
spec: {host: vm, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 5}}}
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
    assert shop.client("caller").send("http://vm/", n=10).counts == {"near": 10}


@pytest.mark.parametrize("healthy", [True, False])
def test_health_in_the_status_decides(shop: Mesh, caller: Client, healthy: bool) -> None:
    """Where the agent of a machine checks its health, it takes part while that is well."""
    checked = ", annotations: {proxy.istio.io/health-checks-enabled: 'true'}"
    shop.apply(
        SERVICE
        + plain("one", "10.9.0.1")
        + machine("two", "address: 10.9.0.2, labels: {app: vm}", checked)
        + f"status: {{conditions: [{{type: Healthy, status: '{healthy}'}}]}}\n"
    )
    found = set(caller.send("http://vm/", n=20).counts)
    assert found == ({"one", "two"} if healthy else {"one"})


def test_a_machine_is_out_until_its_first_report(shop: Mesh, caller: Client) -> None:
    checked = ", annotations: {proxy.istio.io/health-checks-enabled: 'true'}"
    shop.apply(
        SERVICE
        + plain("one", "10.9.0.1")
        + machine("two", "address: 10.9.0.2, labels: {app: vm}", checked)
    )
    assert set(caller.send("http://vm/", n=20).counts) == {"one"}


# --- networks -----------------------------------------------------------------------------------------


def crossing(gateway: str) -> str:
    """Network ``there``, which is entered at this address: an east-west gateway and its Service."""
    return f"""
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: eastwest, namespace: istio-system}}
spec:
  template:
    metadata: {{labels: {{istio: eastwestgateway, topology.istio.io/network: there}}}}
    spec: {{containers: [{{name: istio-proxy}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: eastwest, namespace: istio-system, labels: {{topology.istio.io/network: there}}}}
spec:
  type: LoadBalancer
  selector: {{istio: eastwestgateway}}
  ports: [{{name: tls, port: 15443}}]
status: {{loadBalancer: {{ingress: [{{ip: "{gateway}"}}]}}}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: cross-network, namespace: istio-system}}
spec:
  selector: {{istio: eastwestgateway}}
  servers:
  - port: {{number: 15443, name: tls, protocol: TLS}}
    tls: {{mode: AUTO_PASSTHROUGH}}
    hosts: ["*.local", "*.internal"]
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: roamer}}
spec:
  template:
    metadata: {{labels: {{app: roamer, topology.istio.io/network: here}}}}
    spec: {{serviceAccountName: roamer, containers: [{{name: app}}]}}
"""


def through_gateway(shop: Mesh) -> int:
    """Connections that the gateway has taken."""
    found = shop.stats("eastwest", r"^listener\..*15443\.downstream_cx_total")
    return sum(found.values())


@pytest.mark.covers("WorkloadEntry.network", "ServiceEntry.endpoints.network")
@pytest.mark.parametrize("listed", [True, False], ids=["endpoint", "WorkloadEntry"])
def test_other_networks_are_entered_through_their_gateway(shop: Mesh, listed: bool) -> None:
    """By mTLS from end to end; in the own network machines are reached directly."""
    shop.apply(crossing("10.8.0.1"))
    gateway = next(p.address for p in shop.objects.proxies if p.workload == "eastwest")
    far = "address: 10.9.0.1, network: there, serviceAccount: keeper, labels: {app: vm}"
    entry = ENTRY
    if listed:
        selector = "workloadSelector: {labels: {app: vm}}"
        entry = ENTRY.replace(selector, f"endpoints: [{{{far}}}]")
    shop.apply(crossing(gateway) + entry + machine("vm", far))
    before = through_gateway(shop)
    answer = shop.client("roamer").get("http://vm.internal/")
    assert answer.workload == "vm"
    assert answer.peer_identity == "spiffe://cluster.local/ns/default/sa/roamer"
    assert through_gateway(shop) == before + 1
    near = crossing(gateway).replace("network: here", "network: there")
    shop.apply(near)
    assert shop.client("roamer").get("http://vm.internal/").workload == "vm"
    assert through_gateway(shop) == before + 1
