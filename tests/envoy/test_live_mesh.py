"""Two sidecars on real Envoys: mTLS, peer identity and labels, plaintext and STRICT, TCP, circuit breaking."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from envoy_rig import Backend, Envoy, TcpBackend, ask, fetch, free_port, wait_for
from mesh_world import World, build_world, pod, service
from pki import Authority, make_authority, write_identity

pytestmark = pytest.mark.envoy

SERVER_IP = "127.0.3.1"
CLIENT_SPIFFE = "spiffe://cluster.local/ns/default/sa/client"
SERVER_SPIFFE = "spiffe://cluster.local/ns/default/sa/server"


class Gate:
    """Holds requests at the server while it is closed."""

    def __init__(self) -> None:
        self.waiting: list[BaseHTTPRequestHandler] = []
        self._open = threading.Event()

    def wait(self, handler: BaseHTTPRequestHandler) -> None:
        """Stay until the gate is open."""
        self.waiting.append(handler)
        self._open.wait(timeout=30)

    def close(self) -> None:
        """Hold whoever comes from now on."""
        self.waiting.clear()
        self._open.clear()

    def open(self) -> None:
        """Let everybody through."""
        self._open.set()


class Pair:
    """A client's sidecar, a server's sidecar and the server's applications."""

    def __init__(
        self, folder: Path, authority: Authority, *, server_id: str = SERVER_SPIFFE
    ) -> None:
        self.gate = Gate()
        self.http = Backend("http", respond=self._respond)
        self.tcp = TcpBackend("tcp")
        self.auto = Backend("auto")
        self.out_http, self.out_tcp, self.out_auto = (free_port() for _ in range(3))
        ports = (self.http.port, self.tcp.port, self.auto.port)
        self.client = Envoy(
            folder / "client",
            {
                "0.0.0.0_9080": [("127.0.0.1", self.out_http)],
                "10.96.0.1_9000": [("127.0.0.1", self.out_tcp)],
                "10.96.0.1_9100": [("127.0.0.1", self.out_auto)],
            },
            _environment("client"),
        )
        self.server = Envoy(
            folder / "server",
            {"virtualInbound": [(SERVER_IP, port) for port in ports]},
            _environment("server"),
        )
        write_identity(self.client.certificates, authority, CLIENT_SPIFFE)
        write_identity(self.server.certificates, authority, server_id)

    def world(self, rules: str = "") -> World:
        """The mesh with these rules; the server's proxy hands over to 127.0.0.1."""
        made = build_world(
            service(
                "server",
                ("http", 9080, self.http.port),
                ("tcp", 9000, self.tcp.port),
                ("sniffed", 9100, self.auto.port),
            )
            + pod("server", SERVER_IP, account="server")
            + pod("client", "10.1.0.6", account="client")
            + rules,
            mesh="inboundTrafficPolicy: {mode: LOCALHOST}",
        )
        assert not made.findings
        return made

    def apply(self, rules: str = "") -> None:
        """Serve the mesh with these rules to both sidecars."""
        world = self.world(rules)
        self.client.load(world.resources("client"), world.endpoints("client"))
        self.server.load(world.resources("server"), world.endpoints("server"))

    def _respond(self, handler: BaseHTTPRequestHandler) -> int | None:
        if handler.path.startswith("/held"):
            self.gate.wait(handler)
        return 500 if handler.path.startswith("/fail") else None

    def get(self, path: str = "/", **kwargs: object):  # type: ignore[no-untyped-def]
        return fetch(self.out_http, path, host="server", **kwargs)  # type: ignore[arg-type]

    def close(self) -> None:
        for part in (self.client, self.server, self.http, self.tcp, self.auto):
            part.close()


def _environment(name: str) -> dict[str, str]:
    return {
        "MESH_WORKLOAD": f"{name}-v1",
        "MESH_NAMESPACE": "default",
        "MESH_CANONICAL": name,
        "MESH_REVISION": "v1",
        "MESH_APP": name,
        "MESH_VERSION": "v1",
        "MESH_CLUSTER": "Kubernetes",
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both sidecars, permissive."""
    made = Pair(tmp_path_factory.mktemp("pair"), make_authority())
    try:
        made.apply()
        made.server.start()
        made.client.start()
        yield made
    finally:
        made.close()


def test_requests_are_encrypted_and_carry_the_callers_identity(pair: Pair) -> None:
    """The application sees the caller's SPIFFE id, and none of the mesh's own headers."""
    answer = pair.get("/hello")
    assert answer.status == 200
    seen = answer.json["headers"]
    assert f"URI={CLIENT_SPIFFE}" in seen["x-forwarded-client-cert"]
    assert f"By={SERVER_SPIFFE}" in seen["x-forwarded-client-cert"]
    assert not [name for name in seen if name.startswith("x-mesh-")]
    assert seen["x-request-id"]


def test_both_sides_count_with_full_labels(pair: Pair) -> None:
    """Source and destination agree about who called whom."""
    pair.get("/count")
    lines = wait_for(
        "the server's counter",
        lambda: pair.server.stats('requests_total.*reporter="destination".*mutual_tls'),
    )
    for label in (
        'source_workload="client-v1"',
        'source_canonical_service="client"',
        'source_workload_namespace="default"',
        f'source_principal="{CLIENT_SPIFFE}"',
        f'destination_principal="{SERVER_SPIFFE}"',
        'destination_workload="server-v1"',
        'destination_service="server.default.svc.cluster.local"',
        'destination_service_name="server"',
        'response_code="200"',
    ):
        assert any(label in line for line in lines), (label, lines)
    client = pair.client.stats('requests_total.*reporter="source".*response_code="200"')
    assert any(f'destination_principal="{SERVER_SPIFFE}"' in line for line in client)


def test_plaintext_is_taken_but_its_word_is_not(pair: Pair) -> None:
    """Without mTLS the caller is unknown, whatever its headers say."""
    forged = {
        "x-mesh-peer-workload": "admin",
        "x-forwarded-client-cert": "URI=spiffe://x/ns/a/sa/b",
    }
    answer = fetch(pair.http.port, "/plain", address=SERVER_IP, headers=forged)
    assert answer.status == 200
    seen = answer.json["headers"]
    assert "x-forwarded-client-cert" not in seen
    assert "x-mesh-peer-workload" not in seen
    lines = pair.server.stats('requests_total.*connection_security_policy="none"')
    assert lines
    assert not any("admin" in line for line in lines)


def test_tcp_over_mtls(pair: Pair) -> None:
    """TCP goes encrypted as well and is counted with the peer's identity."""
    assert ask(pair.out_tcp, b"hello\n") == b"tcp:HELLO\n"
    lines = wait_for(
        "the TCP counters",
        lambda: pair.server.stats("tcp_connections_closed_total.*mutual_tls"),
    )
    assert any(f'source_principal="{CLIENT_SPIFFE}"' in line for line in lines)
    assert any('source_workload_namespace="default"' in line for line in lines)
    opened = pair.server.stats("tcp_connections_opened_total.*mutual_tls")
    assert any(f'source_principal="{CLIENT_SPIFFE}"' in line for line in opened)


def test_a_sniffed_port_is_http_on_both_sides(pair: Pair) -> None:
    """A port without protocol is recognised as HTTP; the server's side logs it as HTTP, too."""
    answer = fetch(pair.out_auto, "/auto", host="server:9100")
    assert answer.status == 200
    assert answer.json["name"] == "auto"
    assert f"URI={CLIENT_SPIFFE}" in answer.json["headers"]["x-forwarded-client-cert"]


def test_strict_refuses_plaintext_and_keeps_mtls(pair: Pair) -> None:
    """STRICT closes plaintext connections; the mesh goes on."""
    pair.apply(
        """
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""
    )

    def refused() -> bool:
        try:
            fetch(pair.http.port, "/plain", address=SERVER_IP)
        except (ConnectionError, OSError):
            return True
        return False

    wait_for("plaintext is refused", refused)
    assert pair.get("/hello").status == 200
    assert ask(pair.out_tcp, b"hello\n") == b"tcp:HELLO\n"
    pair.apply()
    wait_for("plaintext is back", lambda: not refused())


def test_a_server_with_another_identity_is_not_trusted(tmp_path: Path) -> None:
    """The client checks the server's SPIFFE id against the service's accounts."""
    made = Pair(tmp_path, make_authority(), server_id="spiffe://cluster.local/ns/default/sa/evil")
    try:
        made.apply()
        made.server.start()
        made.client.start()
        assert made.get("/").status == 503
        assert made.client.counter(
            "cluster.outbound|9080||server.default.svc.cluster.local.ssl.fail_verify_san"
        )
    finally:
        made.close()


def test_a_connection_pool_of_one_trips(pair: Pair) -> None:
    """With room for one request and one that waits, four of six at once see 503, and the overflow is counted."""
    rule = """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server}
spec:
  host: server
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 1}
      http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: server}
spec:
  hosts: [server]
  http: [{route: [{destination: {host: server, port: {number: 9080}}}], retries: {attempts: 0}}]
"""
    pair.apply(rule)
    limit = (
        "outbound|9080||server.default.svc.cluster.local::default_priority::max_connections::1\n"
    )
    wait_for(
        "the rule in the client's proxy",
        lambda: limit in fetch(pair.client.admin, "/clusters").body.decode(),
    )
    answers: list[int] = []
    callers = [
        threading.Thread(target=lambda: answers.append(pair.get("/held").status)) for _ in range(6)
    ]
    pair.gate.close()
    for caller in callers:
        caller.start()
    wait_for("four refused", lambda: len(answers) >= 4 and pair.gate.waiting)
    pair.gate.open()
    for caller in callers:
        caller.join()
    assert answers.count(503) >= 4
    assert answers.count(503) + answers.count(200) == 6 and 200 in answers
    wait_for("the flag", lambda: pair.client.stats('requests_total.*response_flags="UO"'))
    pair.apply()


def test_a_failing_endpoint_is_ejected(pair: Pair) -> None:
    """Outlier detection takes the endpoint out after two errors."""
    pair.apply(
        """
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: server}
spec:
  host: server
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 30s, maxEjectionPercent: 100}
"""
    )
    name = (
        "cluster.outbound|9080||server.default.svc.cluster.local.outlier_detection.ejections_active"
    )

    def ejected() -> bool:
        pair.get("/fail")
        return pair.client.counter(name) == 1

    wait_for("the endpoint is ejected", ejected)
    assert pair.get("/hello").status == 503
    pair.apply()
