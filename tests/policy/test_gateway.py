"""Policies at an ingress gateway on a real Envoy: tokens, routing on claims, hosts and addresses, TCP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy_rig import Backend, Envoy, TcpBackend, ask, fetch, free_port, wait_for
from mesh_world import build_world, pod, service
from pki import make_authority, write_identity
from policy.authorizer import KINDS, OK, Authorizer
from policy.guard import policy
from policy.tokens import Issuer

pytestmark = pytest.mark.envoy
ISSUER = Issuer("https://issuer.example")
TOKENS = f"{{jwtRules: [{{issuer: '{ISSUER.name}', jwks: '{ISSUER.keys}'}}]}}"
ROUTES = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: ["*"]
  - port: {number: 31400, name: tcp, protocol: TCP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: app}
spec:
  hosts: ["*"]
  gateways: [web]
  http:
  - match: [{headers: {"@request.auth.claims.groups": {exact: beta}}}]
    route: [{destination: {host: beta}}]
  - match: [{headers: {"@request.auth.claims[realm][role]": {prefix: adm}}}]
    route: [{destination: {host: beta}}]
  - match: [{headers: {x-user: {exact: authorizer}}}]
    route: [{destination: {host: beta}}]
  - match: [{uri: {prefix: /anonymous}, withoutHeaders: {"@request.auth.claims.sub": {exact: alice}}}]
    route: [{destination: {host: beta}}]
  - route: [{destination: {host: app}}]
  tcp:
  - match: [{port: 31400}]
    route: [{destination: {host: tcp}}]
"""


class Edge:
    """A gateway, and three applications behind it without sidecars."""

    def __init__(self, folder: Path) -> None:
        self.app, self.beta, self.tcp = Backend("app"), Backend("beta"), TcpBackend("tcp")
        self.web, self.stream = free_port(), free_port()
        places = {
            "0.0.0.0_80": [("127.0.0.1", self.web)],
            "0.0.0.0_31400": [("127.0.0.1", self.stream)],
        }
        self.envoy = Envoy(folder / "gateway", places)
        write_identity(
            self.envoy.certificates,
            make_authority(),
            "spiffe://cluster.local/ns/istio-system/sa/gateway",
        )
        self.count = 0

    def apply(self, rules: str, labels: dict[str, str] | None = None, mesh: str = "") -> None:
        """Serve the gateway with these rules."""
        self.count += 1
        world = build_world(
            "".join(
                service(name, (protocol, port, port), ip=f"10.96.0.{n}")
                + pod(name, "127.0.0.1", mtls=False)
                for n, (name, protocol, port) in enumerate(
                    (
                        ("app", "http", self.app.port),
                        ("beta", "http", self.beta.port),
                        ("tcp", "tcp", self.tcp.port),
                    ),
                    1,
                )
            )
            + pod(
                "gateway",
                "10.1.0.9",
                namespace="istio-system",
                labels={"istio": "ingressgateway", **(labels or {})},
            )
            + ROUTES
            + rules,
            mesh=f"accessLogFile: /dev/null\naccessLogFormat: '{self.count}'\n" + mesh,
        )
        assert not world.findings, world.findings
        self.envoy.load(
            world.resources("gateway.istio-system"), world.endpoints("gateway.istio-system")
        )
        if self.envoy.process is None:
            self.envoy.start()
        wait_for("the new listeners", self._is_live)

    def _is_live(self) -> bool:
        assert not self.envoy.ads.nacks, self.envoy.ads.nacks
        dump = fetch(self.envoy.admin, "/config_dump").json
        found = next(c for c in dump["configs"] if "ListenersConfigDump" in c["@type"])
        warming = any("warming_state" in entry for entry in found["dynamic_listeners"])
        return not warming and found.get("version_info") == str(self.envoy.ads._version)

    def get(self, path: str = "/", *, token: str = "", **more: object) -> tuple[int, str]:
        """(status, the application that answered)."""
        headers = dict(more.pop("headers", {}))  # type: ignore[call-overload]
        if token:
            headers["authorization"] = f"Bearer {token}"
        answer = fetch(self.web, path, host=str(more.pop("host", "any")), headers=headers)
        return answer.status, answer.json["name"] if answer.status == 200 else ""

    def close(self) -> None:
        """Stop everything."""
        for part in (self.envoy, self.app, self.beta, self.tcp):
            part.close()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """One gateway for all tests."""
    made = Edge(tmp_path_factory.mktemp("edge"))
    try:
        yield made
    finally:
        made.close()


def at_gateway(body: str, **more: str) -> str:
    """A policy in the gateway's namespace."""
    return policy(body, namespace="istio-system", **more)


@pytest.mark.covers(
    "VirtualService.http.match.headers.exact",
    "VirtualService.http.match.headers.prefix",
    "VirtualService.http.match.withoutHeaders.exact",
    "RequestAuthentication.jwtRules.issuer",
)
def test_routing_on_claims(edge: Edge) -> None:
    """Only claims of a verified token count; headers of that name do not."""
    edge.apply(at_gateway(TOKENS, kind="RequestAuthentication"))
    assert edge.get() == (200, "app")
    assert edge.get(token=ISSUER.token()) == (200, "app")
    assert edge.get(token=ISSUER.token(groups="beta")) == (200, "beta")
    assert edge.get(token=ISSUER.token(groups=["x", "beta"])) == (200, "beta")
    assert edge.get(token=ISSUER.token(realm={"role": "admin"})) == (200, "beta")
    assert edge.get("/anonymous") == (200, "beta")
    assert edge.get("/anonymous", token=ISSUER.token()) == (200, "app")
    assert edge.get(token=Issuer(ISSUER.name).token(groups="beta"))[0] == 401


@pytest.mark.covers(
    "AuthorizationPolicy.selector.matchLabels",
    "AuthorizationPolicy.rules.to.operation.hosts",
    "AuthorizationPolicy.rules.from.source.remoteIpBlocks",
    "AuthorizationPolicy.rules.from.source.requestPrincipals",
)
def test_policies_at_the_edge(edge: Edge) -> None:
    """Hosts, tokens and addresses; nobody has a mesh identity here."""
    edge.apply(
        at_gateway(TOKENS, kind="RequestAuthentication")
        + at_gateway(
            "{selector: {matchLabels: {istio: ingressgateway}}, rules: ["
            "{to: [{operation: {hosts: [public.example]}}]}, "
            "{from: [{source: {requestPrincipals: ['*']}}]}]}"
        )
    )
    assert edge.get(host="public.example")[0] == 200
    assert edge.get(host="PUBLIC.example.")[0] == 200
    assert edge.get(host="other.example")[0] == 403
    assert edge.get(host="other.example", token=ISSUER.token())[0] == 200
    edge.apply(at_gateway("{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}"))
    assert edge.get()[0] == 403
    edge.apply(at_gateway("{rules: [{from: [{source: {principals: ['*']}}]}]}"))
    assert edge.get()[0] == 403
    forged = "By=x;URI=spiffe://cluster.local/ns/a/sa/b"
    assert edge.get(headers={"x-forwarded-client-cert": forged})[0] == 403
    edge.apply(
        at_gateway("{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [10.9.0.0/16]}}]}]}")
    )
    assert edge.get(headers={"x-forwarded-for": "10.9.0.1"})[0] == 200  # no trusted proxy before us
    edge.apply(
        at_gateway("{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [127.0.0.1]}}]}]}")
    )
    assert edge.get(headers={"x-forwarded-for": "10.9.0.1"})[0] == 403


@pytest.mark.covers("AuthorizationPolicy.rules.from.source.ipBlocks")
def test_tcp_at_the_edge(edge: Edge) -> None:
    """TCP servers are behind the gateway's policies, too."""
    edge.apply("")
    assert ask(edge.stream, b"hello there\n") == b"tcp:HELLO THERE\n"
    edge.apply(at_gateway("{action: DENY, rules: [{from: [{source: {ipBlocks: [127.0.0.1]}}]}]}"))
    assert ask(edge.stream, b"hello there\n") == b""


@pytest.mark.covers(
    "AuthorizationPolicy.targetRefs.group",
    "AuthorizationPolicy.targetRefs.kind",
    "AuthorizationPolicy.targetRefs.name",
    "AuthorizationPolicy.targetRef.group",
    "AuthorizationPolicy.targetRef.kind",
    "AuthorizationPolicy.targetRef.name",
    "RequestAuthentication.targetRefs.group",
    "RequestAuthentication.targetRefs.kind",
    "RequestAuthentication.targetRefs.name",
    "RequestAuthentication.targetRef.group",
    "RequestAuthentication.targetRef.kind",
    "RequestAuthentication.targetRef.name",
)
def test_policies_by_reference(edge: Edge) -> None:
    """A targetRef names a Gateway of the Gateway API; only its proxies are meant."""
    label = {"gateway.networking.k8s.io/gateway-name": "front"}
    target = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: %s}]"
    deny = "{action: DENY, rules: [{}], " + target + "}"
    edge.apply(at_gateway(deny % "front"), label)
    assert edge.get()[0] == 403
    edge.apply(at_gateway(deny % "back"), label)
    assert edge.get()[0] == 200
    edge.apply(policy(deny % "front"), label)
    assert edge.get()[0] == 200
    one = "targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: %s}"
    for name, status in (("front", 403), ("back", 200)):
        edge.apply(at_gateway("{action: DENY, rules: [{}], " + one % name + "}"), label)
        assert edge.get()[0] == status
    for written, name, status in ((target, "front", 401), (one, "front", 401), (one, "back", 200)):
        text = "{" + written % name + ", " + TOKENS[1:]
        edge.apply(at_gateway(text, kind="RequestAuthentication"), label)
        assert edge.get(token="junk.a.b")[0] == status


@pytest.mark.covers(
    "MeshConfig.extensionProviders.envoyExtAuthzHttp.clearRouteCache",
    "MeshConfig.extensionProviders.envoyExtAuthzGrpc.clearRouteCache",
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_route_by_what_the_authorizer_says(edge: Edge, kind: str) -> None:
    """A header of the authorizer decides about the route only where the provider asks for it."""
    asker = Authorizer({"x-user": "authorizer"})
    lists = ", includeRequestHeadersInCheck: [x-pass], headersToUpstreamOnAllow: [x-user]"
    rules = asker.objects(kind) + at_gateway(
        "{action: CUSTOM, provider: {name: asker}, rules: [{}]}"
    )
    try:
        for more, application in (("", "app"), (", clearRouteCache: true", "beta")):
            edge.apply(
                rules, mesh=asker.mesh(kind, more + (lists if kind.endswith("Http") else ""))
            )
            assert edge.get(headers=OK) == (200, application)
    finally:
        asker.close()
