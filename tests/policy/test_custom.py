"""CUSTOM policies on a real Envoy: an authorizer over HTTP and gRPC, what it is shown, and what happens when there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from envoy_rig import free_port
from policy.authorizer import KINDS, NO, OK, SLOW, Authorizer, authorizer, provider
from policy.guard import PLAIN, Caller, Guard, policy

pytestmark = pytest.mark.envoy
HTTP, GRPC = KINDS
CUSTOM = (
    "{action: CUSTOM, provider: {name: %s}, rules: [{to: [{operation: {paths: ['/asked*']}}]}]}"
)
SHOWN = ", includeRequestHeadersInCheck: ['x-pass', 'x-wait']"  # over gRPC all are
MORE = {HTTP: SHOWN, GRPC: ""}
BODY = ", includeRequestBodyInCheck: {maxRequestBytes: 4%s}"


@pytest.fixture(scope="module")
def asker() -> Iterator[Authorizer]:
    """The authorizer of this file."""
    names = ("x-user", "x-reason", "x-note", "x-hidden")
    made = Authorizer({name: f"{name[2:]} by authorizer" for name in names})
    yield made
    made.close()


def use(guard: Guard, asker: Authorizer, kind: str, more: str = "", rules: str = "") -> None:
    """Ask it about /asked."""
    text = asker.objects(kind) + policy(CUSTOM % "asker", name="c") + rules
    guard.apply(text, asker.mesh(kind, MORE[kind] + more))
    asker.forget()


@pytest.mark.covers(
    "AuthorizationPolicy.action",
    "AuthorizationPolicy.provider.name",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.service",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.port",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestHeadersInCheck",
)
def test_an_http_authorizer_decides_what_the_rules_match(guard: Guard, asker: Authorizer) -> None:
    """Only matching requests are asked about; DENY and ALLOW policies still hold afterwards."""
    use(guard, asker, HTTP)
    assert guard.send(PLAIN, "/free").status == 200
    assert not asker.http.seen
    assert guard.send(PLAIN, "/asked").status == 403
    assert guard.send(PLAIN, "/asked/1", headers=OK).status == 200
    assert [entry["path"] for entry in asker.http.seen] == ["/asked", "/asked/1"]
    deny = policy("{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}")
    use(guard, asker, HTTP, rules=deny)
    assert guard.send(PLAIN, "/asked", headers=OK, method="PUT").status == 403
    assert guard.send(PLAIN, "/asked", headers=OK).status == 200


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.service",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.port",
)
def test_a_grpc_authorizer_decides_about_http_and_tcp(guard: Guard, asker: Authorizer) -> None:
    """On TCP the rule goes without its path."""
    use(guard, asker, GRPC)
    assert guard.send(PLAIN, "/free").status == 200
    assert not asker.seen
    refused = guard.send(PLAIN, "/asked", headers={"x-user": "root"})
    assert refused.status == 403
    assert refused.headers["x-reason"] == "reason by authorizer"
    passed = guard.send(PLAIN, "/asked?q=1", headers={**OK, "x-user": "root"})
    assert passed.status == 200
    assert passed.seen["x-user"] == "user by authorizer"
    assert passed.headers["x-note"] == "note by authorizer"
    assert [asked.path for asked in asker.seen] == ["/asked", "/asked?q=1"]
    assert guard.ask(Caller("bank/bob")) == b""
    assert guard.ask(Caller("shop/alice")) == b"tcp:HELLO THERE\n"


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.statusOnError",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.failOpen",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.statusOnError",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.failOpen",
)
@pytest.mark.parametrize("kind", KINDS)
def test_without_an_answer_it_is_refused(guard: Guard, kind: str) -> None:
    """Nobody listens: refused with the status that the provider asks for, or passed when it fails open."""
    port = free_port()
    text = authorizer("grpc" if kind == GRPC else "http", port) + policy(CUSTOM % "asker")
    guard.apply(text, provider(kind, port))
    assert guard.send(PLAIN, "/asked", headers=OK).status == 403
    guard.apply(text, provider(kind, port, ", statusOnError: '503'"))
    assert guard.send(PLAIN, "/asked", headers=OK).status == 503
    assert guard.send(PLAIN, "/free").status == 200
    guard.apply(text, provider(kind, port, ", failOpen: true"))
    assert guard.send(PLAIN, "/asked").status == 200


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.timeout",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.timeout",
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_takes_too_long(guard: Guard, asker: Authorizer, kind: str) -> None:
    """Counts as none: refused, or passed when the provider fails open."""
    use(guard, asker, kind, ", timeout: 0.1s, statusOnError: '504'")
    assert guard.send(PLAIN, "/asked", headers=SLOW).status == 504
    use(guard, asker, kind, ", timeout: 0.1s, failOpen: true")
    assert guard.send(PLAIN, "/asked", headers=SLOW).status == 200


@pytest.mark.covers("MeshConfig.extensionProviders.envoyExtAuthzHttp.includeHeadersInCheck")
def test_the_older_list_of_headers_counts_too(guard: Guard, asker: Authorizer) -> None:
    """The deprecated name of the list."""
    mesh = asker.mesh(HTTP, ", includeHeadersInCheck: [x-pass]")
    guard.apply(asker.objects(HTTP) + policy(CUSTOM % "asker"), mesh)
    assert guard.send(PLAIN, "/asked", headers=OK).status == 200


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestBodyInCheck.maxRequestBytes",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestBodyInCheck.allowPartialMessage",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestBodyInCheck.packAsBytes",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.includeRequestBodyInCheck.allowPartialMessage",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.includeRequestBodyInCheck.packAsBytes",
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_body_that_is_shown(guard: Guard, asker: Authorizer, kind: str) -> None:
    """None, the whole of a short one, the beginning of a longer one, which else is refused; as text or as bytes."""

    def post(body: bytes) -> int:
        return guard.send(PLAIN, "/asked", method="POST", headers=OK, body=body).status

    use(guard, asker, kind)
    assert post(b"123456") == 200
    assert asker.bodies(kind) == [""]
    partial = ", allowPartialMessage: true"
    seen: list[str] = []
    for more, body, status in (("", b"123", 200), ("", b"12345", 413), (partial, b"12345", 200)):
        use(guard, asker, kind, BODY % more)
        assert post(body) == status, more
        seen += asker.bodies(kind)
    assert seen == ["123", "1234"]
    use(guard, asker, kind, BODY % ", packAsBytes: true")
    assert post(b"\xff\xfe1") == 200
    assert asker.bodies(kind) == ["\ufffd\ufffd1"]
    assert kind == HTTP or asker.seen[0].raw


@pytest.mark.parametrize("mesh", ["", "extensionProviders: [{name: asker, prometheus: {}}]"])
def test_an_unknown_authorizer_refuses(guard: Guard, mesh: str) -> None:
    """What the policy matches is refused, with a finding; the rest passes."""
    world = guard.apply(policy(CUSTOM % "asker"), mesh)
    assert "MLT0212" in {finding.code for finding in world.ir("server").findings}
    assert guard.send(PLAIN, "/asked", headers=OK).status == 403
    assert guard.send(PLAIN, "/free").status == 200


def test_an_http_authorizer_cannot_decide_about_tcp(guard: Guard, asker: Authorizer) -> None:
    """So TCP connections are refused."""
    use(guard, asker, HTTP)
    assert guard.ask(Caller("shop/alice")) == b""


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.pathPrefix",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeAdditionalHeadersInCheck",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.headersToUpstreamOnAllow",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.headersToDownstreamOnDeny",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.headersToDownstreamOnAllow",
)
def test_what_goes_to_the_authorizer_and_comes_back(guard: Guard, asker: Authorizer) -> None:
    """The part of the request that it shall see, and the headers that it may set for the application and the caller."""
    more = (
        ", pathPrefix: /check, includeRequestHeadersInCheck: ['x-pa*'], "
        "includeAdditionalHeadersInCheck: {x-mesh: here}, "
        "headersToUpstreamOnAllow: [x-user], headersToDownstreamOnDeny: [x-reason], "
        "headersToDownstreamOnAllow: [x-note]"
    )
    guard.apply(asker.objects(HTTP) + policy(CUSTOM % "asker"), asker.mesh(HTTP, more))
    forged = {"x-user": "root", "x-other": "1"}
    passed = guard.send(PLAIN, "/asked?q=1", headers={**OK, **forged})
    assert passed.status == 200
    assert passed.seen["x-user"] == "user by authorizer"
    assert "x-hidden" not in passed.seen
    assert passed.headers["x-note"] == "note by authorizer"
    assert "x-reason" not in passed.headers
    asked = asker.http.seen[-1]
    assert asked["path"] == "/check/asked?q=1"
    assert asked["headers"]["x-mesh"] == "here"
    assert "x-other" not in asked["headers"]
    refused = guard.send(PLAIN, "/asked", headers=NO)
    assert refused.status == 403
    assert refused.headers["x-reason"] == "reason by authorizer"
    assert "x-note" not in refused.headers
