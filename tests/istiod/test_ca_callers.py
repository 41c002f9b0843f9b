"""Who gets which certificate: OIDC tokens, node agents, and an external authority that signs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar

import grpc
import jwt
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import aio

from ca.making import Made, files
from meltemi.adapters.authenticate import Authenticator, CannotReview
from meltemi.adapters.ca_external import ExternalAuthority, ExternalRefused
from meltemi.adapters.ca_grpc import CertificateServer
from meltemi.adapters.grpc_server import GrpcServer
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.oidc import OidcReviewer, parse_rules
from meltemi.ca import authority, secrets
from meltemi.ca.identity import Identity, NotAuthenticated
from meltemi.config.mesh import parse_mesh_config
from meltemi.kit.clock import ManualClock
from meltemi.protos import CREATE_CERTIFICATE, ca_pb2
from pki import make_authority

CLOCK = ManualClock()
TRUST = "cluster.local"
ROOT = authority.self_signed(
    ec.generate_private_key(ec.SECP256R1()), CLOCK.now(), 1, TRUST, ttl_s=1e8
)
KEY = ec.generate_private_key(ec.SECP256R1())
STRANGER = ec.generate_private_key(ec.SECP256R1())
ISSUER = "https://issuer.example"
VM = "system:serviceaccount:vms:db"


def key_set(key: Any = KEY, key_id: str = "k1") -> str:
    shown = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return json.dumps({"keys": [{**shown, "kid": key_id, "use": "sig", "alg": "ES256"}]})


def token_of(key: Any = KEY, key_id: str = "k1", **claims: Any) -> str:
    body = {
        "iss": ISSUER,
        "sub": VM,
        "aud": "istio-ca",
        "exp": CLOCK.now() + 600,
        **claims,
    }
    return jwt.encode(body, key, "ES256", {"kid": key_id})


def inline(**more: Any) -> OidcReviewer:
    rule = {"issuer": ISSUER, "audiences": ["istio-ca"], "jwks": key_set(), **more}
    return OidcReviewer(parse_rules(json.dumps(rule)), None, CLOCK, TRUST)


async def test_an_issuers_token_is_taken() -> None:
    """The identity is the subject's."""
    assert await inline().review(token_of()) == Identity(TRUST, "vms", "db")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (lambda: token_of(STRANGER), "Signature verification failed"),
        (lambda: token_of(exp=CLOCK.now() - 3600), "expired"),
        (lambda: token_of(nbf=CLOCK.now() + 3600), "not valid yet"),
        (lambda: token_of(aud="vault"), "Audience"),
        (lambda: token_of(iss="https://other.example"), "no issuer"),
        (lambda: token_of(sub="alice"), "no service account"),
        (lambda: token_of(key_id="k9"), "does not publish"),
        (lambda: jwt.encode({"iss": ISSUER, "sub": VM}, "", "none"), "does not publish"),
        (lambda: "not.a.token", "no issuer"),
    ],
)
async def test_bad_tokens_are_refused(token: Any, why: str) -> None:
    """Each with its reason."""
    with pytest.raises(NotAuthenticated, match=why):
        await inline().review(token())


@pytest.mark.parametrize(
    "text", ["{", "[]x", '{"issuer": "a"}', '"a"', '{"issuer":"a","jwks":"{}"}']
)
def test_bad_rules_are_said(text: str) -> None:
    """At the start, in a sentence."""
    with pytest.raises(ValueError, match=r"JWT_RULE|key set"):
        parse_rules(text)


async def test_keys_are_fetched_kept_and_rotated() -> None:
    """One fetch serves many tokens; an unknown key id fetches again; an issuer that is down keeps its keys."""
    served, fetches = [key_set()], [0]

    async def answer(_: web.Request) -> web.Response:
        fetches[0] += 1
        return web.Response(text=served[0]) if served[0] else web.Response(status=500)

    app = web.Application()
    app.router.add_get("/keys", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    uri = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/keys"  # type: ignore[union-attr]
    try:
        rule = json.dumps({"issuer": ISSUER, "jwksUri": uri})
        reviewer = OidcReviewer(parse_rules(rule), None, CLOCK, TRUST)
        for _ in range(3):
            await reviewer.review(token_of())
        assert fetches == [1]
        served[0] = key_set(STRANGER, "k2")
        CLOCK.advance(20)
        await reviewer.review(token_of(STRANGER, "k2"))
        served[0] = ""
        CLOCK.advance(3600)
        await reviewer.review(token_of(STRANGER, "k2"))
        CLOCK.advance(20)
        with pytest.raises(CannotReview, match="cannot be fetched"):
            await reviewer.review(token_of(KEY, "k3"))
    finally:
        await runner.cleanup()


# --- node agents, and an external authority -------------------------------------------------------------------


class Tokens:
    """A reviewer that knows these."""

    known: ClassVar[dict[str, Identity]] = {
        "node": Identity(TRUST, "istio-system", "ztunnel", pod="ztunnel-1"),
        "loose": Identity(TRUST, "istio-system", "ztunnel"),
        "pod": Identity(TRUST, "shop", "cart", pod="cart-1"),
    }

    async def review(self, token: str) -> Identity:
        if token not in self.known:
            raise NotAuthenticated("unknown token")
        return self.known[token]


def beside(namespace: str, pod: str) -> frozenset[tuple[str, str]]:
    same = (namespace, pod) == ("istio-system", "ztunnel-1")
    return frozenset({("shop", "cart"), ("istio-system", "ztunnel")}) if same else frozenset()


@asynccontextmanager
async def serving(metrics: Metrics, **more: Any) -> AsyncIterator[str]:
    tls = more.pop("tls", None)
    signer = CertificateServer(
        more.pop("current", lambda: ROOT),
        Authenticator(Tokens(), lambda: [TRUST], more.pop("gateways", ())),
        metrics,
        CLOCK,
        trusted_nodes=("istio-system/ztunnel",),
        beside=beside,
        **more,
    )
    server = GrpcServer([signer.handlers()])
    port = server.listen("signer", "127.0.0.1:0", tls)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.1)
        signer.close()


def csr_of(key: Any) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


async def create(
    address: str, token: str, wanted: str = "", forwarded: tuple[str, ...] = (), **more: Any
) -> list[str]:
    """Names in the certificate."""
    request = ca_pb2.IstioCertificateRequest(**{"csr": csr_of(KEY), **more})
    if wanted:
        request.metadata.update({"ImpersonatedIdentity": wanted, "CertSigner": "example.com/any"})
    async with aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            CREATE_CERTIFICATE,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=ca_pb2.IstioCertificateResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        metadata += [("x-forwarded-client-cert", text) for text in forwarded]
        answer = await call(request, metadata=metadata, timeout=20)
    leaf = x509.load_pem_x509_certificate(answer.cert_chain[0].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


CART = "spiffe://cluster.local/ns/shop/sa/cart"


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited field, shorter than 16 KiB, as it is on the wire."""
    length = len(data)
    size = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
    return bytes([number << 3 | 2]) + size + data


async def test_the_bytes_are_istios(tmp_path: Any) -> None:
    """Written by hand: csr is 1, validity_duration 3, metadata 4, cert_chain 1; the leaf comes first, the root last."""
    top = Made("root", end=CLOCK.now() + 1e8, start=CLOCK.now() - 60)
    middle = Made("middle", top, end=CLOCK.now() + 1e8, start=CLOCK.now() - 60)
    signs = Made("signs", middle, end=CLOCK.now() + 1e8, start=CLOCK.now() - 60)
    plugged = secrets.authority_of(files(signs, middle, root=top))
    text = _field(1, b"CertSigner") + _field(2, _field(3, b"any"))
    request = _field(1, csr_of(KEY).encode()) + b"\x18\x90\x1c" + _field(4, _field(1, text))
    async with (
        serving(Metrics(), current=lambda: plugged) as address,
        aio.insecure_channel(address) as channel,
    ):
        call = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
        answer = await call(request, metadata=[("authorization", "Bearer pod")], timeout=20)
    chain = x509.load_pem_x509_certificates(answer)
    subjects = [each.subject.rfc4514_string() for each in chain]
    assert subjects == ["", "CN=signs", "CN=middle", "CN=root"]
    assert answer.startswith(b"\x0a")
    assert answer.count(b"-----BEGIN CERTIFICATE-----") == 4
    lifetime = chain[0].not_valid_after_utc.timestamp() - CLOCK.now()
    assert 3599 <= lifetime <= 3600


async def test_an_external_authority_is_not_asked_for_more_than_is_allowed() -> None:
    """The maximum holds whoever signs."""

    class Never:
        async def sign(self, *_: Any) -> list[str]:
            raise AssertionError("asked")

        async def close(self) -> None: ...

    async with serving(Metrics(), external=Never()) as address:
        with pytest.raises(aio.AioRpcError, match="maximum") as caught:
            await create(address, "pod", validity_duration=10**9)
        assert caught.value.code().name == "INVALID_ARGUMENT"


async def test_the_metrics_are_citadels() -> None:
    """Names, and Istio's words for what was wrong; nothing is counted twice."""
    metrics, gone = Metrics(), lambda: None
    tried = [
        ("pod", {}, None),
        ("pod", {"csr": "no request"}, "CSR_ERROR"),
        ("pod", {"validity_duration": 10**9}, "TTL_ERROR"),
        ("nobody", {}, "authentication"),
    ]
    async with serving(metrics) as address:
        for token, change, wrong in tried:
            if wrong is None:
                assert await create(address, token, **change) == [CART]
                continue
            with pytest.raises(aio.AioRpcError):
                await create(address, token, **change)
    async with serving(metrics, current=gone) as address:
        with pytest.raises(aio.AioRpcError, match="not ready"):
            await create(address, "pod")
    name = "citadel_server_csr_sign_err_count"
    for error in ("CSR_ERROR", "TTL_ERROR", "CA_NOT_READY"):
        assert metrics.value(name, error=error) == 1, error
    assert metrics.value("citadel_server_csr_count") == len(tried) + 1
    assert metrics.value("citadel_server_csr_parsing_err_count") == 1
    assert metrics.value("citadel_server_authentication_failure_count") == 1
    assert metrics.value("citadel_server_success_cert_issuance_count") == 1


async def test_a_node_agent_asks_for_pods_of_its_node() -> None:
    """And for nobody else; others may not ask for anybody."""
    metrics = Metrics()
    async with serving(metrics) as address:
        assert await create(address, "node", CART) == [CART]
        refused = [
            ("node", "spiffe://cluster.local/ns/shop/sa/admin", "runs on the node"),
            ("node", "spiffe://elsewhere/ns/shop/sa/cart", "trust domain"),
            ("node", "root", "no identity"),
            ("loose", CART, "which pod"),
            (
                "pod",
                "spiffe://cluster.local/ns/istio-system/sa/ztunnel",
                "CA_TRUSTED_NODE_ACCOUNTS",
            ),
        ]
        for token, wanted, why in refused:
            with pytest.raises(aio.AioRpcError, match=why) as caught:
                await create(address, token, wanted)
            assert caught.value.code().name == "PERMISSION_DENIED"
    assert metrics.value("citadel_server_id_extraction_err_count") == len(refused)
    assert metrics.value("citadel_server_success_cert_issuance_count") == 1


async def test_a_gateways_word_about_its_client() -> None:
    """Taken from trusted addresses only, and only what the gateway itself wrote: the last element."""
    hashed = 'By=x;Hash=1;Subject="CN=a,URI=spiffe://cluster.local/ns/x/sa/y";URI='
    own, admin = hashed + CART, hashed + "spiffe://cluster.local/ns/istio-system/sa/admin"
    here = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    async with serving(Metrics(), gateways=here) as address:
        for headers in ((own,), (f"{admin},{own}",), (admin, own)):
            assert await create(address, "", forwarded=headers) == [CART]
        assert await create(address, "pod", forwarded=(admin,)) == [CART]
        for wrong in ("", "URI=", hashed + "spiffe://evil/ns/a/sa/b", f"{own};URI={CART}2"):
            with pytest.raises(aio.AioRpcError) as caught:
                await create(address, "", forwarded=(f"{own},{wrong}" if wrong else "",))
            assert caught.value.code().name == "UNAUTHENTICATED", wrong
    for others in ((), (ip_network("10.0.0.0/8"),)):
        async with serving(Metrics(), gateways=others) as address:
            with pytest.raises(aio.AioRpcError, match="no credentials"):
                await create(address, "", forwarded=(own,))


async def test_an_external_authority_signs_for_the_identity_that_was_proven(tmp_path: Any) -> None:
    """It is asked in the caller's name; a caller it does not accept is told so."""
    (tmp_path / "token").write_text("node\n")
    async with serving(Metrics()) as far:
        external = ExternalAuthority(far, token_file=str(tmp_path / "token"))
        async with serving(Metrics(), external=external) as near:
            assert await create(near, "pod") == [CART]
            (tmp_path / "token").write_text("unknown")
            with pytest.raises(aio.AioRpcError, match="external authority") as caught:
                await create(near, "pod")
            assert caught.value.code().name == "UNAVAILABLE"
        await external.close()


@pytest.mark.covers(
    "MeshConfig.ca.requestTimeout", "MeshConfig.ca.istiodSide", "MeshConfig.ca.tlsSettings"
)
async def test_the_mesh_may_name_an_external_authority(tmp_path: Path) -> None:
    """Over TLS with the files that it names: the right authority's root verifies the server, and another's does not."""
    (tmp_path / "token").write_text("node")
    own = make_authority("far")
    chain, key = own.issue("ca.example.com")
    (tmp_path / "good.pem").write_bytes(own.root)
    (tmp_path / "bad.pem").write_bytes(make_authority("stranger").root)

    def asked(root: str) -> ExternalAuthority:
        settings, findings = parse_mesh_config(
            f"ca: {{address: '127.0.0.1:{port}', istiodSide: true, requestTimeout: 5s, tlsSettings: "
            f"{{mode: SIMPLE, caCertificates: {tmp_path / root}, subjectAltNames: [ca.example.com]}}}}"
        )
        assert [finding.code for finding in findings] == ["MLT0012"]
        assert settings.ca is not None
        return ExternalAuthority.of_mesh(settings.ca, str(tmp_path / "token"))

    tls = grpc.ssl_server_credentials([(key, chain)])
    async with serving(Metrics(), tls=tls) as far:
        port = far.rpartition(":")[2]
        good, bad = asked("good.pem"), asked("bad.pem")
        assert len(await good.sign(csr_of(KEY), CART, 600)) == 2
        with pytest.raises(ExternalRefused, match="UNAVAILABLE"):
            await bad.sign(csr_of(KEY), CART, 600)
        await good.close()
        await bad.close()


async def test_what_an_external_authority_signs_is_checked() -> None:
    """One that ignores the hint signs its caller's own name: refused."""
    async with serving(Metrics()) as far:
        channel = ExternalAuthority(far)
        channel._credentials = lambda: (("authorization", "Bearer node"),)  # type: ignore[method-assign]
        chain = await channel.sign(csr_of(KEY), CART, 600)
        assert len(chain) == 2
        with pytest.raises(ExternalRefused, match="PERMISSION_DENIED"):
            await channel.sign(csr_of(KEY), "spiffe://cluster.local/ns/shop/sa/other", 600)
        await channel.close()
