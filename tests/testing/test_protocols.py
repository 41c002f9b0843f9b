"""Every protocol that a test may speak, through two real sidecars."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from meltemi.testing.client import TlsOptions
from meltemi.testing.mesh import Mesh
from meltemi.testing.response import NoAnswer

pytestmark = pytest.mark.envoy

SERVICES = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: caller}
spec:
  template:
    metadata: {labels: {app: caller}}
    spec: {serviceAccountName: caller, containers: [{name: app}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: server-v1}
spec:
  template:
    metadata: {labels: {app: server, version: v1}}
    spec: {serviceAccountName: server, containers: [{name: app}]}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports:
  - {name: http, port: 8000}
  - {name: http2, port: 8002}
  - {name: grpc, port: 7070}
  - {name: tcp, port: 9000}
  - {name: tls, port: 9443}
  - {name: mysql, port: 3306}
  - {name: anything, port: 8500}
  - {name: http-low, port: 80}
"""
CALLER = "spiffe://cluster.local/ns/default/sa/caller"


@pytest.fixture
def served(mesh: Mesh) -> Mesh:
    """The services."""
    return mesh.apply(SERVICES)


def test_http1(served: Mesh) -> None:
    answer = served.client("caller").post(
        "http://server:8000/a?b=c", body="hello", headers={"x-a": "1"}
    )
    seen = answer.json()
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/a?b=c", "hello")
    assert seen["headers"]["x-a"] == "1"
    assert seen["host"] == "server:8000"
    assert answer.http_version == "1.1"
    assert answer.mtls


def test_reserved_headers_of_the_rig_are_not_shown(served: Mesh) -> None:
    answer = served.client("caller").get("http://server:8000/")
    assert not [name for name in answer.headers if "meltemi" in name]
    assert not [name for name in answer.json()["headers"] if "meltemi" in name]


def test_http2(served: Mesh) -> None:
    answer = served.client("caller").get("http://server:8002/", http2=True)
    assert answer.http_version == "2"
    assert answer.json()["protocol"] == "http/2"
    assert answer.mtls


def test_http1_callers_reach_http2_servers(served: Mesh) -> None:
    answer = served.client("caller").get("http://server:8002/")
    assert answer.http_version == "1.1"
    assert answer.json()["protocol"] == "http/2"


def test_grpc(served: Mesh) -> None:
    from meltemi.testing.http2 import grpc_messages

    answer = served.client("caller").grpc("grpc://server:7070/shop.Cart/Add", b"\x08\x01")
    assert answer.trailers["grpc-status"] == "0"
    assert grpc_messages(answer.body) == [b"\x08\x01"]
    assert answer.hops[-1].path == "/shop.Cart/Add"
    assert answer.mtls


def test_grpc_libraries_through_a_forwarded_address(served: Mesh) -> None:
    import grpc

    with served.client("caller").forward("server", 7070) as (host, port):
        channel = grpc.insecure_channel(
            f"{host}:{port}", [("grpc.default_authority", "server:7070")]
        )
        with channel:
            assert channel.unary_unary("/shop.Cart/Add")(b"\x08\x02", timeout=10) == b"\x08\x02"


def test_tcp(served: Mesh) -> None:
    with served.client("caller").tcp("server:9000") as connection:
        answer = connection.ask("hello")
        assert answer["received"] == "hello"
        assert answer["workload"] == "server-v1"
        assert connection.mtls
        assert connection.peer_identity == CALLER
        assert connection.destination.service == "server.default.svc.cluster.local"


def test_servers_that_speak_first(served: Mesh) -> None:
    with served.client("caller").tcp("server:3306") as connection:
        assert b'"greeting":true' in connection.read_line()


def test_tls_of_the_application(served: Mesh) -> None:
    with served.client("caller").tls("server:9443", sni="server.example.com") as connection:
        answer = connection.ask("secret")
        assert answer["received"] == "secret"
        assert answer["tls"]["sni"] == "server.example.com"
        assert "server.example.com" in connection.certificate
        assert connection.mtls


def test_https_of_the_application(served: Mesh) -> None:
    answer = served.client("caller").get("https://server:9443/private")
    assert answer.path_seen == "/private"
    assert "server" in answer.certificate


def test_unnamed_protocols_are_recognised(served: Mesh) -> None:
    client = served.client("caller")
    assert client.get("http://server:8500/").hops[0].direction == "outbound"
    with client.tcp("server:8500") as connection:
        assert connection.ask("hello")["protocol"] == "tcp"


def test_websocket(served: Mesh) -> None:
    with served.client("caller").websocket("ws://server:8000/chat") as socket:
        assert socket.ask("hello")["received"] == "hello"
        assert socket.ask("x" * 70_000)["received"] == "x" * 70_000
        assert socket.response is not None
        assert socket.response.status == 101


def test_ports_that_users_may_not_bind(served: Mesh) -> None:
    answer = served.client("caller").get("http://server/")
    assert answer.json()["port"] == 80
    assert answer.destination.port == 80
    assert answer.mtls


def test_large_bodies(served: Mesh) -> None:
    body = "x" * 3_000_000
    assert served.client("caller").post("http://server:8000/", body=body).json()["body"] == body
    assert (
        served.client("caller").post("http://server:8002/", body=body, http2=True).json()["body"]
        == body
    )


def test_clients_outside_the_mesh_have_no_identity(served: Mesh) -> None:
    answer = served.outside.get("http://server:8000/")
    assert answer.status == 200
    assert not answer.mtls
    assert answer.peer_identity == ""


def test_a_refused_connection_tells_why(served: Mesh) -> None:
    served.apply("""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
""")
    with pytest.raises(NoAnswer):
        served.outside.get("http://server:8000/")
    assert served.client("caller").get("http://server:8000/").mtls


def test_unknown_hosts_are_outside_the_mesh(served: Mesh) -> None:
    answer = served.client("caller").get("http://www.example.com:8088/")
    assert answer.json()["service"] == "www.example.com"
    assert answer.destination.cluster == "PassthroughCluster"


def test_a_workload_without_a_sidecar(served: Mesh) -> None:
    served.apply("""
apiVersion: v1
kind: Pod
metadata:
  name: plain
  labels: {app: plain, sidecar.istio.io/inject: "false"}
spec: {containers: [{name: app, ports: [{containerPort: 8000}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain}
spec:
  selector: {app: plain}
  ports: [{name: http, port: 8000}]
""")
    answer = served.client("caller").get("http://plain:8000/")
    assert answer.status == 200
    assert not answer.mtls
    assert not served.client("plain").get("http://server:8000/").mtls


def test_failures_are_made_on_demand(served: Mesh) -> None:
    client = served.client("caller")
    with served.fail("server-v1", status=418, headers={"x-why": "tea"}):
        answer = client.get("http://server:8000/")
        assert (answer.status, answer.headers["x-why"]) == (418, "tea")
    assert client.get("http://server:8000/").status == 200
    with served.fail("server-v1", delay=0.3):
        assert client.get("http://server:8000/").elapsed_s >= 0.3
    with served.fail("server-v1", reset=True):
        assert client.get("http://server:8000/").status == 503
    with served.fail("server-v1", grpc_status=14):
        answer = client.grpc("grpc://server:7070/a.B/C")
        assert answer.trailers["grpc-status"] == "14"


def test_own_programs_take_a_stand_ins_place(served: Mesh, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my own program")
    code = (
        "import http.server, sys, os; os.chdir(sys.argv[3]); "
        "http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), "
        "http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    served.apply("""
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{name: http, port: 8000}]
""")
    served.run("server-v1", [sys.executable, "-c", code, "{address}", "{port}", str(tmp_path)])
    answer = served.client("caller").get("http://server:8000/")
    assert answer.text == "my own program"
    assert answer.mtls
    assert answer.destination.workload == "server-v1"


def test_clients_can_show_certificates(mesh: Mesh) -> None:
    mesh.apply(
        """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8443, name: https, protocol: HTTPS}
    hosts: [shop.example.com]
    tls: {mode: MUTUAL, credentialName: shop}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: [shop.example.com]
  gateways: [front]
  http:
  - directResponse: {status: 207}
""",
        mesh.tls_secret("shop", "shop.example.com", ca=True),
    )
    chain, key, root = mesh.certificate("customer.example.com")
    shown = TlsOptions(ca=root, cert=(chain, key))
    gateway = mesh.gateway()
    assert gateway.get("https://shop.example.com:8443/", tls=shown).status == 207
    with pytest.raises(NoAnswer):
        gateway.get("https://shop.example.com:8443/")
