"""CUSTOM policies on a real Envoy: authorizers over HTTP and gRPC, and what happens when there is none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import status_pb2

from envoy_rig import Backend, fetch, free_port
from mesh_world import pod, service
from policy.guard import PLAIN, Caller, Guard, policy

pytestmark = pytest.mark.envoy
CUSTOM = (
    "{action: CUSTOM, provider: {name: %s}, rules: [{to: [{operation: {paths: ['/asked*']}}]}]}"
)
OK = {"x-pass": "yes"}


def _decide(handler: BaseHTTPRequestHandler) -> int:
    return 200 if handler.headers.get("x-pass") == "yes" else 403


@pytest.fixture(scope="module")
def over_http() -> Iterator[Backend]:
    """An authorizer that looks at one header."""
    made = Backend("authorizer", respond=_decide)
    yield made
    made.close()


@pytest.fixture(scope="module")
def over_grpc() -> Iterator[int]:
    """The same over gRPC; of TCP connections it lets those of one namespace pass."""

    def check(request: external_auth_pb2.CheckRequest, _: grpc.ServicerContext):  # type: ignore[no-untyped-def]
        attributes = request.attributes
        headers = attributes.request.http.headers
        good = headers.get("x-pass") == "yes" or "/ns/shop/" in attributes.source.principal
        return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=0 if good else 7))

    handler = grpc.unary_unary_rpc_method_handler(
        check,
        request_deserializer=external_auth_pb2.CheckRequest.FromString,
        response_serializer=external_auth_pb2.CheckResponse.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(2))
    name = "envoy.service.auth.v3.Authorization"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"Check": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait(5)


def authorizer(protocol: str, port: int) -> str:
    """The authorizer's Service and pod."""
    return service("authz", (protocol, port), ip="10.96.0.9") + pod(
        "authz", "127.0.0.1", mtls=False
    )


def provider(kind: str, port: int, more: str = "") -> str:
    """The mesh configuration that names it."""
    host = "authz.default.svc.cluster.local"
    return f"extensionProviders: [{{name: asker, {kind}: {{service: {host}, port: {port}{more}}}}}]"


@pytest.mark.covers(
    "AuthorizationPolicy.action",
    "AuthorizationPolicy.provider.name",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.service",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.port",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestHeadersInCheck",
)
def test_an_http_authorizer_decides_what_the_rules_match(guard: Guard, over_http: Backend) -> None:
    """Only matching requests are asked about; DENY and ALLOW policies still hold afterwards."""
    mesh = provider("envoyExtAuthzHttp", over_http.port, ", includeRequestHeadersInCheck: [x-pass]")
    text = authorizer("http", over_http.port) + policy(CUSTOM % "asker", name="c")
    guard.apply(text, mesh)
    over_http.seen.clear()
    assert guard.send(PLAIN, "/free").status == 200
    assert not over_http.seen
    assert guard.send(PLAIN, "/asked").status == 403
    assert guard.send(PLAIN, "/asked/1", headers=OK).status == 200
    assert [entry["path"] for entry in over_http.seen] == ["/asked", "/asked/1"]
    guard.apply(
        text + policy("{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}"), mesh
    )
    assert guard.send(PLAIN, "/asked", headers=OK, method="PUT").status == 403
    assert guard.send(PLAIN, "/asked", headers=OK).status == 200


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.service",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.port",
)
def test_a_grpc_authorizer_decides_about_http_and_tcp(guard: Guard, over_grpc: int) -> None:
    """On TCP the rule goes without its path."""
    mesh = provider("envoyExtAuthzGrpc", over_grpc)
    guard.apply(authorizer("grpc", over_grpc) + policy(CUSTOM % "asker"), mesh)
    assert guard.send(PLAIN, "/free").status == 200
    assert guard.send(PLAIN, "/asked").status == 403
    assert guard.send(PLAIN, "/asked", headers=OK).status == 200
    assert guard.ask(Caller("bank/bob")) == b""
    assert guard.ask(Caller("shop/alice")) == b"tcp:HELLO THERE\n"


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.statusOnError",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.failOpen",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.statusOnError",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.failOpen",
)
@pytest.mark.parametrize(
    ("protocol", "kind"), [("http", "envoyExtAuthzHttp"), ("grpc", "envoyExtAuthzGrpc")]
)
def test_without_an_answer_it_is_refused(guard: Guard, protocol: str, kind: str) -> None:
    """Nobody listens: refused with the status that the provider asks for, or passed when it fails open."""
    port = free_port()
    text = authorizer(protocol, port) + policy(CUSTOM % "asker")
    guard.apply(text, provider(kind, port, ", statusOnError: '503'"))
    assert guard.send(PLAIN, "/asked", headers=OK).status == 503
    assert guard.send(PLAIN, "/free").status == 200
    guard.apply(text, provider(kind, port, ", failOpen: true"))
    assert guard.send(PLAIN, "/asked").status == 200


@pytest.mark.covers("MeshConfig.extensionProviders.envoyExtAuthzHttp.includeHeadersInCheck")
def test_the_older_list_of_headers_counts_too(guard: Guard, over_http: Backend) -> None:
    mesh = provider("envoyExtAuthzHttp", over_http.port, ", includeHeadersInCheck: [x-pass]")
    guard.apply(authorizer("http", over_http.port) + policy(CUSTOM % "asker"), mesh)
    assert guard.send(PLAIN, "/asked", headers=OK).status == 200


def asking(guard: Guard) -> dict[str, Any]:
    """The filter that asks, as the real Envoy has it."""
    found: list[dict[str, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if str(value.get("@type", "")).endswith("http.ext_authz.v3.ExtAuthz"):
                found.append(value)
            for name, entry in value.items():
                if name != "draining_state":  # what an earlier configuration said
                    walk(entry)
        elif isinstance(value, list):
            for entry in value:
                walk(entry)

    walk(fetch(guard.envoy.admin, "/config_dump").json)
    return found[-1]


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.timeout",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.clearRouteCache",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestBodyInCheck.packAsBytes",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.timeout",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.clearRouteCache",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.includeRequestBodyInCheck.maxRequestBytes",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.includeRequestBodyInCheck.allowPartialMessage",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.includeRequestBodyInCheck.packAsBytes",
)
@pytest.mark.parametrize(
    ("protocol", "kind"), [("http", "envoyExtAuthzHttp"), ("grpc", "envoyExtAuthzGrpc")]
)
def test_how_the_authorizer_is_asked(guard: Guard, protocol: str, kind: str) -> None:
    port = free_port()
    more = (
        ", timeout: 3s, clearRouteCache: true, "
        "includeRequestBodyInCheck: {maxRequestBytes: 77, allowPartialMessage: true, packAsBytes: true}"
    )
    text = authorizer(protocol, port) + policy(CUSTOM % "asker")
    guard.apply(text, provider(kind, port, more))
    found = asking(guard)
    asked = found["grpc_service"] if protocol == "grpc" else found["http_service"]["server_uri"]
    assert asked["timeout"] == "3s"
    assert found["clear_route_cache"] is True
    assert found["with_request_body"] == {
        "max_request_bytes": 77,
        "allow_partial_message": True,
        "pack_as_bytes": True,
    }


@pytest.mark.parametrize("mesh", ["", "extensionProviders: [{name: asker, prometheus: {}}]"])
def test_an_unknown_authorizer_refuses(guard: Guard, mesh: str) -> None:
    """What the policy matches is refused, with a finding; the rest passes."""
    world = guard.apply(policy(CUSTOM % "asker"), mesh)
    assert "MLT0212" in {finding.code for finding in world.ir("server").findings}
    assert guard.send(PLAIN, "/asked", headers=OK).status == 403
    assert guard.send(PLAIN, "/free").status == 200


def test_an_http_authorizer_cannot_decide_about_tcp(guard: Guard, over_http: Backend) -> None:
    """So TCP connections are refused."""
    mesh = provider("envoyExtAuthzHttp", over_http.port)
    guard.apply(authorizer("http", over_http.port) + policy(CUSTOM % "asker"), mesh)
    assert guard.ask(Caller("shop/alice")) == b""


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.pathPrefix",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeAdditionalHeadersInCheck",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestBodyInCheck.maxRequestBytes",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.includeRequestBodyInCheck.allowPartialMessage",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.headersToUpstreamOnAllow",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.headersToDownstreamOnDeny",
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.headersToDownstreamOnAllow",
)
def test_what_goes_to_the_authorizer_and_comes_back(guard: Guard) -> None:
    """The part of the request that it shall see, and the headers that it may set for the application and the caller."""

    names = ("x-user", "x-reason", "x-note", "x-hidden")
    asker = Backend(
        "authorizer", respond=_decide, headers={n: f"{n[2:]} by authorizer" for n in names}
    )
    more = (
        ", pathPrefix: /check, includeRequestHeadersInCheck: ['x-pa*'], "
        "includeAdditionalHeadersInCheck: {x-mesh: here}, "
        "includeRequestBodyInCheck: {maxRequestBytes: 4, allowPartialMessage: true}, "
        "headersToUpstreamOnAllow: [x-user], headersToDownstreamOnDeny: [x-reason], "
        "headersToDownstreamOnAllow: [x-note]"
    )
    try:
        text = authorizer("http", asker.port) + policy(CUSTOM % "asker")
        guard.apply(text, provider("envoyExtAuthzHttp", asker.port, more))
        forged = {"x-user": "root", "x-other": "1"}
        passed = guard.send(PLAIN, "/asked?q=1", headers={**OK, **forged})
        assert passed.status == 200
        assert passed.seen["x-user"] == "user by authorizer"
        assert "x-hidden" not in passed.seen
        assert passed.headers["x-note"] == "note by authorizer"
        assert "x-reason" not in passed.headers
        asked = asker.seen[-1]
        assert asked["path"] == "/check/asked?q=1"
        assert asked["headers"]["x-mesh"] == "here"
        assert "x-other" not in asked["headers"]
        refused = guard.send(
            PLAIN, "/asked", method="POST", headers={"x-pass": "no"}, body=b"123456"
        )
        assert refused.status == 403
        assert refused.headers["x-reason"] == "reason by authorizer"
        assert "x-note" not in refused.headers
        assert asker.seen[-1]["body"] == "1234"
    finally:
        asker.close()
