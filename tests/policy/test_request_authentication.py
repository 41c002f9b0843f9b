"""RequestAuthentication on a real Envoy: which tokens pass, what becomes of them, and what cannot be forged."""

from __future__ import annotations

import base64
import http.server
import json
import socketserver
import threading

import pytest

from envoy_rig import wait_for
from policy.guard import PLAIN, Guard, policy
from policy.tokens import Issuer

pytestmark = pytest.mark.envoy
ONE, TWO = Issuer("https://one.example"), Issuer("two@example", "k2")


def jwt(*rules: str, name: str = "tokens") -> str:
    """A RequestAuthentication with these rules."""
    return policy(f"{{jwtRules: [{', '.join(rules)}]}}", name=name, kind="RequestAuthentication")


def keys(issuer: Issuer, more: str = "") -> str:
    """A rule with the issuer's keys inline."""
    return f"{{issuer: '{issuer.name}', jwks: '{issuer.keys}'{more}}}"


REQUIRED = policy("{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}")
FORGER = Issuer(ONE.name, ONE.key_id)


@pytest.mark.covers(
    "RequestAuthentication.jwtRules.issuer",
    "RequestAuthentication.jwtRules.jwks",
    "RequestAuthentication.jwtRules.audiences",
)
@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.covers(
    "RequestAuthentication.jwtRules.issuer",
    "RequestAuthentication.jwtRules.jwks",
    "RequestAuthentication.jwtRules.audiences",
)
def test_which_tokens_pass(guard: Guard, required: bool) -> None:
    """Without a policy a token is optional, but never wrong; AuthorizationPolicy makes it required."""
    guard.apply(
        jwt(keys(ONE, ", audiences: [web, api]"), keys(TWO)) + (REQUIRED if required else "")
    )
    table = [
        ("", 403 if required else 200, "no token"),
        (ONE.token(aud="web"), 200, "first issuer"),
        (ONE.token(aud=["x", "api"]), 200, "one of several audiences"),
        (TWO.token(), 200, "second issuer"),
        (ONE.token(), 403, "no audience"),
        (ONE.token(aud="other"), 403, "stolen from another audience"),
        (ONE.token(aud="web", exp=1_000_000_000), 401, "expired"),
        (ONE.token(aud="web", nbf=3_999_999_999), 401, "not yet valid"),
        (FORGER.token(aud="web"), 401, "forged signature"),
        (ONE.token(aud="web", iss="three"), 401, "unknown issuer"),
        (TWO.token(iss=ONE.name, aud="web"), 401, "signed by the other issuer"),
        ("not.a.token", 401, "garbage"),
    ]
    for token, status, what in table:
        assert guard.send(PLAIN, token=token).status == status, what


def test_without_algorithm_is_refused(guard: Guard) -> None:
    """A token that says that it needs no signature."""
    guard.apply(jwt(keys(ONE)))
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "none", "typ": "JWT"}, {"iss": ONE.name, "sub": "alice"})
    ]
    assert guard.send(PLAIN, token=".".join((*parts, ""))).status == 401


@pytest.mark.covers(
    "RequestAuthentication.jwtRules.fromHeaders.name",
    "RequestAuthentication.jwtRules.fromHeaders.prefix",
    "RequestAuthentication.jwtRules.fromParams",
    "RequestAuthentication.jwtRules.fromCookies",
)
def test_where_tokens_are_found(guard: Guard) -> None:
    """Headers with prefixes, parameters and cookies; only the named places count."""
    places = (
        ", fromHeaders: [{name: x-token, prefix: 'Key '}], fromParams: [t], fromCookies: [session]"
    )
    guard.apply(jwt(keys(ONE, places)) + REQUIRED)
    token = ONE.token()
    assert guard.send(PLAIN, headers={"x-token": f"Key {token}"}).status == 200
    assert guard.send(PLAIN, f"/?t={token}").status == 200
    assert guard.send(PLAIN, headers={"cookie": f"a=b; session={token}"}).status == 200
    assert guard.send(PLAIN, token=token).status == 403
    guard.apply(jwt(keys(ONE)) + REQUIRED)
    assert guard.send(PLAIN, f"/?access_token={token}").status == 200
    assert guard.send(PLAIN, token=token).status == 200


@pytest.mark.covers(
    "RequestAuthentication.jwtRules.outputPayloadToHeader",
    "RequestAuthentication.jwtRules.outputClaimToHeaders.header",
    "RequestAuthentication.jwtRules.outputClaimToHeaders.claim",
    "RequestAuthentication.jwtRules.forwardOriginalToken",
)
def test_what_the_application_sees(guard: Guard) -> None:
    """Claims and the payload as headers; the token itself only when asked for. Callers cannot write these headers."""
    outputs = (
        ", outputPayloadToHeader: x-payload, outputClaimToHeaders: "
        "[{header: x-sub, claim: sub}, {header: x-admin, claim: admin}]"
    )
    guard.apply(jwt(keys(ONE, outputs)))
    seen = guard.send(PLAIN, token=ONE.token(admin=True)).seen
    assert (seen["x-sub"], seen["x-admin"]) == ("alice", "true")
    padded = seen["x-payload"] + "=" * (-len(seen["x-payload"]) % 4)
    assert json.loads(base64.urlsafe_b64decode(padded))["sub"] == "alice"
    assert "authorization" not in seen
    forged = {"x-sub": "root", "X-Payload": "e30", "x-admin": "true"}
    seen = guard.send(PLAIN, headers=forged).seen
    assert not {"x-sub", "x-payload", "x-admin"} & seen.keys()
    seen = guard.send(PLAIN, headers=forged, token=ONE.token()).seen
    assert seen["x-sub"] == "alice"
    assert "x-admin" not in seen
    nested = ", outputClaimToHeaders: [{header: x-role, claim: realm.role}]"
    guard.apply(jwt(keys(ONE, nested)))
    assert guard.send(PLAIN, token=ONE.token(realm={"role": "dev"})).seen["x-role"] == "dev"
    guard.apply(jwt(keys(ONE, ", forwardOriginalToken: true")))
    assert "authorization" in guard.send(PLAIN, token=ONE.token()).seen


@pytest.mark.covers("RequestAuthentication.jwtRules.spaceDelimitedClaims")
def test_space_delimited_claims(guard: Guard) -> None:
    """Claims of one's own that hold several words."""
    allow = policy("{rules: [{when: [{key: 'request.auth.claims[roles]', values: [dev]}]}]}")
    guard.apply(jwt(keys(ONE, ", spaceDelimitedClaims: [roles]")) + allow)
    assert guard.send(PLAIN, token=ONE.token(roles="ops dev")).status == 200
    assert guard.send(PLAIN, token=ONE.token(roles="ops devel")).status == 403
    guard.apply(jwt(keys(ONE)) + allow)
    assert guard.send(PLAIN, token=ONE.token(roles="ops dev")).status == 403


def test_cors_preflights_need_no_token(guard: Guard) -> None:
    """Browsers send none with them."""
    guard.apply(jwt(keys(ONE)))
    headers = {"origin": "https://x", "access-control-request-method": "GET"}
    assert guard.send(PLAIN, method="OPTIONS", headers=headers, token="junk.a.b").status == 200


BROKEN_KEYS = {
    "not JSON": "junk",
    "no keys": '{"keys":[]}',
    "a key without type": '{"keys":[{"a":1}]}',
    "a point off the curve": json.dumps(
        {"keys": [{**json.loads(ONE.keys)["keys"][0], "x": "AAAA"}]}
    ),
}


@pytest.mark.parametrize("text", BROKEN_KEYS.values(), ids=BROKEN_KEYS)
def test_broken_keys_refuse_the_issuers_tokens(guard: Guard, text: str) -> None:
    """They are reported, Envoy takes the configuration, and other issuers go on."""
    broken = f"{{issuer: '{ONE.name}', jwks: '{text}'}}"
    world = guard.apply(jwt(broken, keys(TWO)), clean=False)
    assert "MLT0215" in {finding.code for finding in world.ir("server").findings}
    assert guard.send(PLAIN, token=ONE.token()).status == 401
    assert guard.send(PLAIN, token=TWO.token()).status == 200
    assert guard.send(PLAIN).status == 200


def test_a_good_key_beside_a_broken_one(guard: Guard) -> None:
    """The good one is used."""
    both = json.dumps({"keys": [{"kty": "EC"}, json.loads(ONE.keys)["keys"][0]]})
    guard.apply(jwt(f"{{issuer: '{ONE.name}', jwks: '{both}'}}"), clean=False)
    assert guard.send(PLAIN, token=ONE.token()).status == 200


@pytest.mark.covers("RequestAuthentication.selector.matchLabels")
def test_where_it_applies(guard: Guard) -> None:
    """The root namespace, its own, by selector; not other namespaces and workloads."""
    body = "{%sjwtRules: [" + keys(ONE) + "]}"
    own, other = (f"selector: {{matchLabels: {{app: {app}}}}}, " for app in ("server", "other"))
    cases = [("istio-system", "", 401), ("default", own, 401), ("istio-system", own, 401),
             ("elsewhere", "", 200), ("default", other, 200)]  # fmt: skip
    for namespace, selector, status in cases:
        text = policy(body % selector, namespace=namespace, kind="RequestAuthentication")
        guard.apply(text)
        assert guard.send(PLAIN, token="junk.a.b").status == status, (namespace, selector)


def test_several_policies_add_up(guard: Guard) -> None:
    """The issuers of all policies that select a workload are accepted."""
    guard.apply(jwt(keys(ONE), name="a") + jwt(keys(TWO), name="b") + REQUIRED)
    assert guard.send(PLAIN, token=ONE.token()).status == 200
    assert guard.send(PLAIN, token=TWO.token()).status == 200
    assert guard.send(PLAIN, token=FORGER.token()).status == 401


class KeyServer:
    """Serves ``keys``, or 503 while there are none."""

    def __init__(self) -> None:
        self.keys = b""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if outer.keys else 503)
                self.send_header("content-length", str(len(outer.keys)))
                self.end_headers()
                self.wfile.write(outer.keys)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.covers("RequestAuthentication.jwtRules.jwksUri")
def test_keys_from_an_address(guard: Guard) -> None:
    """The proxy fetches them. Until it can, tokens are refused and other requests pass; then they are accepted."""
    server = KeyServer()
    try:
        uri = f"http://127.0.0.1:{server.port}/keys"
        guard.apply(jwt(f"{{issuer: '{ONE.name}', jwksUri: '{uri}', timeout: 2s}}"))
        assert guard.send(PLAIN).status == 200
        assert guard.send(PLAIN, token=ONE.token()).status == 401
        server.keys = ONE.keys.encode()
        wait_for("accepted tokens", lambda: guard.send(PLAIN, token=ONE.token()).status == 200)
        assert guard.send(PLAIN, token=FORGER.token()).status == 401
    finally:
        server.close()


def test_an_issuer_without_keys(guard: Guard) -> None:
    """Its tokens are refused, with a finding."""
    world = guard.apply(jwt(f"{{issuer: '{ONE.name}'}}", keys(TWO)))
    assert [finding.code for finding in world.ir("server").findings] == ["MLT0214"]
    assert guard.send(PLAIN, token=ONE.token()).status == 401
    assert guard.send(PLAIN, token=TWO.token()).status == 200
