"""RequestAuthentication on a real Envoy: which tokens pass, what becomes of them, and what cannot be forged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from envoy_rig import wait_for
from meltemi.adapters.issuer_discovery import IssuerDiscovery
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.world import World
from meltemi.kit.clock import SystemClock
from meltemi.model.config import Key
from meltemi.push.issuer_keys import NO_ISSUER_KEYS, IssuerKeys
from policy.guard import PLAIN, Guard, policy
from policy.tokens import Issuer, KeyServer

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


@pytest.mark.covers("RequestAuthentication.jwtRules.presence")
def test_tokens_that_must_be_there(guard: Guard) -> None:
    """A required token, whatever other tokens there are; of the other issuer one may be there, and must be valid then."""
    user = ", presence: REQUIRED, fromHeaders: [{name: x-user}]"
    app = ", fromHeaders: [{name: x-app}]"
    guard.apply(jwt(keys(ONE, user), keys(TWO, app)))

    def status(user: str, app: str) -> int:
        given = {"x-user": user, "x-app": app}
        return guard.send(PLAIN, headers={k: v for k, v in given.items() if v}).status

    good, other = ONE.token(), TWO.token()
    assert status(good, "") == 200
    assert status(good, other) == 200
    assert status(good, "not.a.token") == 401
    assert status("", "") == 401
    assert status("", other) == 401
    assert status(FORGER.token(), other) == 401
    guard.apply(jwt(keys(ONE, user), keys(TWO, app + ", presence: REQUIRED")))
    assert status(good, other) == 200
    assert status(good, "") == 401


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


@pytest.mark.covers(
    "RequestAuthentication.jwtRules.jwksUri", "RequestAuthentication.jwtRules.timeout"
)
def test_keys_from_an_address(guard: Guard, issuer_server: KeyServer) -> None:
    """The proxy fetches them. Until it can, tokens are refused and other requests pass; then they are accepted."""
    uri = f"{issuer_server.url}/keys"
    guard.apply(jwt(f"{{issuer: '{ONE.name}', jwksUri: '{uri}', timeout: 2s}}"))
    assert guard.send(PLAIN).status == 200
    assert guard.send(PLAIN, token=ONE.token()).status == 401
    issuer_server.keys = ONE.keys.encode()
    wait_for("accepted tokens", lambda: guard.send(PLAIN, token=ONE.token()).status == 200)
    assert guard.send(PLAIN, token=FORGER.token()).status == 401


def discover(guard: Guard, text: str, **held: bool) -> IssuerDiscovery:
    """What istiod finds out about the issuers of these rules; ``guard`` serves with it from then on."""
    world, metrics = World(issuer_keys=IssuerKeys(**held)), Metrics()
    for key, config in enumerate(guard.build(text).context.configs["RequestAuthentication"]):
        world.put_config(Key(config.kind, "default", str(key)), config)
    finder = IssuerDiscovery(world, metrics, SystemClock())

    async def run() -> None:
        await finder.refresh()
        finder._due.clear()
        await finder.refresh()

    asyncio.run(run())
    guard.issuer_keys = world.issuer_keys
    return finder


@pytest.fixture
def known(guard: Guard) -> Iterator[Guard]:
    """What is found out ends with the test."""
    yield guard
    guard.issuer_keys = NO_ISSUER_KEYS


@pytest.mark.parametrize("by_proxies", [True, False], ids=["proxies fetch", "istiod fetches"])
def test_keys_by_discovery(known: Guard, issuer_server: KeyServer, by_proxies: bool) -> None:
    """Neither jwks nor jwksUri: the issuer's discovery document says where they are."""
    issuer = Issuer(issuer_server.url)
    rules = jwt(f"{{issuer: '{issuer.name}'}}", keys(TWO)) + REQUIRED
    discover(known, rules, by_proxies=by_proxies)
    world = known.apply(rules)
    assert "MLT0214" in [finding.code for finding in world.ir("server").findings]
    assert known.send(PLAIN, token=issuer.token()).status == 401
    assert known.send(PLAIN, token=TWO.token()).status == 200
    issuer_server.document = {"issuer": issuer.name, "jwks_uri": f"{issuer.name}/keys"}
    issuer_server.keys = issuer.keys.encode()
    discover(known, rules, by_proxies=by_proxies)
    world = known.apply(rules)
    assert "MLT0214" not in [finding.code for finding in world.ir("server").findings]
    wait_for("accepted", lambda: known.send(PLAIN, token=issuer.token()).status == 200)
    assert known.send(PLAIN, token=Issuer(issuer.name).token()).status == 401


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://elsewhere", "jwks_uri": "http://127.0.0.1/keys"},
        {"jwks_uri": "http://127.0.0.1/keys"},
        {"issuer": "SELF", "jwks_uri": "file:///etc/passwd"},
        {"issuer": "SELF"},
        ["SELF"],
    ],
)
def test_discovery_documents_that_are_not_believed(
    known: Guard, issuer_server: KeyServer, document: Any
) -> None:
    """Of another issuer, or without an address on the network."""
    text = json.dumps(document).replace("SELF", issuer_server.url)
    issuer_server.document = json.loads(text)
    discover(known, jwt(f"{{issuer: '{issuer_server.url}'}}"))
    assert not known.issuer_keys.addresses


def test_what_was_found_stays_while_the_issuer_is_away(
    known: Guard, issuer_server: KeyServer
) -> None:
    """And what it withdraws is withdrawn once it answers again."""
    issuer = Issuer(issuer_server.url)
    issuer_server.document = {"issuer": issuer.name, "jwks_uri": f"{issuer.name}/keys"}
    issuer_server.keys = issuer.keys.encode()
    finder = discover(known, jwt(f"{{issuer: '{issuer.name}'}}"), by_proxies=False)
    before = finder._world.issuer_keys
    assert before.sets == {f"{issuer.name}/keys": issuer.keys}

    def again() -> IssuerKeys:
        finder._due.clear()
        asyncio.run(finder.refresh())
        return finder._world.issuer_keys

    issuer_server.keys = b""
    assert again() == before
    fresh = Issuer(issuer.name, "k9")
    issuer_server.keys = fresh.keys.encode()
    assert again().sets == {f"{issuer.name}/keys": fresh.keys}


def test_an_issuer_without_keys(guard: Guard) -> None:
    """One that is no address has no discovery document: its tokens are refused, with a finding."""
    world = guard.apply(jwt(f"{{issuer: '{ONE.name}'}}", keys(TWO)))
    assert [finding.code for finding in world.ir("server").findings] == ["MLT0214"]
    assert guard.send(PLAIN, token=ONE.token()).status == 401
    assert guard.send(PLAIN, token=TWO.token()).status == 200
