"""Logs, exec and port-forward through the API server to a node; pods' own HTTP through it."""

from __future__ import annotations

import contextlib
import http.server
import select
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from localkube_apiserver.api_process import ApiProcess
from localkube_apiserver.node_double import NodeDouble


@pytest.fixture(scope="module")
def node(api: ApiProcess) -> Iterator[NodeDouble]:
    made = NodeDouble(api.pki)
    created = api.post("/api/v1/nodes", {"metadata": {"name": "n"}})
    assert created.status == 201, created.body
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": made.port}},
    }
    assert api.patch("/api/v1/nodes/n/status", {"status": status}).status == 200
    yield made
    made.close()


@pytest.fixture
def pod(api: ApiProcess, namespace: str, node: NodeDouble) -> str:
    containers = [{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]
    body = {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": containers}}
    path = f"/api/v1/namespaces/{namespace}/pods"
    assert api.post(path, body).status == 201
    status = {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    assert api.patch(f"{path}/p/status", {"status": status}).status == 200
    return f"{path}/p"


DEADLINE_S = 20


def _upgrade(api: ApiProcess, method: str, target: str, headers: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(api.pki.ca.cert))
    context.load_cert_chain(api.pki.admin.cert, api.pki.admin.key)
    plain = socket.create_connection(("127.0.0.1", api.port), timeout=DEADLINE_S)
    connection = context.wrap_socket(plain, server_hostname="127.0.0.1")
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{headers}\r\n"
    connection.sendall(head.encode())
    return connection


def _read_until(connection: ssl.SSLSocket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = connection.recv(65536)
        assert more, data
        data += more
    return data


def _exchange(connection: ssl.SSLSocket, out: bytes, end: bytes) -> bytes:
    """Send and receive at once, from one thread: two must not share a TLS connection."""
    connection.setblocking(False)
    left, data = memoryview(out), b""
    while not data.endswith(end):
        readable, writable, _ = select.select(
            [connection], [connection] if left else [], [], DEADLINE_S
        )
        assert readable or writable, f"nothing moves after {len(data)} bytes"
        if writable:
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                left = left[connection.send(left[:65536]) :]
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            more = connection.recv(65536)
            assert more, f"closed after {len(data)} bytes"
            data += more
    connection.setblocking(True)
    connection.settimeout(DEADLINE_S)
    return data


def test_logs_are_streamed_from_the_node(api: ApiProcess, node: NodeDouble, pod: str) -> None:
    answer = api.get(f"{pod}/log", container="b", tailLines=2, raw=True)
    assert (answer.status, answer.body) == (200, "line 1\nline 2\n")
    assert node.heads[-1].split()[1].endswith("/p/b?tailLines=2")
    assert node.callers[-1] == "kube-apiserver-kubelet-client"
    unclear = api.get(f"{pod}/log")
    assert unclear.status == 400
    assert "choose one of: [a b]" in unclear.body["message"]


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        (
            "GET",
            "Upgrade: websocket\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
        ),
        ("POST", "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"),
    ],
    ids=["websocket", "spdy"],
)
def test_upgrades_pass_bytes_both_ways(
    api: ApiProcess, node: NodeDouble, pod: str, method: str, headers: str
) -> None:
    target = f"{pod}/exec?container=a&command=x&command=y%20z&stdin=1"
    with _upgrade(api, method, target, headers) as connection:
        assert _read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101")
        connection.sendall(b"hello")
        assert _read_until(connection, b"HELLO") == b"HELLO"
        big = b"x" * 3_000_000
        assert len(_exchange(connection, big + b"end", b"END")) == len(big) + 3
        connection.sendall(b"bye")
        assert _read_until(connection, b"BYE") == b"BYE"
        assert connection.recv(10) == b"", "the end of one side ends the other"
    head = node.heads[-1]
    assert "?command=x&command=y+z&stdin=1 " in head
    assert headers.splitlines()[0] in head
    assert api.get("/readyz", raw=True).body == "ok"


def test_credentials_do_not_reach_the_node(api: ApiProcess, node: NodeDouble, pod: str) -> None:
    headers = (
        "Upgrade: websocket\r\nAuthorization: Bearer a.b.c\r\nSec-WebSocket-Key: k\r\n"
        "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.c2VjcmV0, v4.channel.k8s.io"
        "\r\n"
    )
    with _upgrade(api, "GET", f"{pod}/portforward?ports=80", headers) as connection:
        assert _read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 101")
    assert "/portForward/" in node.heads[-1]
    assert "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n" in node.heads[-1]
    assert "bearer" not in node.heads[-1].lower()


def test_a_refused_upgrade_is_a_status(api: ApiProcess, node: NodeDouble, pod: str) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
    refused = api.post(f"{pod}/exec?container=a&command=refuse", None, headers=headers)
    assert (refused.status, refused.reason) == (400, "BadRequest")
    assert refused.body["message"] == "container is not running"
    plain = api.post(f"{pod}/exec?container=a&command=x", None)
    assert "needs a connection upgrade" in plain.body["message"]


def test_a_node_that_cannot_be_reached_is_named(api: ApiProcess, pod: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }
    assert api.post("/api/v1/nodes", {"metadata": {"name": "lost"}}).status == 201
    assert api.patch("/api/v1/nodes/lost/status", {"status": status}).status == 200
    path = pod.removesuffix("/p")
    containers = [{"name": "a", "image": "x"}]
    body = {"metadata": {"name": "q"}, "spec": {"nodeName": "lost", "containers": containers}}
    assert api.post(path, body).status == 201
    answer = api.get(f"{path}/q/log")
    assert (answer.status, answer.reason) == (503, "ServiceUnavailable")
    assert "cannot reach the agent of node lost" in answer.body["message"]


class _Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.path} {self.headers.get('Authorization')}".encode()
        self.send_response(203)
        self.send_header("X-Backend", "yes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_the_proxy_speaks_http_to_pods(api: ApiProcess, pod: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = f"{pod}:{server.server_port}/proxy/some/path"
        answer = api.get(f"{path}?x=1%202", raw=True, headers={"X-A": "b"})
        server.shutdown()
    assert (answer.status, answer.body) == (203, "/some/path?x=1%202 None")
    assert answer.headers["X-Backend"] == "yes"
