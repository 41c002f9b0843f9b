"""Services of Kubernetes: headless ones, aliases (ExternalName), and which of their endpoints take part."""

from __future__ import annotations

import pytest

from behaviour.workloads import pods, service
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

CLOSED = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"


# --- headless Services and StatefulSets ---------------------------------------------------------------


def headless(ports: str, replicas: int = 2) -> str:
    """A StatefulSet ``db`` and its Service without an address."""
    return pods(
        "db", "app: db", kind="StatefulSet", more=f"replicas: {replicas}, serviceName: db, "
    ) + service("db", ports, ", clusterIP: None")


@pytest.mark.parametrize("name", ["http", "any"])
def test_pods_of_a_headless_service_are_called_by_name(
    shop: Mesh, caller: Client, name: str
) -> None:
    shop.apply(headless(f"{{name: {name}, port: 8100}}"))
    for pod in ("db-0", "db-1"):
        for host in (f"{pod}.db", f"{pod}.db.default", f"{pod}.db.default.svc.cluster.local"):
            answer = caller.get(f"http://{host}:8100/")
            assert answer.json()["pod"] == pod
            assert answer.mtls
            assert answer.destination.service == "db.default.svc.cluster.local"
    assert caller.get("http://db:8100/").workload == "db"


def test_tcp_to_the_pods_of_a_headless_service(shop: Mesh, caller: Client) -> None:
    shop.apply(headless("{name: tcp, port: 8100}"), mesh_config=CLOSED)
    for pod in ("db-0", "db-1"):
        with caller.tcp(f"{pod}.db:8100") as connection:
            assert connection.ask("hello")["pod"] == pod
            assert connection.mtls
    with shop.client("db-0").tcp("db-1.db:8100") as connection:
        assert connection.ask("hello")["pod"] == "db-1"


def test_rules_hold_for_headless_services(shop: Mesh, caller: Client) -> None:
    shop.apply(
        headless("{name: http, port: 8100}")
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: db}
spec:
  hosts: [db]
  http:
  - {match: [{uri: {prefix: /no}}], directResponse: {status: 403}}
  - {route: [{destination: {host: db}}], headers: {request: {set: {x-rule: "yes"}}}}
"""
    )
    assert caller.get("http://db-1.db:8100/no").status == 403
    answer = caller.get("http://db-1.db:8100/")
    assert answer.json()["pod"] == "db-1"
    assert answer.json()["headers"]["x-rule"] == "yes"


# --- ExternalName -------------------------------------------------------------------------------------


def alias(name: str, target: str, ports: str = "") -> str:
    """An ExternalName Service."""
    return (
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{type: ExternalName, externalName: {target}{ports}}}\n"
    )


def test_an_alias_of_a_service_is_that_service(shop: Mesh, caller: Client) -> None:
    """Its rules, its identity and its mTLS hold; ports need not be written."""
    shop.apply(
        alias("short", "details.default.svc.cluster.local")
        + alias("shorter", "short.default.svc.cluster.local")
    )
    for name in ("short", "short.default", "shorter"):
        answer = caller.get(f"http://{name}:9080/")
        assert answer.workload == "details-v1"
        assert answer.mtls
        assert answer.destination.service == "details.default.svc.cluster.local"
        with caller.tcp(f"{name}:9000") as connection:
            assert connection.ask("hello")["workload"] == "details-v1"
            assert connection.mtls


def test_an_alias_may_be_a_destination_and_have_rules(shop: Mesh, caller: Client) -> None:
    shop.apply(
        alias("short", "details.default.svc.cluster.local")
        + """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: short}
spec: {hosts: [short], http: [{headers: {request: {set: {x-rule: "yes"}}}, route: [{destination: {host: short, port: {number: 9081}}}]}]}
"""
    )
    answer = caller.get("http://short:9080/")
    assert answer.workload == "details-v1"
    assert answer.json()["port"] == 9081
    assert answer.json()["headers"]["x-rule"] == "yes"
    assert "x-rule" not in caller.get("http://details:9080/").json()["headers"]


def test_an_alias_of_a_host_outside_is_resolved_by_dns(shop: Mesh, caller: Client) -> None:
    shop.apply(
        alias("films", "films.example", ", ports: [{name: http, port: 9080}]"), mesh_config=CLOSED
    )
    answer = caller.get("http://films:9080/")
    assert answer.json()["service"] == "films.example"
    assert not answer.mtls


def test_an_alias_does_not_take_the_port_of_others(shop: Mesh, caller: Client) -> None:
    shop.apply(
        alias(
            "films", "films.example", ", ports: [{name: tcp, port: 7700}, {name: any, port: 7701}]"
        )
    )
    for port in (7700, 7701):
        with caller.tcp(f"203.0.113.9:{port}") as connection:
            assert connection.ask("hello there")["service"] == "203.0.113.9"
        with caller.tcp(f"films:{port}") as connection:
            assert connection.ask("hello there")["service"] == "films.example"


def test_aliases_that_lead_in_circles_lead_nowhere(shop: Mesh, caller: Client) -> None:
    shop.apply(
        alias("one", "two.default.svc.cluster.local", ", ports: [{name: http, port: 9080}]")
        + alias("two", "one.default.svc.cluster.local", ", ports: [{name: http, port: 9080}]")
    )
    assert caller.get("http://details:9080/").workload == "details-v1"
    assert caller.get("http://203.0.113.9:9080/", host="one").destination.service.startswith("one.")


# --- which endpoints ----------------------------------------------------------------------------------


def sliced(conditions: str, service_spec: str = "", node: str = "") -> str:
    """Service ``web`` whose two pods are in a slice that says how ``second`` is."""
    where = f", nodeName: {node}" if node else ""
    return (
        pods("first", "app: web")
        + pods("second", "app: web")
        + service("web", "{name: http, port: 8100}", service_spec)
        + f"""
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8100, protocol: TCP}}]
endpoints:
- {{addresses: [FIRST], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: first-1, namespace: default}}, nodeName: near}}
- {{addresses: [SECOND], conditions: {conditions}, targetRef: {{kind: Pod, name: second-1, namespace: default}}{where}}}
"""
    )


def apply_sliced(shop: Mesh, text: str) -> None:
    """Apply it, with the addresses that the pods have here."""
    shop.apply(pods("first", "app: web") + pods("second", "app: web"))
    found = {proxy.workload: proxy.address for proxy in shop.objects.proxies}
    shop.apply(text.replace("FIRST", found["first"]).replace("SECOND", found["second"]))


@pytest.mark.parametrize(
    ("conditions", "spec", "takes_part"),
    [
        ("{ready: true}", "", True),
        ("{ready: false}", "", False),
        ("{ready: false}", ", publishNotReadyAddresses: true", True),
        ("{ready: false, serving: true, terminating: true}", "", False),
        ("{ready: false, serving: false, terminating: true}", "", False),
        ("{}", "", True),
    ],
)
def test_readiness_decides_who_takes_part(
    shop: Mesh, caller: Client, conditions: str, spec: str, takes_part: bool
) -> None:
    apply_sliced(shop, sliced(conditions, spec))
    found = set(caller.send("http://web:8100/", n=20).counts)
    assert found == ({"first", "second"} if takes_part else {"first"})


ON_NODE = "nodeName: near, containers: [{name: app}]"


@pytest.mark.parametrize(
    "spec", [", internalTrafficPolicy: Local", ", trafficDistribution: PreferSameNode"]
)
def test_traffic_stays_on_the_node(shop: Mesh, spec: str) -> None:
    apply_sliced(
        shop, pods("visitor", "app: visitor", ON_NODE) + sliced("{ready: true}", spec, "far")
    )
    assert shop.client("visitor").send("http://web:8100/", n=20).counts == {"first": 20}


def test_local_traffic_has_nowhere_else_to_go(shop: Mesh) -> None:
    """internalTrafficPolicy: Local refuses where trafficDistribution only prefers."""
    visitor = pods("visitor", "app: visitor", "nodeName: other, containers: [{name: app}]")
    apply_sliced(shop, visitor + sliced("{ready: true}", ", internalTrafficPolicy: Local", "far"))
    assert shop.client("visitor").get("http://web:8100/").status == 503
    apply_sliced(
        shop, visitor + sliced("{ready: true}", ", trafficDistribution: PreferSameNode", "far")
    )
    found = shop.client("visitor").send("http://web:8100/", n=20)
    assert set(found.counts) == {"first", "second"}


def near_and_far(annotation: str, spec: str) -> str:
    """Service ``web`` with a pod in the visitor's zone and one in another."""
    return (
        pods("visitor", "app: visitor, istio-locality: eu.west.a")
        + pods("near", "app: web, istio-locality: eu.west.a")
        + pods("far", "app: web, istio-locality: eu.east.a")
        + service("web", "{name: http, port: 8100}", spec).replace(
            "{name: web}", f"{{name: web, annotations: {{{annotation}}}}}"
        )
    )


@pytest.mark.parametrize(
    ("annotation", "spec", "found"),
    [
        ("", ", trafficDistribution: PreferClose", {"near"}),
        ("", ", trafficDistribution: PreferSameZone", {"near"}),
        ("networking.istio.io/traffic-distribution: PreferClose", "", {"near"}),
        ("networking.istio.io/traffic-distribution: Any", ", trafficDistribution: PreferClose", {"near", "far"}),
        ("", "", {"near", "far"}),
    ],
)  # fmt: skip
def test_traffic_distribution_prefers_the_own_zone(
    shop: Mesh, annotation: str, spec: str, found: set[str]
) -> None:
    """Without any outlier detection."""
    shop.apply(near_and_far(annotation, spec))
    assert set(shop.client("visitor").send("http://web:8100/", n=30).counts) == found


def test_the_next_zone_takes_over_when_the_own_is_empty(shop: Mesh) -> None:
    shop.apply(near_and_far("", ", trafficDistribution: PreferClose"))
    shop.apply(pods("near", "app: web, istio-locality: eu.west.a", more="replicas: 0, "))
    assert set(shop.client("visitor").send("http://web:8100/", n=5).counts) == {"far"}
