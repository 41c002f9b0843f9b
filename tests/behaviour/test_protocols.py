"""Protocol selection, conflicts on one port, headless and aliased Services, and where requests come back to."""

from __future__ import annotations

import socket
import sys

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

CLOSED = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"


def pods(name: str, labels: str, spec: str = "", kind: str = "Deployment", more: str = "") -> str:
    """A workload; texts are in flow style."""
    ports = spec or "containers: [{name: app}]"
    return (
        f"---\napiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n"
        f"spec: {{{more}template: {{metadata: {{labels: {{{labels}}}}}, "
        f"spec: {{serviceAccountName: {name}, {ports}}}}}}}\n"
    )


def service(name: str, ports: str, more: str = "", selector: str = "") -> str:
    """A Service over app ``name``, or another selector."""
    return (
        f"---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
        f"spec: {{selector: {{{selector or 'app: ' + name}}}, ports: [{ports}]{more}}}\n"
    )


def web(ports: str, more: str = "") -> str:
    """One workload ``web`` and its Service."""
    return pods("web", "app: web") + service("web", ports, more)


def raw_request(client: Client, host: str, port: int, data: bytes) -> bytes:
    """Everything that comes back for these bytes."""
    with client.forward(host, port) as address, socket.create_connection(address, 10) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# --- by name and appProtocol --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "http"),
    [
        ("name: http", True), ("name: http-web", True), ("name: http2", True), ("name: grpc-web", True),
        ("name: tcp", False), ("name: tcp-web", False), ("name: redis", False), ("name: mongo-db", False),
        ("name: web, appProtocol: http", True), ("name: http, appProtocol: tcp", False),
        ("name: web, appProtocol: kubernetes.io/h2c", True), ("name: web, appProtocol: kubernetes.io/ws", True),
    ],
)  # fmt: skip
def test_a_port_says_what_it_speaks(shop: Mesh, caller: Client, port: str, http: bool) -> None:
    """HTTP is counted by request, everything else by connection; both go to the application as they came."""
    shop.apply(web(f"{{{port}, port: 8100}}"))
    answer = caller.get("http://web:8100/", http2="2" in port or "grpc" in port or "h2c" in port)
    assert answer.workload == "web"
    assert answer.mtls
    assert answer.first is not None
    assert (answer.first.protocol != "TCP") is http


@pytest.mark.parametrize("port", ["name: web", "name: web, appProtocol: example.com/own"])
def test_what_is_not_said_is_found_out(shop: Mesh, caller: Client, port: str) -> None:
    shop.apply(web(f"{{{port}, port: 8100}}"))
    for http2 in (False, True):
        answer = caller.get("http://web:8100/", http2=http2)
        assert answer.route == "default"
        assert answer.mtls
        assert answer.json()["protocol"] == ("http/2" if http2 else "http/1.1")
    with caller.tcp("web:8100") as connection:
        assert connection.ask("hello there")["received"] == "hello there"
        assert connection.mtls
    with caller.tls("web:8100") as connection:
        assert connection.ask("hello")["tls"]["sni"] == "web"


def test_http_inside_of_a_tcp_port_is_left_alone(shop: Mesh, caller: Client) -> None:
    """No header of the mesh reaches the application."""
    shop.apply(web("{name: tcp, port: 8100}"))
    answer = caller.get("http://web:8100/", headers={"x-own": "1"})
    assert not [name for name in answer.json()["headers"] if name.startswith("x-envoy")]


@pytest.mark.parametrize("port", [3306, 27017, 25, 53])
def test_well_known_server_first_ports_are_bytes(shop: Mesh, caller: Client, port: int) -> None:
    """Waiting for the client's first word would be for ever."""
    shop.apply(web(f"{{name: store, port: {port}}}"))
    with caller.tcp(f"web:{port}") as connection:
        assert connection.ask("hello")["received"] == "hello"
        assert connection.exchange.first is not None
        assert connection.exchange.first.protocol == "TCP"


def test_udp_is_left_to_the_platform(shop: Mesh, caller: Client) -> None:
    """A number may be TCP and UDP at once; only TCP is the mesh's."""
    shop.apply(web("{name: dns, port: 8100, protocol: UDP}, {name: http, port: 8100}"))
    answer = caller.get("http://web:8100/")
    assert answer.workload == "web"
    assert answer.destination.service == "web.default.svc.cluster.local"
    clusters = shop.stats("caller", "web.default.*membership_total")
    assert len(clusters) == 1


def test_websockets_pass_http_ports(shop: Mesh, caller: Client) -> None:
    shop.apply(web("{name: http, port: 8100}"))
    with caller.websocket("ws://web:8100/room") as room:
        assert room.ask("hello")["received"] == "hello"


def test_grpc_passes_http_ports_that_take_what_comes(shop: Mesh, caller: Client) -> None:
    shop.apply(web("{name: grpc, port: 8100}, {name: auto, port: 8101}"))
    for port in (8100, 8101):
        answer = caller.grpc(f"grpc://web:{port}/shop.Cart/Add", b"milk")
        assert answer.status == 200
        assert answer.mtls


HTTP10 = b"GET / HTTP/1.0\r\nHost: web\r\n\r\n"


def test_http_1_0_asks_for_an_upgrade(shop: Mesh, caller: Client) -> None:
    shop.apply(web("{name: http, port: 8100}"))
    assert raw_request(caller, "web", 8100, HTTP10).startswith(b"HTTP/1.1 426 ")


def test_http_1_0_is_accepted_where_proxies_are_told_to(shop: Mesh) -> None:
    note = "'proxyMetadata: {ISTIO_META_HTTP10: \"1\"}'"
    shop.apply(
        web("{name: http, port: 8100}")
        + f"""
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: ancient}}
spec:
  template:
    metadata: {{labels: {{app: ancient}}, annotations: {{proxy.istio.io/config: {note}}}}}
    spec: {{containers: [{{name: app}}]}}
"""
    )
    answer = raw_request(shop.client("ancient"), "web", 8100, HTTP10)
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert b'"workload":"web"' in answer


# --- several services on one port ---------------------------------------------------------------------


def pair(first: str, second: str) -> str:
    """Services ``one`` and ``two``, each with a workload of its own."""
    return (
        pods("one", "app: one")
        + pods("two", "app: two")
        + service("one", first)
        + service("two", second)
    )


def test_http_services_share_a_port_by_name(shop: Mesh, caller: Client) -> None:
    shop.apply(pair("{name: http, port: 8100}", "{name: http, port: 8100}"))
    for name in ("one", "two"):
        assert caller.get(f"http://{name}:8100/").workload == name


@pytest.mark.parametrize(
    "second", ["{name: tcp, port: 8100}", "{name: tls, port: 8100}", "{name: any, port: 8100}"]
)
def test_http_and_other_services_share_a_port_by_address(
    shop: Mesh, caller: Client, second: str
) -> None:
    shop.apply(pair("{name: http, port: 8100}", second))
    assert caller.get("http://one:8100/").workload == "one"
    with caller.tcp("two:8100") as connection:
        assert connection.ask("hello there")["workload"] == "two"
    assert caller.get("http://two:8100/").workload == "two"
    with caller.tls("two:8100") as connection:
        assert connection.ask("hello")["workload"] == "two"


def test_tcp_services_share_a_port_by_address(shop: Mesh, caller: Client) -> None:
    shop.apply(pair("{name: tcp, port: 8100}", "{name: tcp, port: 8100}"))
    for name in ("one", "two"):
        with caller.tcp(f"{name}:8100") as connection:
            assert connection.ask("hello")["workload"] == name


LEDGER = """
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ledger}
spec:
  hosts: [ledger.example]
  resolution: STATIC
  ports: [{number: 8100, name: tcp, protocol: TCP}]
  endpoints: [{address: 198.51.100.1}]
"""


@pytest.mark.parametrize("protocol", ["http", "any"])
def test_tcp_without_an_address_gets_what_is_not_http(
    shop: Mesh, caller: Client, protocol: str
) -> None:
    """Nothing but the port tells it apart from the HTTP services there, and a finding says what that means."""
    headless = service("one", f"{{name: {protocol}, port: 8100}}", ", clusterIP: None")
    shop.apply(pods("one", "app: one") + (headless if protocol == "http" else "") + LEDGER)
    shop.apply(web("{name: http, port: 8100}"))
    assert caller.get("http://web:8100/").workload == "web"
    with caller.tcp("ledger.example:8100") as connection:
        assert connection.ask("hello there")["workload"] == "ledger"
    assert "MLT0107" in {finding.code for finding in shop.findings}


def test_of_two_services_on_one_address_the_older_has_it(shop: Mesh, caller: Client) -> None:
    for name in ("one", "two"):
        shop.apply(
            pods(name, f"app: {name}")
            + service(name, "{name: tcp, port: 8100}", ", clusterIP: 10.96.200.1")
        )
    with caller.tcp("10.96.200.1:8100") as connection:
        assert connection.ask("hello")["workload"] == "one"
    assert "MLT0101" in {finding.code for finding in shop.findings}


def test_several_services_of_one_pod_port(shop: Mesh, caller: Client) -> None:
    """Each name is its own; at the pod the older service's protocol holds, and a finding tells of the other."""
    shop.apply(
        pods("web", "app: web")
        + service("web", "{name: http, port: 8100, targetPort: 9000}")
        + service("raw", "{name: tcp, port: 8200, targetPort: 9000}", selector="app: web")
    )
    assert caller.get("http://web:8100/").json()["port"] == 9000
    assert caller.get("http://raw:8200/").json()["port"] == 9000
    assert "MLT0102" in {finding.code for finding in shop.findings}


def test_named_target_ports_may_differ_from_pod_to_pod(shop: Mesh, caller: Client) -> None:
    shop.apply(
        pods(
            "old", "app: web", "containers: [{name: a, ports: [{name: main, containerPort: 8001}]}]"
        )
        + pods(
            "new", "app: web", "containers: [{name: a, ports: [{name: main, containerPort: 8002}]}]"
        )
        + pods("none", "app: web")
        + service(
            "web",
            "{name: http, port: 80, targetPort: main}, {name: http-b, port: 81, targetPort: '8003'}",
        )
    )
    found = caller.send("http://web/", n=20)
    seen = {(answer.workload, answer.json()["port"]) for answer in found.responses}
    assert seen == {("old", 8001), ("new", 8002)}
    assert {a.json()["port"] for a in caller.send("http://web:81/", n=20).responses} == {8003}


# --- where requests come back to ----------------------------------------------------------------------


def test_a_workload_may_call_its_own_service(shop: Mesh) -> None:
    """Out through its proxy, and in again."""
    shop.apply(web("{name: http, port: 8100}, {name: tcp, port: 8101}"))
    client = shop.client("web")
    answer = client.get("http://web:8100/")
    assert answer.workload == "web"
    assert answer.mtls
    assert [hop.direction for hop in answer.hops] == ["outbound", "inbound"]
    with client.tcp("web:8101") as connection:
        assert connection.ask("hello")["workload"] == "web"


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


GREETER = """
import socketserver, sys

class Greet(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"welcome\\n")
        self.rfile.readline()

socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer((sys.argv[1], int(sys.argv[2])), Greet).serve_forever()
"""


@pytest.mark.covers("MeshConfig.protocolDetectionTimeout")
def test_waiting_for_the_client_to_speak_ends(shop: Mesh) -> None:
    """A server that speaks first on a port that does not say so is heard after that time, on both sides."""
    shop.apply(
        web("{name: any, port: 8100}").replace(
            "containers: [{name: app}]", "containers: [{name: app, ports: [{containerPort: 8100}]}]"
        ),
        mesh_config="protocolDetectionTimeout: 0.1s",
    )
    shop.run("web", [sys.executable, "-c", GREETER, "{address}", "{port}"])
    with shop.client("caller").tcp("web:8100", timeout=10) as connection:
        assert connection.read_line() == b"welcome\n"
