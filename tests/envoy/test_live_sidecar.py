"""Sidecar resources on real Envoys: ingress and egress listeners with ports, binds and capture modes of their own."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from envoy_rig import Backend, TcpBackend, ask, fetch, free_port, wait_for
from live import running
from mesh_world import build_world, pod, service

pytestmark = pytest.mark.envoy


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """The application."""
    made = Backend("app", respond=_respond)
    yield made
    made.close()


def _respond(handler: BaseHTTPRequestHandler) -> int | None:
    if handler.path.startswith("/slow"):
        time.sleep(0.5)
    return None


def _sidecar(spec: str) -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: app}}
spec:
  workloadSelector: {{labels: {{app: app}}}}
{spec}
"""


@pytest.mark.covers(
    "Sidecar.ingress.connectionPool.tcp.maxConnections",
    "Sidecar.ingress.connectionPool.http.http1MaxPendingRequests",
    "Sidecar.ingress.connectionPool.http.http2MaxRequests",
)
def test_ingress_with_default_endpoint_and_pool(tmp_path: Path, backend: Backend) -> None:
    """A port is forwarded to another one, with its own limits; services' ports are not served any more."""
    listen, other = free_port(), free_port()
    world = build_world(
        service("app", ("http", 80, other))
        + pod("app", "127.0.0.1")
        + _sidecar(f"""  inboundConnectionPool: {{http: {{http1MaxPendingRequests: 100}}}}
  ingress:
  - port: {{number: {listen}, protocol: HTTP, name: main}}
    defaultEndpoint: 127.0.0.1:{backend.port}
    connectionPool: {{http: {{http1MaxPendingRequests: 1, http2MaxRequests: 1}}, tcp: {{maxConnections: 1}}}}
""")
    )
    assert not world.findings
    assert all(f"inbound|{other}||" != c.name for c in world.ir("app").clusters)
    with running(tmp_path, world, "app", {"virtualInbound": [("127.0.0.1", listen)]}):
        assert fetch(listen, "/hello").json["name"] == "app"
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(fetch(listen, "/slow").status))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 503 in found
        assert 200 in found


def test_ingress_to_a_unix_socket(tmp_path: Path) -> None:
    """``unix://`` endpoints are reached."""
    path = tmp_path / "app.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
            )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    listen = free_port()
    world = build_world(
        pod("app", "127.0.0.1")
        + _sidecar(f"""  ingress:
  - port: {{number: {listen}, protocol: HTTP, name: main}}
    defaultEndpoint: unix://{path}
""")
    )
    with running(tmp_path / "e", world, "app", {"virtualInbound": [("127.0.0.1", listen)]}):
        assert fetch(listen).body == b"ok"
    server.close()
    thread.join(5)


def test_ingress_without_capture_has_its_own_listener(tmp_path: Path, backend: Backend) -> None:
    """captureMode NONE: clients connect to the port itself, at its bind address."""
    listen = free_port()
    world = build_world(
        pod("app", "127.0.0.1")
        + _sidecar(f"""  ingress:
  - port: {{number: {listen}, protocol: HTTP, name: main}}
    bind: 127.0.0.1
    captureMode: NONE
    defaultEndpoint: 127.0.0.1:{backend.port}
""")
    )
    name = f"127.0.0.1_{listen}"
    with running(tmp_path, world, "app", {name: [("127.0.0.1", listen)]}):
        assert fetch(listen, "/own").json["path"] == "/own"


def test_egress_listeners(tmp_path: Path, backend: Backend) -> None:
    """Each listener offers its hosts only: on a port of its own, on a Unix socket, and the rest on all ports."""
    tcp = TcpBackend("tcp")
    bound, catch_all, direct = free_port(), free_port(), free_port()
    path = tmp_path / "egress.sock"
    world = build_world(
        service("one", ("http", 8080, backend.port), ip="10.96.0.1")
        + pod("one", "127.0.0.1", mtls=False)
        + service("two", ("http", 9090, backend.port), ip="10.96.0.2")
        + pod("two", "127.0.0.1", mtls=False)
        + service("tcp", ("tcp", 7000, tcp.port), ip="10.96.0.3")
        + pod("tcp", "127.0.0.1", mtls=False)
        + pod("app", "10.1.0.1")
        + _sidecar(f"""  outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}
  egress:
  - port: {{number: 8080, protocol: HTTP, name: one}}
    bind: 127.0.0.1
    captureMode: NONE
    hosts: ["./one.default.svc.cluster.local"]
  - port: {{number: 7000, protocol: TCP, name: tcp}}
    bind: 127.0.0.1
    captureMode: NONE
    hosts: ["*/tcp.default.svc.cluster.local"]
  - bind: unix://{path}
    port: {{number: 0, protocol: HTTP, name: socket}}
    hosts: ["./two.default.svc.cluster.local"]
  - hosts: ["./two.default.svc.cluster.local"]
""")
    )
    ir = world.ir("app")
    names = {listener.name: listener for listener in ir.listeners}
    assert names["127.0.0.1_8080"].bind_to_port
    assert "0.0.0.0_8080" not in names
    assert "0.0.0.0_9090" in names
    places = {
        "127.0.0.1_8080": [("127.0.0.1", bound)],
        "0.0.0.0_9090": [("127.0.0.1", catch_all)],
        "127.0.0.1_7000": [("127.0.0.1", direct)],
    }
    try:
        with running(tmp_path / "e", world, "app", places):
            assert fetch(bound, "/1", host="one").json["path"] == "/1"
            assert fetch(bound, "/2", host="two").status == 502
            assert fetch(catch_all, "/3", host="two").json["path"] == "/3"
            assert ask(direct, b"hi\n") == b"tcp:HI\n"
            wait_for("the socket", path.exists)
            connection = http.client.HTTPConnection("two")
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(path))
            connection.request("GET", "/4", headers={"Host": "two"})
            assert connection.getresponse().status == 200
            connection.close()
    finally:
        tcp.close()


def test_no_capture_at_all() -> None:
    """interceptionMode NONE: nothing listens for captured traffic; outbound listeners are bound to the loopback."""
    world = build_world(service("one", ("http", 8080)) + pod("app", "10.1.0.1"))
    ir = world.ir("app", interception_mode="NONE")
    names = {listener.name for listener in ir.listeners}
    assert names == {"127.0.0.1_8080"}
    assert all(listener.bind_to_port for listener in ir.listeners)
