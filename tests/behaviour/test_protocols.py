"""Protocol selection, conflicts on one port, and where requests come back to."""

from __future__ import annotations

import socket
import sys

import pytest

from behaviour.workloads import pods, service
from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh

pytestmark = pytest.mark.envoy

CLOSED = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}"


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
