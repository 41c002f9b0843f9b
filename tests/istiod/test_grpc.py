"""Real gRPC calls over the three ports: who may get what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from istiod.kube_server import KubeServer
from istiod.waiting import until
from istiod.xds_client import XdsClient, node_of
from meltemi.adapters.authenticate import Authenticator, KubeReviewer
from meltemi.adapters.ca_grpc import CertificateServer, chain_pem
from meltemi.adapters.discovery_connections import Connection
from meltemi.adapters.discovery_grpc import DiscoveryServer, Limits
from meltemi.adapters.grpc_server import GrpcServer, PortTaken, Serving, credentials
from meltemi.adapters.kube_api import KubeApi
from meltemi.adapters.kube_connection import Connection as KubeConnection
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.secret_access import SecretAccess
from meltemi.ca import authority
from meltemi.discovery.protocol import Mode, Rejected, Snapshot
from meltemi.kit.clock import SystemClock
from meltemi.model.names import CDS_TYPE, DEBUG_TYPE, SDS_FILE_ROOT, SDS_TYPE
from meltemi.model.resource import Resource, resource_of
from meltemi.protos import CREATE_CERTIFICATE, ca_pb2

CLOCK = SystemClock()
FILE = f"{SDS_FILE_ROOT}/etc/world/ca.crt"
TRUST = "cluster.local"
KEY = ec.generate_private_key(ec.SECP256R1())
ROOT = authority.self_signed(KEY, CLOCK.now(), 1, TRUST)
SERVER_KEY = ec.generate_private_key(ec.SECP256R1())
SAN = "istiod.istio-system.svc"


def one(name: str, body: str) -> dict[str, Resource]:
    return {name: resource_of(name, body.encode())}


class Fixed:
    """A source with one snapshot for all."""

    def __init__(self) -> None:
        secrets = one("s", "secret") | one(FILE, "paths")
        self.snapshot = Snapshot("1", {CDS_TYPE: one("a", "1"), SDS_TYPE: secrets})
        self.gone: list[str] = []
        self.refusals: list[Rejected] = []

    async def joined(self, connection: Connection) -> Snapshot:
        return self.snapshot

    def left(self, connection: Connection) -> None:
        self.gone.append(connection.proxy.id)

    def health(self, connection: Connection, problem: str | None) -> None:
        raise AssertionError("nobody reports here")

    async def debug(self, request: str) -> bytes:
        return b'{"asked": "%s"}' % request.encode()

    def rejected(self, connection: Connection, event: Rejected) -> Mapping[str, Any]:
        self.refusals.append(event)
        return {"origins": []}


@dataclass
class Mesh:
    """A running server and what is behind it."""

    kube: KubeServer
    source: Fixed
    discovery: DiscoveryServer
    server: GrpcServer
    metrics: Metrics
    channels: list[aio.Channel] = field(default_factory=list)

    def channel(self, port: str, client: authority.Issued | None = None, key: Any = None) -> Any:
        address = f"127.0.0.1:{self.server.ports[port]}"
        if port == "plain":
            channel = aio.insecure_channel(address)
        else:
            tls = grpc.ssl_channel_credentials(
                ROOT.roots.encode(),
                authority.key_pem(key).encode() if client else None,
                chain_pem(client) if client else None,
            )
            options = (("grpc.ssl_target_name_override", SAN),)
            channel = aio.secure_channel(address, tls, options)
        self.channels.append(channel)
        return channel

    async def create(self, channel: Any, csr: str, token: str = "") -> Any:
        call = channel.unary_unary(
            CREATE_CERTIFICATE,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        return await call(ca_pb2.IstioCertificateRequest(csr=csr), metadata=metadata, timeout=20)


def good_token(account: str = "bookinfo:reviews", audience: str = "istio-ca") -> dict[str, Any]:
    user = {"username": f"system:serviceaccount:{account}"}
    return {"authenticated": True, "audiences": [audience], "user": user}


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    kube = await KubeServer().start()
    kube.tokens["good"] = good_token()
    kube.secret_readers.add("system:serviceaccount:bookinfo:reviews")
    kube.tokens["admin"] = good_token("istio-system:istioctl")
    kube.tokens["vault"] = good_token(audience="vault")
    kube.tokens["old"] = {"authenticated": False, "error": "token has expired"}
    source, metrics = Fixed(), Metrics()
    issued = authority.issue_server(
        ROOT,
        SERVER_KEY,
        (SAN,),
        "spiffe://cluster.local/ns/istio-system/sa/istiod",
        CLOCK.now(),
        2,
        3600,
    )
    serving = Serving(
        authority.key_pem(SERVER_KEY).encode(), chain_pem(issued), ROOT.roots.encode()
    )
    async with KubeApi(KubeConnection(kube.url), "istiod") as api:
        who = Authenticator(KubeReviewer(api, CLOCK, TRUST), lambda: [TRUST])
        limits, access = Limits(write_s=1.0), SecretAccess(api, CLOCK)
        discovery = DiscoveryServer(source, who, metrics, CLOCK, limits, access=access)
        signer = CertificateServer(lambda: ROOT, who, metrics, CLOCK)
        server = GrpcServer([discovery.handlers(), signer.handlers()])
        server.listen("plain", "127.0.0.1:0")
        server.listen("tls", "127.0.0.1:0", credentials(lambda: serving, False))
        server.listen("mtls", "127.0.0.1:0", credentials(lambda: serving, True))
        await server.start()
        mesh = Mesh(kube, source, discovery, server, metrics)
        yield mesh
        for channel in mesh.channels:
            await channel.close()
        await discovery.close()
        await server.stop(0.5)
        signer.close()
    await kube.stop()


def csr_of(key: Any, *uris: str) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if uris:
        names = [x509.UniformResourceIdentifier(uri) for uri in uris]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def sans(pem: str) -> list[str]:
    certificate = x509.load_pem_x509_certificate(pem.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("port", ["plain", "tls"])
async def test_subscribe_and_push(mesh: Mesh, mode: Mode, port: str) -> None:
    """A proxy gets its clusters, then a changed one, on every port and in both variants."""
    client = XdsClient(mesh.channel(port), mode, node_of(), "good")
    await client.ask(CDS_TYPE)
    answer = await client.answer()
    assert len(answer.resources) == 1
    await client.ask(CDS_TYPE, nonce=answer.nonce)
    (connection,) = mesh.discovery.connections
    after = Snapshot("2", {CDS_TYPE: one("a", "2")})
    connection.offer(after, None, CLOCK.monotonic())
    await mesh.discovery.connections.wake([connection])
    answer = await client.answer()
    body = answer.resources[0].value if mode is Mode.SOTW else answer.resources[0].resource.value
    assert body == b"2"
    client.call.cancel()
    await until(lambda: mesh.source.gone == ["reviews-1.bookinfo"])
    assert mesh.metrics.value("pilot_xds", version="unknown") == 0


async def test_changes_that_wait_become_one_push(mesh: Mesh) -> None:
    """Whatever happens before a stream is woken is one response with the newest bytes."""
    client = XdsClient(mesh.channel("plain"), Mode.DELTA, node_of())
    await client.ask(CDS_TYPE)
    await client.answer()
    (connection,) = mesh.discovery.connections
    for body in "2345":
        connection.offer(Snapshot(body, {CDS_TYPE: one("a", body)}), None, CLOCK.monotonic())
    await mesh.discovery.connections.wake([connection])
    answer = await client.answer()
    assert [r.resource.value for r in answer.resources] == [b"5"]
    assert answer.nonce == "2"


async def test_secrets_only_for_callers_that_may_read_them(mesh: Mesh) -> None:
    """Not on the plaintext port, and only where the cluster lets the proven account list Secrets, whatever it calls itself."""
    gateway = node_of()
    gateway.id = gateway.id.replace("sidecar", "router")
    readers = mesh.kube.secret_readers
    seen = []
    for port, node, token in (("plain", gateway, ""), ("tls", node_of(), "good")):
        client = XdsClient(mesh.channel(port), Mode.SOTW, node, token)
        await client.ask(SDS_TYPE, "s")
        seen.append([entry.value for entry in (await client.answer()).resources])
    assert readers and seen == [[], [b"secret"]]


async def test_an_account_without_the_right_gets_no_secrets(mesh: Mesh) -> None:
    """Neither as a sidecar nor when it calls itself a gateway."""
    mesh.kube.secret_readers.clear()
    gateway = node_of()
    gateway.id = gateway.id.replace("sidecar", "router")
    for node in (node_of(), gateway):
        client = XdsClient(mesh.channel("tls"), Mode.SOTW, node, "good")
        await client.ask(SDS_TYPE, "s")
        assert not (await client.answer()).resources


async def test_names_of_files_are_for_every_proxy(mesh: Mesh) -> None:
    """A sidecar that originates TLS with a mounted file asks for it as for a Secret; there is nothing to keep."""
    mesh.kube.secret_readers.clear()
    for port, token in (("plain", ""), ("tls", "good")):
        client = XdsClient(mesh.channel(port), Mode.SOTW, node_of(), token)
        await client.ask(SDS_TYPE, "s", FILE)
        assert [entry.value for entry in (await client.answer()).resources] == [b"paths"]


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "no credentials"),
        ("unknown", "unknown token"),
        ("old", "expired"),
        ("vault", "audience vault"),
    ],
)
async def test_streams_need_a_valid_token(mesh: Mesh, token: str, why: str) -> None:
    """Missing, unknown, expired, and for somebody else."""
    client = XdsClient(mesh.channel("tls"), Mode.DELTA, node_of(), token)
    code, details = await client.status()
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert why in details


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (node_of(namespace="other"), "namespace 'other'"),
        (node_of(SERVICE_ACCOUNT="admin"), "service account 'admin'"),
    ],
)
async def test_a_node_must_be_who_its_token_says(mesh: Mesh, node: Any, why: str) -> None:
    """A stolen name gets nothing."""
    client = XdsClient(mesh.channel("tls"), Mode.DELTA, node, "good")
    await client.ask(CDS_TYPE)
    code, details = await client.status()
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert why in details


async def test_a_broken_node_id_is_explained(mesh: Mesh) -> None:
    """The form that is expected is in the message."""
    node = node_of()
    node.id = "nonsense"
    client = XdsClient(mesh.channel("plain"), Mode.DELTA, node)
    await client.ask(CDS_TYPE)
    code, details = await client.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "sidecar|router" in details


async def test_rejections_are_noted(mesh: Mesh) -> None:
    """A NACK is counted and reported with its resources."""
    client = XdsClient(mesh.channel("plain"), Mode.DELTA, node_of())
    await client.ask(CDS_TYPE)
    answer = await client.answer()
    await client.ask(CDS_TYPE, nonce=answer.nonce, error="no such thing")
    await until(lambda: mesh.source.refusals)
    assert mesh.source.refusals[0].names == ("a",)
    assert mesh.metrics.value("pilot_total_xds_rejects", type="cds") == 1


async def test_a_proxy_that_does_not_read_is_reported(mesh: Mesh) -> None:
    """It holds one message and one pending push, is counted, and the others are served meanwhile."""
    stuck = XdsClient(mesh.channel("plain"), Mode.SOTW, node_of("stuck-1"))
    await stuck.ask(CDS_TYPE)
    await stuck.answer()
    connection = await until(lambda: mesh.discovery.connections.of_proxy("stuck-1.bookinfo"))
    for turn in range(3):
        big = {"a": resource_of("a", bytes([turn]) * 30_000_000)}
        connection.offer(Snapshot(str(turn), {CDS_TYPE: big}), None, CLOCK.monotonic())
        connection.wake.set()
        await asyncio.sleep(0.05)
    await until(lambda: mesh.metrics.value("pilot_xds_write_timeout") == 1)
    other = XdsClient(mesh.channel("plain"), Mode.SOTW, node_of("other-1"))
    await other.ask(CDS_TYPE)
    assert len((await other.answer()).resources) == 1
    await mesh.channels[0].close()
    await until(lambda: mesh.source.gone == ["stuck-1.bookinfo"])


async def test_shutdown_ends_streams_in_good_order(mesh: Mesh) -> None:
    """Proxies see the end of the stream, not an error."""
    client = XdsClient(mesh.channel("plain"), Mode.DELTA, node_of())
    await client.ask(CDS_TYPE)
    await client.answer()
    await mesh.discovery.close()
    assert await client.answer() is aio.EOF
    assert (await client.status())[0] is grpc.StatusCode.OK


async def test_debug_type(mesh: Mesh) -> None:
    """istioctl's way to ask: a resource name, JSON in the answer."""
    client = XdsClient(mesh.channel("tls"), Mode.SOTW, None, "admin")
    await client.ask(DEBUG_TYPE, "syncz")
    answer = await client.answer()
    assert answer.resources[0].value == b'{"asked": "syncz"}'


async def test_certificate_by_token_then_by_certificate(mesh: Mesh) -> None:
    """The first certificate comes for a token; it then authenticates streams and renewals on 15013."""
    key = ec.generate_private_key(ec.SECP256R1())
    answer = await mesh.create(mesh.channel("tls"), csr_of(key), "good")
    assert sans(answer.cert_chain[0]) == ["spiffe://cluster.local/ns/bookinfo/sa/reviews"]
    issued = authority.Issued(tuple(answer.cert_chain), 0, 0)
    channel = mesh.channel("mtls", issued, key)
    again = await mesh.create(channel, csr_of(key, "spiffe://cluster.local/ns/x/sa/admin"))
    assert sans(again.cert_chain[0]) == ["spiffe://cluster.local/ns/bookinfo/sa/reviews"]
    client = XdsClient(channel, Mode.DELTA, node_of())
    await client.ask(CDS_TYPE)
    assert len((await client.answer()).resources) == 1


@pytest.mark.parametrize(
    ("port", "token", "csr", "code", "why"),
    [
        ("plain", "", None, "UNAUTHENTICATED", "no credentials"),
        ("tls", "old", None, "UNAUTHENTICATED", "expired"),
        ("tls", "vault", None, "UNAUTHENTICATED", "audience vault"),
        ("tls", "good", "garbage", "INVALID_ARGUMENT", "PKCS #10"),
    ],
)
async def test_certificates_refused(
    mesh: Mesh, port: str, token: str, csr: str | None, code: str, why: str
) -> None:
    """Clear words and the right status for bad tokens and bad requests."""
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(aio.AioRpcError) as caught:
        await mesh.create(mesh.channel(port), csr or csr_of(key), token)
    assert caught.value.code().name == code
    assert why in caught.value.details()


async def test_api_server_down_is_not_a_bad_token(mesh: Mesh) -> None:
    """The caller is told to try again, and verdicts already given still hold."""
    channel = mesh.channel("tls")
    csr = csr_of(ec.generate_private_key(ec.SECP256R1()))
    await mesh.create(channel, csr, "good")
    await mesh.kube.stop()
    await mesh.create(channel, csr, "good")
    with pytest.raises(aio.AioRpcError) as caught:
        await mesh.create(channel, csr, "admin")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mtls_port_refuses_strangers(mesh: Mesh) -> None:
    """No certificate, no connection."""
    with pytest.raises(aio.AioRpcError) as caught:
        await mesh.create(mesh.channel("mtls"), "x", "good")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_port_already_taken_is_said(mesh: Mesh) -> None:
    """The address is in the message."""
    other = GrpcServer([])
    address = f"127.0.0.1:{mesh.server.ports['plain']}"
    with pytest.raises(PortTaken, match=address):
        other.listen("grpc", address)
    await other.stop(0)
