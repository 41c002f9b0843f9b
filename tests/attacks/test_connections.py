"""Attacks with a connection: plaintext, wrong names, others' and expired certificates, stolen and replayed tokens, HTTP/2 floods.

On a sidecar and on a gateway, both real Envoys. Each row says what the attacker hears; beside that, the honest caller goes on.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

from attacks.conftest import Site
from envoy_rig import Envoy, fetch, free_port, wait_for
from mesh_world import build_world, pod
from pki import make_authority, write_identity
from policy.guard import PLAIN, Caller, Guard, policy
from policy.tokens import Issuer

pytestmark = pytest.mark.envoy
STRICT = policy("{mtls: {mode: STRICT}}", kind="PeerAuthentication")
MEMBER = Caller("shop/alice")


def status(guard: Guard, caller: Caller, **more: Any) -> int:
    """0 when there is no answer."""
    try:
        return guard.send(caller, port=guard.auto.port, **more).status
    except OSError:
        return 0


# --- identities -----------------------------------------------------------------------------------------------


def test_plaintext_to_strict(site: Site) -> None:
    """Refused in every protocol; members go on."""
    guard = site.inner
    guard.apply(STRICT)
    assert status(guard, PLAIN) == 0
    assert guard.ask(PLAIN) == b""
    assert status(guard, MEMBER) == 200


def handshake(guard: Guard, chain: bytes, key: bytes, alpn: str = "istio-http/1.1") -> bytes:
    """What a request over this certificate hears; empty when it is refused."""
    path = guard.folder / "attacker.pem"
    path.write_bytes(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if chain:
        context.load_cert_chain(path)
    context.set_alpn_protocols([alpn])
    try:
        raw = socket.create_connection((guard.ip, guard.auto.port), 10)
        with raw, context.wrap_socket(raw) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(4096)
    except OSError:
        return b""


def test_certificates_that_are_not_the_meshs(site: Site) -> None:
    """Another root of the same name, an expired one, another trust domain, a name that is none, no certificate at all."""
    guard, member = site.inner, "spiffe://cluster.local/ns/shop/sa/alice"
    guard.apply(STRICT)
    stranger = make_authority("test root")
    rows = {
        "another root": stranger.issue(member),
        "expired": guard.authority.issue(member, age_days=3),
        "another trust domain": guard.authority.issue("spiffe://evil/ns/shop/sa/alice"),
        "a longer trust domain": guard.authority.issue("spiffe://cluster.local.evil/ns/a/sa/b"),
        "no identity": guard.authority.issue("alice.shop.svc.cluster.local"),
        "none": (b"", b""),
    }
    for what, pair in rows.items():
        assert handshake(guard, *pair) == b"", what
    assert handshake(guard, *guard.authority.issue(member)).startswith(b"HTTP/1.1 200")


def test_wrong_sni(site: Site) -> None:
    """A policy on the name in TLS is not passed by another name, none, or a Host header."""
    guard = site.inner
    guard.apply(
        STRICT + policy("{rules: [{when: [{key: connection.sni, values: [good.example]}]}]}")
    )
    named = Caller("shop/alice", sni="good.example")
    assert status(guard, named) == 200
    for sni in ("", "bad.example", "good.example.evil", "xgood.example"):
        assert status(guard, Caller("shop/alice", sni=sni), host="good.example") == 403, sni


# --- tokens ---------------------------------------------------------------------------------------------------

ISSUER = Issuer("https://issuer.example")
REQUIRED = policy("{rules: [{from: [{source: {requestPrincipals: ['*/alice']}}]}]}")


def encoded(part: dict[str, Any]) -> str:
    """One part of a token."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def by_public_key(algorithm: str) -> str:
    """A token whose signature is made with what everybody knows."""
    text = f"{encoded({'alg': algorithm, 'kid': 'k1'})}.{encoded({'iss': ISSUER.name, 'sub': 'alice'})}"
    if algorithm == "none":
        return f"{text}."
    secret = ISSUER.keys.encode()
    proof = hmac.new(secret, text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(proof).rstrip(b'=').decode()}"


def swapped() -> str:
    """A good signature below other claims."""
    head, _, proof = ISSUER.token(sub="bob").split(".")
    return f"{head}.{encoded({'iss': ISSUER.name, 'sub': 'alice'})}.{proof}"


STOLEN = {
    "replayed after its end": ISSUER.token(aud="web", exp=1_000_000_000),
    "of another audience": ISSUER.token(aud="bank"),
    "for nobody": ISSUER.token(),
    "before its time": ISSUER.token(aud="web", nbf=3_999_999_999),
    "without signature": by_public_key("none"),
    "signed with the public key": by_public_key("HS256"),
    "with other claims": swapped(),
    "of the issuer's name only": Issuer(ISSUER.name).token(aud="web"),
    "of another issuer": Issuer("https://evil.example").token(aud="web"),
    "cut off": ISSUER.token(aud="web")[:-8],
    "huge": ISSUER.token(aud="web", filler="x" * 50_000),
    "of another person": ISSUER.token(aud="web", sub="malice"),
    "whose subject is a list": ISSUER.token(aud="web", sub=["alice"]),
}


@pytest.mark.parametrize("where", ["sidecar", "edge"])
def test_stolen_and_forged_tokens(site: Site, where: str) -> None:
    """No such token passes, alone or before a second header; the good one does."""
    rule = f"{{jwtRules: [{{issuer: '{ISSUER.name}', audiences: [web], jwks: '{ISSUER.keys}'}}]}}"
    if where == "sidecar":
        site.inner.apply(policy(rule, name="t", kind="RequestAuthentication") + REQUIRED)
    else:
        here = {"namespace": "istio-system"}
        tokens = policy(rule, name="t", kind="RequestAuthentication", **here)
        site.edge.apply(tokens + REQUIRED.replace("default", "istio-system"))

    def ask(token: str) -> int:
        if where == "sidecar":
            return status(site.inner, PLAIN, token=token)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return fetch(site.edge.web, host="any", headers=headers).status

    for what, token in STOLEN.items():
        assert ask(token) in (401, 403, 431), what
    assert ask("") == 403
    assert ask(ISSUER.token(aud="web")) == 200


# --- a gateway's TLS, and HTTP/2 ------------------------------------------------------------------------------

TLS = """
---
apiVersion: v1
kind: Secret
metadata: {name: web, namespace: istio-system}
type: kubernetes.io/tls
data: {tls.crt: %s, tls.key: %s}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web, namespace: istio-system}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: ["good.example"]
    tls: {mode: SIMPLE, credentialName: web}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: istio-system}
spec:
  hosts: ["good.example"]
  gateways: [web]
  http: [{directResponse: {status: 204}}]
"""


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, ssl.SSLContext]]:
    """A gateway with one name, its port, and a client's settings."""
    folder: Path = tmp_path_factory.mktemp("secure")
    port, authority = free_port(), make_authority()
    chain, key = authority.issue("good.example")
    envoy = Envoy(folder / "gateway", {"0.0.0.0_443": [("127.0.0.1", port)]})
    write_identity(envoy.certificates, authority, "spiffe://cluster.local/ns/istio-system/sa/gw")
    labels = {"istio": "ingressgateway"}
    data = tuple(base64.b64encode(part).decode() for part in (chain, key))
    world = build_world(pod("gw", "10.1.0.9", namespace="istio-system", labels=labels) + TLS % data)
    envoy.load(world.resources("gw.istio-system"), world.endpoints("gw.istio-system"))
    envoy.start()
    context = ssl.create_default_context(cadata=authority.root.decode())
    context.check_hostname = False
    try:
        wait_for("the gateway", lambda: answer(port, context, "good.example") == 204)
        yield port, context
    finally:
        envoy.close()


def answer(port: int, context: ssl.SSLContext, sni: str, host: str = "") -> int:
    """0 when the handshake fails."""
    try:
        return fetch(port, host=host or sni, sni=sni, tls=context).status
    except OSError:
        return 0


def test_names_that_a_gateway_does_not_serve(secure: tuple[int, ssl.SSLContext]) -> None:
    """Another name in TLS gets no certificate; another name in HTTP, or plain HTTP, no answer of the site."""
    port, context = secure
    assert answer(port, context, "good.example") == 204
    for sni in ("bad.example", "good.example.evil", "x.good.example"):
        assert answer(port, context, sni) == 0, sni
    # Behind a good handshake for one name another is not served (domain fronting).
    assert answer(port, context, "good.example", "bad.example") in (404, 421)
    with pytest.raises(OSError):
        fetch(port, host="good.example")


def h2(port: int, context: ssl.SSLContext) -> tuple[ssl.SSLSocket, H2Connection]:
    """An HTTP/2 connection that checks nothing that it sends."""
    fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    fresh.check_hostname, fresh.verify_mode = False, ssl.CERT_NONE
    fresh.set_alpn_protocols(["h2"])
    raw = socket.create_connection(("127.0.0.1", port), 10)
    connection = fresh.wrap_socket(raw, server_hostname="good.example")
    machine = H2Connection(
        H2Configuration(
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            header_encoding="utf-8",
        )
    )
    machine.initiate_connection()
    connection.sendall(machine.data_to_send())
    return connection, machine


HEAD = [(":method", "GET"), (":scheme", "https"), (":authority", "good.example"), (":path", "/")]
BAD_HEADERS = {
    "a line break in a value": [*HEAD, ("x", "a\r\nhost: admin")],
    "a line break in a name": [*HEAD, ("x\r\ny", "a")],
    "a line break in the path": [*HEAD[:3], (":path", "/ HTTP/1.1\r\nx: y\r\n\r\n")],
    "chunks": [*HEAD, ("transfer-encoding", "chunked")],
    "a connection header": [*HEAD, ("connection", "x")],
    "a capital": [*HEAD, ("X-A", "b")],
    "a colon": [*HEAD, ("x:y", "b")],
    "two paths": [*HEAD, (":path", "/admin")],
    "an unknown pseudo header": [*HEAD, (":admin", "1")],
    "a pseudo header at the end": [*HEAD[:3], ("x", "y"), HEAD[3]],
    "a length that is wrong": [*HEAD, ("content-length", "7")],
    "a zero byte": [*HEAD, ("x", "a\0b")],
}


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_http2_headers(secure: tuple[int, ssl.SSLContext], headers: list[tuple[str, str]]) -> None:
    """The stream, or the whole connection, ends without an answer of the site."""
    port, context = secure
    connection, machine = h2(port, context)
    with connection:
        machine.send_headers(1, headers, end_stream=True)
        connection.sendall(machine.data_to_send())
        assert outcome(connection, machine) in ("400", "reset", "closed")
    assert answer(port, context, "good.example") == 204


def outcome(connection: ssl.SSLSocket, machine: H2Connection) -> str:
    """How the first stream ends: its status, ``reset`` or ``closed``."""
    connection.settimeout(10)
    while True:
        try:
            data = connection.recv(65536)
            events = machine.receive_data(data) if data else []
        except (OSError, ProtocolError):
            return "closed"
        if not data:
            return "closed"
        for event in events:
            kind = type(event).__name__
            if kind == "ResponseReceived":
                return str(dict(event.headers)[":status"])  # type: ignore[attr-defined]
            if kind == "StreamReset":
                return "reset"
            if kind == "ConnectionTerminated":
                return "closed"


def test_rapid_reset(secure: tuple[int, ssl.SSLContext]) -> None:
    """A connection that opens streams and takes them back, again and again, is cut off long before the end."""
    port, context = secure
    connection, machine = h2(port, context)
    sent, cut_off = 0, False
    with connection:
        try:
            for stream in range(1, 40_001, 2):
                machine.send_headers(stream, HEAD, end_stream=True)
                machine.reset_stream(stream)
                connection.sendall(machine.data_to_send())
                sent += 1
        except (OSError, ProtocolError):
            cut_off = True
    assert cut_off
    assert sent < 20_000
    assert answer(port, context, "good.example") == 204
