"""ServiceEntries of every resolution, reached through a real Envoy."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy_rig import Backend, TcpBackend, ask, fetch, free_port
from live import running
from mesh_world import build_world, pod
from pki import make_authority

pytestmark = pytest.mark.envoy


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """The external service."""
    made = Backend("external")
    yield made
    made.close()


def _entry(spec: str, name: str = "ext") -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
{spec}
"""


@pytest.mark.parametrize(
    "rest",
    [
        "resolution: STATIC\n  endpoints: [{{address: 127.0.0.1, ports: {{http: {0}}}}}]",
        "resolution: DNS\n  endpoints: [{{address: localhost, ports: {{http: {0}}}}}]",
        "resolution: DNS_ROUND_ROBIN\n  endpoints: [{{address: localhost, ports: {{http: {0}}}}}]",
    ],
)
def test_fixed_and_resolved_endpoints(tmp_path: Path, backend: Backend, rest: str) -> None:
    """Addresses as written, and names that the proxy resolves."""
    world = build_world(
        pod("client", "10.1.0.6")
        + _entry(
            "  hosts: [ext.example]\n  ports: [{number: 8080, name: http, protocol: HTTP}]\n  "
            + rest.format(backend.port)
        )
    )
    assert not world.findings
    port = free_port()
    with running(tmp_path, world, "client", {"0.0.0.0_8080": [("127.0.0.1", port)]}):
        seen = fetch(port, "/x", host="ext.example").json
        assert seen["path"] == "/x"
        assert not any(name.startswith("x-mesh-peer") for name in seen["headers"])


def test_names_are_resolved_per_request(tmp_path: Path, backend: Backend) -> None:
    """DYNAMIC_DNS: every name under a wildcard is resolved as it is asked for."""
    world = build_world(
        pod("client", "10.1.0.6")
        + _entry(
            "  hosts: ['*.localhost']\n  resolution: DYNAMIC_DNS\n"
            f"  ports: [{{number: {backend.port}, name: http, protocol: HTTP}}]"
        )
    )
    assert not world.findings, world.findings
    port = free_port()
    places = {f"0.0.0.0_{backend.port}": [("127.0.0.1", port)]}
    with running(tmp_path, world, "client", places):
        for name in ("one", "two"):
            answer = fetch(port, "/d", host=f"{name}.localhost:{backend.port}")
            assert answer.json["headers"]["host"].startswith(name)


def test_sni_is_resolved_per_connection(tmp_path: Path) -> None:
    """DYNAMIC_DNS on a TLS port: the proxy connects to the host that the client's TLS names."""
    authority = make_authority("far")
    chain, key = authority.issue("app.localhost")
    (tmp_path / "c.pem").write_bytes(chain)
    (tmp_path / "k.pem").write_bytes(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    server = socket.create_server(("127.0.0.1", 0))
    number = server.getsockname()[1]

    def serve() -> None:
        raw, _ = server.accept()
        with context.wrap_socket(raw, server_side=True) as secure:
            secure.sendall(b"far:" + secure.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    world = build_world(
        pod("client", "10.1.0.6")
        + _entry(
            "  hosts: ['*.localhost']\n  resolution: DYNAMIC_DNS\n"
            f"  ports: [{{number: {number}, name: tls, protocol: TLS}}]"
        )
    )
    port = free_port()
    client = ssl.create_default_context(cadata=authority.root.decode())
    with (
        running(tmp_path / "e", world, "client", {f"0.0.0.0_{number}": [("127.0.0.1", port)]}),
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        client.wrap_socket(raw, server_hostname="app.localhost") as secure,
    ):
        secure.sendall(b"hi")
        assert secure.recv(100) == b"far:hi"
    server.close()


def test_dynamic_dns_needs_a_name() -> None:
    """Plain TCP carries none: reported."""
    world = build_world(
        pod("client", "10.1.0.6")
        + _entry(
            "  hosts: ['*.example']\n  resolution: DYNAMIC_DNS\n"
            "  ports: [{number: 9000, name: tcp, protocol: TCP}]"
        )
    )
    assert "MLT0202" in {finding.code for finding in world.ir("client").findings}


def test_unknown_hosts_by_name(tmp_path: Path, backend: Backend) -> None:
    """ALLOW_ANY_DYNAMIC_DNS: a host that nobody declared is resolved by its name."""
    world = build_world(
        pod("client", "10.1.0.6")
        + _entry(
            "  hosts: [other.example]\n  resolution: STATIC\n"
            f"  ports: [{{number: {backend.port}, name: http, protocol: HTTP}}]"
        ),
        mesh="outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}",
    )
    port = free_port()
    places = {f"0.0.0.0_{backend.port}": [("127.0.0.1", port)]}
    with running(tmp_path, world, "client", places):
        assert fetch(port, "/u", host=f"any.localhost:{backend.port}").json["path"] == "/u"


def test_tcp_by_address(tmp_path: Path) -> None:
    """A TCP service at an address of its own."""
    tcp = TcpBackend("tcp")
    try:
        world = build_world(
            pod("client", "10.1.0.6")
            + _entry(
                "  hosts: [db.example]\n  addresses: [192.0.2.7]\n  resolution: STATIC\n"
                "  ports: [{number: 3306, name: tcp, protocol: TCP}]\n"
                f"  endpoints: [{{address: 127.0.0.1, ports: {{tcp: {tcp.port}}}}}]"
            )
        )
        port = free_port()
        with running(tmp_path, world, "client", {"192.0.2.7_3306": [("127.0.0.1", port)]}):
            assert ask(port, b"hi\n") == b"tcp:HI\n"
    finally:
        tcp.close()
