"""gRPC through two sidecars: on a declared port and on one whose protocol is sniffed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from envoy_rig import Envoy, free_port, wait_for
from mesh_world import build_world, pod, service
from pki import make_authority, write_identity

pytestmark = pytest.mark.envoy

SERVER_IP = "127.0.4.1"


def _identity(data: bytes) -> bytes:
    return data


def _answer(request: bytes, context: grpc.ServicerContext) -> bytes:
    peers = [str(v) for k, v in context.invocation_metadata() if k == "x-forwarded-client-cert"]
    return request.upper() + b" from " + ",".join(peers).encode()


class Grpc:
    """A gRPC application behind two sidecars."""

    def __init__(self, folder) -> None:  # type: ignore[no-untyped-def]
        self.app = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(_answer, _identity, _identity)
        self.app.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test.Echo", {"Say": handler}),)
        )
        port = self.app.add_insecure_port("127.0.0.1:0")
        self.app.start()
        self.declared, self.sniffed = free_port(), free_port()
        self.client = Envoy(
            folder / "client",
            {
                "0.0.0.0_9080": [("127.0.0.1", self.declared)],
                "10.96.0.2_9100": [("127.0.0.1", self.sniffed)],
            },
            {"MESH_WORKLOAD": "client"},
        )
        self.server = Envoy(
            folder / "server",
            {"virtualInbound": [(SERVER_IP, port)]},
            {"MESH_WORKLOAD": "server"},
        )
        authority = make_authority()
        for envoy, name in ((self.client, "client"), (self.server, "server")):
            write_identity(
                envoy.certificates, authority, f"spiffe://cluster.local/ns/default/sa/{name}"
            )
        world = build_world(
            service("echo", ("grpc", 9080, port), app="server")
            + service("sniffed", ("any", 9100, port), ip="10.96.0.2", app="server")
            + pod("server", SERVER_IP, account="server")
            + pod("client", "10.1.0.6", account="client"),
            mesh="inboundTrafficPolicy: {mode: LOCALHOST}",
        )
        self.client.load(world.resources("client"), world.endpoints("client"))
        self.server.load(world.resources("server"), world.endpoints("server"))

    def say(self, port: int, host: str) -> bytes:
        """One call."""
        options = [("grpc.default_authority", host)]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            call = channel.unary_unary("/test.Echo/Say", _identity, _identity)
            return bytes(call(b"hello", timeout=10, wait_for_ready=True))

    def close(self) -> None:
        self.client.close()
        self.server.close()
        self.app.stop(0).wait(5)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grpc]:
    """Both sidecars and the application."""
    made = Grpc(tmp_path_factory.mktemp("grpc"))
    try:
        made.server.start()
        made.client.start()
        yield made
    finally:
        made.close()


def test_a_declared_port(mesh: Grpc) -> None:
    """HTTP/2 all the way, encrypted."""
    answer = mesh.say(mesh.declared, "echo:9080")
    assert answer.startswith(b"HELLO from ")
    assert b"URI=spiffe://cluster.local/ns/default/sa/client" in answer


def test_a_sniffed_port(mesh: Grpc) -> None:
    """HTTP/2 is recognised on the client's side and offered to the server's proxy."""
    answer = mesh.say(mesh.sniffed, "sniffed:9100")
    assert b"URI=spiffe://cluster.local/ns/default/sa/client" in answer


def test_calls_are_counted(mesh: Grpc) -> None:
    """request_protocol is grpc and the status is there."""
    mesh.say(mesh.declared, "echo:9080")
    lines = wait_for(
        "gRPC counters", lambda: mesh.client.stats('istio_requests_total.*request_protocol="grpc"')
    )
    assert any('grpc_response_status="0"' in line for line in lines)
