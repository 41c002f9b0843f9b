"""Attacks on istiod, a whole one with real sockets: stolen tokens, lies about oneself, others' Secrets, too much of everything.

The attacker's place is a pod of namespace ``shop`` with its own, valid token, or outside with nothing.
"""

from __future__ import annotations

import asyncio
import base64
import io
import ssl
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from istiod.kube_server import KubeServer, started_cluster
from istiod.plane import LOCAL, files, running
from istiod.waiting import until
from istiod.xds_client import XdsClient, node_of
from meltemi.adapters.agent_files import Credentials, CredentialStore
from meltemi.adapters.kube_connection import Connection
from meltemi.adapters.stream_gate import STREAMS_PER_CALLER
from meltemi.agent.certificates import Validity
from meltemi.agent.secrets import SecretText
from meltemi.ca.identity import POD_NAME
from meltemi.discovery.protocol import Mode
from meltemi.kit import logs
from meltemi.model.names import CDS_TYPE, DEBUG_TYPE, EDS_TYPE, LDS_TYPE, SDS_TYPE
from meltemi.programs.control_plane import ControlPlane
from meltemi.protos import CREATE_CERTIFICATE, ca_pb2
from pki import make_authority

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAIN, KEY = make_authority().issue("web.example")
GATEWAYS = "/apis/networking.istio.io/v1/gateways"
LABELS = {"istio": "ingressgateway"}
OWN = "spiffe://cluster.local/ns/shop/sa/app"


def token_of(account: str, pod: str = "", audience: str = "istio-ca") -> dict[str, Any]:
    """What the API server says about a token."""
    user: dict[str, Any] = {"username": f"system:serviceaccount:{account}"}
    if pod:
        user["extra"] = {POD_NAME: [pod]}
    return {"authenticated": True, "audiences": [audience], "user": user}


@dataclass
class Target:
    """istiod, its cluster, and channels to it."""

    kube: KubeServer
    plane: ControlPlane
    plain: aio.Channel
    tls: aio.Channel

    async def create(self, csr: str, token: str, **hints: str) -> Any:
        call = self.tls.unary_unary(
            CREATE_CERTIFICATE,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        request = ca_pb2.IstioCertificateRequest(csr=csr)
        request.metadata.update(hints)
        return await call(request, metadata=[("authorization", f"Bearer {token}")], timeout=20)

    def router(self, namespace: str, pod: str = "web-1", account: str = "web") -> Any:
        node = node_of(pod, namespace, SERVICE_ACCOUNT=account, LABELS=LABELS)
        node.id = node.id.replace("sidecar", "router")
        return node


def secret(namespace: str, name: str) -> dict[str, Any]:
    data = {"tls.crt": base64.b64encode(CHAIN).decode(), "tls.key": base64.b64encode(KEY).decode()}
    meta = {"name": name, "namespace": namespace}
    return {"metadata": meta, "type": "kubernetes.io/tls", "data": data}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def target() -> AsyncIterator[Target]:
    kube = await started_cluster("istio-system", "shop", "owner")
    for namespace in ("owner", "shop"):
        await kube.put("/api/v1/secrets", secret(namespace, f"{namespace}-cert"))
        server = {
            "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
            "hosts": [f"{namespace}.example"],
            "tls": {"mode": "SIMPLE", "credentialName": f"{namespace}-cert"},
        }
        spec = {"selector": LABELS, "servers": [server]}
        await kube.put(
            GATEWAYS, {"metadata": {"name": "web", "namespace": namespace}, "spec": spec}
        )
    for namespace, name, address in (("shop", "app-1", "10.0.0.1"), ("owner", "web-1", "10.0.0.2")):
        pod = {
            "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
            "spec": {"serviceAccountName": name[:3], "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIP": address},
        }
        await kube.put("/api/v1/pods", pod)
    kube.tokens.update(
        {
            "app": token_of("shop:app", "app-1"),
            "web": token_of("owner:web", "web-1"),
            "greedy": token_of("shop:greedy", "greedy-1"),
            "vault": token_of("shop:app", "app-1", "vault"),
            "api": token_of("shop:app", "app-1", "https://kubernetes.default.svc"),
            "expired": {"authenticated": False, "error": "token has expired"},
        }
    )
    kube.secret_readers.add("system:serviceaccount:owner:web")
    async with running(LOCAL, Connection(kube.url)) as plane:
        await until(lambda: ("istio-system", "istio-ca-secret") in kube.objects["/api/v1/secrets"])
        held = kube.objects["/api/v1/secrets"]["istio-system", "istio-ca-secret"]["data"]
        root = base64.b64decode(held["root-cert.pem"])
        name = (("grpc.ssl_target_name_override", "istiod.istio-system.svc"),)
        tls = grpc.ssl_channel_credentials(root)
        async with (
            aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as plain,
            aio.secure_channel(f"127.0.0.1:{plane.ports['secure-grpc']}", tls, name) as secure,
        ):
            yield Target(kube, plane, plain, secure)
    await kube.stop()


def csr_of(*names: x509.GeneralName, authority: bool = False) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if authority:
        basic = x509.BasicConstraints(ca=True, path_length=None)
        builder = builder.add_extension(basic, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


# --- tokens and certificates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["vault", "api", "expired", "made up", ""])
async def test_tokens_that_are_not_for_istiod(target: Target, token: str) -> None:
    """Another audience, the API server's own, replayed after its end, invented, none: neither a stream nor a certificate."""
    client = XdsClient(
        target.tls, Mode.DELTA, node_of("app-1", "shop", SERVICE_ACCOUNT="app"), token
    )
    assert (await client.status())[0] is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(aio.AioRpcError) as caught:
        await target.create(csr_of(), token)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "csr",
    [
        csr_of(x509.UniformResourceIdentifier("spiffe://cluster.local/ns/istio-system/sa/istiod")),
        csr_of(
            x509.UniformResourceIdentifier(OWN),
            x509.UniformResourceIdentifier("spiffe://cluster.local/ns/owner/sa/web"),
        ),
        csr_of(x509.DNSName("istiod.istio-system.svc")),
        csr_of(authority=True),
    ],
    ids=["another identity", "one more identity", "istiod's name", "an authority"],
)
async def test_requests_for_more_than_ones_own(target: Target, csr: str) -> None:
    """The certificate holds the identity of the token, nothing else, and signs nobody."""
    answer = await target.create(csr, "app")
    leaf = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [OWN]
    assert not leaf.subject.rdns
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


async def test_asking_in_anothers_name(target: Target) -> None:
    """Only node agents may, and this is none."""
    with pytest.raises(aio.AioRpcError) as caught:
        await target.create(
            csr_of(), "app", ImpersonatedIdentity="spiffe://cluster.local/ns/owner/sa/web"
        )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_too_many_certificates(target: Target) -> None:
    """One pod is told to wait; the others get theirs meanwhile."""
    csr, refused = csr_of(), 0
    for _ in range(60):
        try:
            await target.create(csr, "greedy")
        except aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            refused += 1
    assert refused
    assert (await target.create(csr, "web")).cert_chain


# --- lies about oneself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "pod", "account"),
    [("owner", "web-1", "web"), ("shop", "app-1", "web"), ("shop", "other-1", "app")],
    ids=["another namespace", "another account", "another pod"],
)
@pytest.mark.parametrize("kind", ["sidecar", "router"])
async def test_a_node_that_is_somebody_else(
    target: Target, kind: str, namespace: str, pod: str, account: str
) -> None:
    """The node must be the pod that the token is bound to."""
    node = node_of(pod, namespace, SERVICE_ACCOUNT=account, LABELS=LABELS)
    node.id = node.id.replace("sidecar", kind)
    client = XdsClient(target.tls, Mode.DELTA, node, "app")
    await client.ask(CDS_TYPE)
    assert (await client.status())[0] is grpc.StatusCode.PERMISSION_DENIED


FORMS = (
    "kubernetes://owner-cert", "kubernetes://owner/owner-cert", "kubernetes-gateway://owner/owner-cert",
    "kubernetes://owner-cert-cacert", "kubernetes://../owner/owner-cert", "owner-cert", "owner/owner-cert", "*",
    "kubernetes://istio-system/istio-ca-secret", "kubernetes://istio-ca-secret", "file:///etc/cacerts/ca-key.pem",
    "kubernetes://shop-cert", "",
)  # fmt: skip


async def everything(client: XdsClient) -> bytes:
    """All that istiod says to a caller that asks for Secrets in every form, and for the rest of its configuration."""
    await client.ask(SDS_TYPE, *FORMS)
    await client.ask(CDS_TYPE)
    await client.ask(LDS_TYPE, "*")
    heard, wanted = b"", {CDS_TYPE, LDS_TYPE}
    # Requests are answered in order, and what does not exist is not always answered.
    while wanted:
        answer = await client.answer()
        heard += answer.SerializeToString()
        wanted.discard(answer.type_url)
    client.call.cancel()
    return heard


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("kind", ["sidecar", "router"])
@pytest.mark.parametrize("port", ["plain", "tls"])
async def test_the_secrets_of_others(target: Target, mode: Mode, kind: str, port: str) -> None:
    """Under no name and in no response is there a private key; nor for a workload that calls itself its namespace's gateway."""
    node = node_of("app-1", "shop", SERVICE_ACCOUNT="app", LABELS=LABELS)
    if port == "plain":
        # Without a token anything can be claimed.
        node = target.router("owner")
    node.id = node.id.replace("sidecar", kind).replace("router", kind)
    client = XdsClient(getattr(target, port), mode, node, "app" if port == "tls" else "")
    heard = await everything(client)
    assert KEY not in heard
    assert b"PRIVATE KEY" not in heard


async def test_the_gateway_itself_gets_its_secret(target: Target) -> None:
    """So the attacks above fail for the right reason."""
    client = XdsClient(target.tls, Mode.DELTA, target.router("owner"), "web")
    assert KEY in await everything(client)
    target.kube.secret_readers.discard("system:serviceaccount:owner:web")
    other = XdsClient(target.tls, Mode.DELTA, target.router("owner"), "web")
    # What was allowed a moment ago is remembered for a minute.
    assert KEY in await everything(other)
    target.kube.secret_readers.add("system:serviceaccount:owner:web")


@pytest.mark.parametrize("page", ["configz", "config_dump?proxyID=web-1.owner", "syncz", "adsz"])
async def test_debug_pages_over_xds(target: Target, page: str) -> None:
    """From another machine a workload's token does not open them. (On loopback they are open: a port-forward.)"""
    client = XdsClient(target.tls, Mode.SOTW, None, "app")
    await client.ask(DEBUG_TYPE, page)
    answer = await client.answer()
    assert answer is not aio.EOF  # loopback
    assert KEY not in answer.SerializeToString()
    assert b"PRIVATE KEY" not in answer.SerializeToString()


async def test_keys_are_never_shown(target: Target, tmp_path: Path) -> None:
    """Not in istiod's log at its most talkative, not in a debug page, a metric or a representation; files are the owner's alone."""
    before, written = structlog.get_config(), io.StringIO()
    structlog.reset_defaults()  # the plugin for users, in the same process, quiets the mesh
    logs.configure("default:debug", out=written)
    try:
        await target.create(csr_of(), "app")
        client = XdsClient(target.tls, Mode.DELTA, target.router("owner"), "web")
        assert KEY in await everything(client)
        with pytest.raises(aio.AioRpcError):
            await target.create(csr_of(), "vault")
    finally:
        logs.set_levels(logs.parse_levels("default:info"))
        structlog.configure(**before)
    shown = written.getvalue()
    assert "certificate issued" in shown
    base = f"http://127.0.0.1:{target.plane.ports['monitoring']}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{base}/debug") as answer:
            pages = list(await answer.json())
        for page in ("/metrics", *pages, "/debug/config_dump?proxyID=web-1.owner"):
            async with session.get(base + page) as answer:
                shown += await answer.text()
    held = target.kube.objects["/api/v1/secrets"]["istio-system", "istio-ca-secret"]["data"]
    authority_key = base64.b64decode(held["ca-key.pem"]).decode()
    for key in (KEY.decode(), authority_key):
        body = "".join(key.splitlines()[1:-1])
        for text in (body[:60], base64.b64encode(key.encode()).decode()[:60]):
            assert text not in shown.replace("\\n", "").replace("\n", "")
    for token in ("Bearer app", "Bearer vault", "'vault'"):
        assert token not in shown
    store = CredentialStore(str(tmp_path))
    secret_text = SecretText(KEY.decode())
    store.store(Credentials("CERT", secret_text, "ROOT", Validity(0, 1), OWN))
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    assert "PRIVATE" not in repr(store.load(OWN))


# --- too much -------------------------------------------------------------------------------------------------


async def test_too_many_streams(target: Target) -> None:
    """One proxy may open a few; others are still served."""
    node = node_of("app-1", "shop", SERVICE_ACCOUNT="app")
    clients = [
        XdsClient(target.tls, Mode.DELTA, node, "app") for _ in range(STREAMS_PER_CALLER + 3)
    ]
    for client in clients:
        await client.ask(CDS_TYPE)
    codes = []
    for client in clients:
        try:
            await client.answer()
        except aio.AioRpcError as error:
            codes.append(error.code())
    assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
    other = XdsClient(target.tls, Mode.DELTA, target.router("owner"), "web")
    await other.ask(CDS_TYPE)
    assert (await other.answer()).type_url == CDS_TYPE
    for client in clients:
        client.call.cancel()
    await until(lambda: target.plane.pipeline and len(target.plane.pipeline.connections) <= 1)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("x" * 5_000_000,), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (tuple(f"n{number}" for number in range(300_000)), None),
    ],
    ids=["a message of 5 MB", "300,000 names"],
)
async def test_huge_requests(target: Target, names: tuple[str, ...], code: Any) -> None:
    """Refused by their size, or answered; istiod serves the next one at once."""
    client = XdsClient(
        target.tls, Mode.DELTA, node_of("app-1", "shop", SERVICE_ACCOUNT="app"), "app"
    )
    try:
        await client.ask(EDS_TYPE, *names)
        await client.answer()
    except (aio.AioRpcError, asyncio.InvalidStateError):
        pass
    if code is not None:
        assert (await client.status())[0] is code
    client.call.cancel()
    other = XdsClient(target.tls, Mode.DELTA, target.router("owner"), "web")
    await other.ask(CDS_TYPE)
    assert (await other.answer()).type_url == CDS_TYPE
    other.call.cancel()


DEEP = "[" * 200_000 + "]" * 200_000
BODIES = {
    "deep lists": '{"request": ' + DEEP + "}",
    "deep objects": '{"request": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "a number of a million digits": '{"request": {"uid": ' + "9" * 1_000_000 + "}}",
    "not a number": '{"request": {"uid": NaN}}',
    "infinity": '{"request": {"uid": -Infinity}}',
    "cut off": '{"request": {"object": {"spec": ',
    "no object": "[]",
    "another encoding": '{"request": {}}'.encode("utf-16"),
    "no text at all": b"\xff\xfe\x00",
    "nothing": "",
}


async def test_bodies_that_webhooks_get(target: Target) -> None:
    """Each is refused with a sentence, quickly, and the next good one is answered."""
    url = f"https://127.0.0.1:{target.plane.ports['https']}"
    headers = {"content-type": "application/json"}
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession(headers=headers) as session:
        for name, body in BODIES.items():
            for path in ("/inject", "/validate"):
                async with session.post(url + path, data=body, ssl=context) as answer:
                    assert answer.status == 400, name
                    assert "Traceback" not in await answer.text()
        async with session.post(url + "/validate", data=b" " * 9_000_000, ssl=context) as answer:
            assert answer.status == 413
        good = {"request": {"uid": "1", "operation": "CREATE", "object": {"kind": "Pod"}}}
        async with session.post(url + "/validate", json=good, ssl=context) as answer:
            assert answer.status == 200


HOSTILE = {
    "10,000 aliases": "a: &a [x]\nb: [" + ", ".join(["*a"] * 10_000) + "]\n",
    "aliases of aliases": "a0: &a0 [x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "an alias of itself": "a: &a [*a]\n",
    "deep": "a: " + "[" * 50_000,
    "deep blocks": "".join(" " * n + "a:\n" for n in range(5_000)),
    "a key twice": "kind: Gateway\nkind: Gateway\n",
    "a tag": "a: !!python/object/apply:os.system [id]\n",
    "a long number": f"a: {'9' * 100_000}\n",
    "merges": "a: &a {x: 1}\nb:\n" + "  <<: *a\n" * 2_000,
    "no text": "\x00\x01\ufffe",
}
GOOD = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: good, namespace: shop}
spec: {hosts: [good.example], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
"""


async def test_hostile_yaml(tmp_path: Path) -> None:
    """A folder full of it: istiod starts, keeps its memory, and serves the good object among it."""
    for number, text in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.yaml").write_text(text)
    (tmp_path / "good.yaml").write_text(GOOD)
    began = time.monotonic()
    async with (
        running(files(tmp_path)) as plane,
        aio.insecure_channel(f"127.0.0.1:{plane.ports['grpc']}") as channel,
    ):
        client = XdsClient(channel, Mode.DELTA, node_of("app-1", "shop"))
        await client.ask(CDS_TYPE)
        names = [entry.name for entry in (await client.answer()).resources]
        assert "outbound|80||good.example" in names
        client.call.cancel()
    assert time.monotonic() - began < 60
