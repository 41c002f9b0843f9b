"""The classic security tasks, with the samples: who may call whom, with which token, and how a mesh moves there.

Three namespaces as the tasks use them: foo and bar with sidecars, legacy without. Each test leaves them without
policies.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import pytest

from e2e.conftest import ROOT, Ingress, Shell, steadily, wait_for
from e2e.tasks import Task, task

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
Apply = Callable[[str], None]
SECURITY = "peerauthentications,requestauthentications,authorizationpolicies"
TOKENS = ROOT / "samples" / "jwt-server"
ISSUER = "testing@jwt.example.com"
# One process asks everything: starting one for each request would take most of the time.
ASK = """
import json, socket, sys, urllib.error, urllib.request
def ask(method, url, headers):
    try:
        if method == "TCP":
            host, port = url.rsplit(":", 1)
            with socket.create_connection((host, int(port)), 10) as connection:
                connection.sendall(b"line\\n")
                return connection.makefile().readline().strip() or "closed"
        request = urllib.request.Request(url, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return f"{answer.status} {answer.read().decode()}"
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"
    except OSError as error:
        return f"refused {error}"
print(json.dumps([ask(*question) for question in json.loads(QUESTIONS)]))
"""
PROVIDERS = [
    {
        "name": "sample-ext-authz-http",
        "envoyExtAuthzHttp": {
            "service": "ext-authz.foo.svc.cluster.local",
            "port": 8000,
            "includeRequestHeadersInCheck": ["x-ext-authz"],
            "headersToUpstreamOnAllow": ["x-ext-authz-check-result"],
        },
    },
    {
        "name": "sample-ext-authz-grpc",
        "envoyExtAuthzGrpc": {"service": "ext-authz.foo.svc.cluster.local", "port": 9000},
    },
]


class Asker(Task):
    """A task's namespace whose ``curl`` pod asks many things at once."""

    def ask(self, *lines: str, token: str = "", **headers: str) -> list[str]:
        """``GET http://...`` or ``TCP host:port`` each; ``200 body``, ``refused why``, or the line that came back."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            named["authorization"] = f"Bearer {token}"
        questions = json.dumps([[*line.split(" "), named] for line in lines])
        program = f"QUESTIONS = {questions!r}\n{ASK}"
        line = "exec -i deploy/curl -c curl -- python3 -"
        answers: list[str] = json.loads(self.kubectl(line, stdin=program))
        return answers

    def expect(self, what: str, wanted: Mapping[str, str], token: str = "", **headers: str) -> None:
        """Wait until every line is answered with what begins as said."""

        def verdicts() -> dict[str, str]:
            answers = self.ask(*wanted, token=token, **headers)
            return {
                line: start if answer.startswith(start) else answer
                for (line, start), answer in zip(wanted.items(), answers, strict=True)
            }

        wait_for(what, verdicts, 40, accept=lambda found: found == dict(wanted))


def seen(answer: str, header: str) -> list[str]:
    """What httpbin saw of a header, in its answer to /headers."""
    found: list[str] = json.loads(answer.partition(" ")[2])["headers"].get(header, [])
    return found


@pytest.fixture(scope="module")
def spaces(mesh: Shell) -> Iterator[dict[str, Asker]]:
    """foo, bar and legacy, each with httpbin and curl."""
    with ExitStack() as stack:
        made: dict[str, Asker] = {}
        for name in ("foo", "bar", "legacy"):
            stack.enter_context(task(mesh, name, injected=name != "legacy"))
            made[name] = Asker(mesh, name)
            made[name].apply("samples/httpbin/httpbin.yaml", "samples/curl/curl.yaml")
        made["foo"].apply(
            "samples/tcp-echo/tcp-echo.yaml",
            "samples/jwt-server/jwt-server.yaml",
            "samples/extauthz/ext-authz.yaml",
        )
        for space in made.values():
            space.ready()
        yield made


@pytest.fixture
def foo(spaces: dict[str, Asker]) -> Iterator[Asker]:
    """Namespace foo; its policies are gone afterwards."""
    yield spaces["foo"]
    spaces["foo"].kubectl(f"delete {SECURITY} --all")


def policy(kind: str, name: str, spec: str, *, notes: str = "", namespace: str = "foo") -> str:
    """An object of the security API; ``spec`` in flow style."""
    annotations = f", annotations: {{{notes}}}" if notes else ""
    return (
        f"apiVersion: security.istio.io/v1\nkind: {kind}\n"
        f"metadata: {{name: {name}, namespace: {namespace}{annotations}}}\nspec: {spec}\n"
    )


def peer(mode: str, namespace: str) -> str:
    """A PeerAuthentication for a whole namespace."""
    return policy(
        "PeerAuthentication", "default", f"{{mtls: {{mode: {mode}}}}}", namespace=namespace
    )


def httpbin(spec: str) -> str:
    """The spec of a policy for httpbin."""
    return "{selector: {matchLabels: {app: httpbin}}, " + spec + "}"


def matrix(spaces: dict[str, Asker], refused: set[tuple[str, str]]) -> None:
    """Everybody asks everybody; just these callers get no answer from these namespaces."""
    for caller, asker in spaces.items():
        asker.expect(
            f"what {caller} gets",
            {
                f"GET http://httpbin.{name}:8000/ip": "refused"
                if (caller, name) in refused
                else "200"
                for name in spaces
            },
        )


def test_mutual_tls_migration(spaces: dict[str, Asker], mesh: Shell) -> None:
    """Plaintext and mTLS side by side, then one namespace without plaintext, then the mesh; one port may differ."""
    foo, legacy = spaces["foo"], spaces["legacy"]
    matrix(spaces, set())
    url = "GET http://httpbin.foo:8000/headers"
    (inside,), (outside,) = spaces["bar"].ask(url), legacy.ask(url)
    assert (
        "By=spiffe://cluster.local/ns/foo/sa/httpbin" in seen(inside, "X-Forwarded-Client-Cert")[0]
    )
    assert "URI=spiffe://cluster.local/ns/bar/sa/curl" in seen(inside, "X-Forwarded-Client-Cert")[0]
    assert seen(outside, "X-Forwarded-Client-Cert") == []
    foo.apply(peer("STRICT", "foo"))
    matrix(spaces, {("legacy", "foo")})
    try:
        foo.kubectl(f"delete {SECURITY} --all")
        mesh("kubectl apply -f -", stdin=peer("STRICT", "istio-system"))
        matrix(spaces, {("legacy", "foo"), ("legacy", "bar")})
        ports = httpbin("mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}")
        foo.apply(policy("PeerAuthentication", "httpbin", ports))
        matrix(spaces, {("legacy", "bar")})
        wait_for(
            "clients that follow the port's mode",
            lambda: seen(spaces["bar"].ask(url)[0], "X-Forwarded-Client-Cert"),
            accept=lambda found: found == [],
        )
        assert legacy.ask("TCP tcp-echo.foo:9000")[0].startswith(("refused", "closed"))
    finally:
        foo.kubectl(f"delete {SECURITY} --all")
        mesh("kubectl delete -n istio-system peerauthentication default")
    matrix(spaces, set())


def test_authorization_for_http(mesh: Shell, ingress: Ingress, applied: Apply) -> None:
    """Bookinfo: nothing is allowed, then one service after the other, each for GET and its own caller."""
    kind, space = "AuthorizationPolicy", "bookinfo"

    def page() -> str:
        status, body = ingress.get("/productpage")
        parts = [
            part
            for part, broken in (
                ("details", "product details are currently unavailable"),
                ("reviews", "product reviews are currently unavailable"),
                ("ratings", "Ratings service is currently unavailable"),
            )
            if broken in body
        ]
        return f"{status} without {' and '.join(parts)}" if parts else str(status)

    def viewer(app: str, caller: str = "") -> str:
        account = f"cluster.local/ns/bookinfo/sa/bookinfo-{caller}"
        source = f"from: [{{source: {{principals: [{account}]}}}}], " if caller else ""
        rule = f"{{{source}to: [{{operation: {{methods: [GET]}}}}]}}"
        spec = f"{{selector: {{matchLabels: {{app: {app}}}}}, action: ALLOW, rules: [{rule}]}}"
        return policy(kind, f"{app}-viewer", spec, namespace=space)

    applied(policy(kind, "allow-nothing", "{}", namespace=space))
    wait_for("nothing", steadily(lambda: ingress.get("/productpage")[0] == 403, 3))
    assert ingress.get("/productpage")[1] == "RBAC: access denied"
    applied(viewer("productpage"))
    wait_for("a page without parts", page, accept=lambda p: p == "200 without details and reviews")
    applied(viewer("details", "productpage"))
    wait_for("details", page, accept=lambda p: p == "200 without reviews")
    applied(viewer("reviews", "productpage"))
    # Version 1 of reviews asks for no ratings.
    wait_for("reviews", page, accept=lambda p: p in ("200 without ratings", "200"))
    applied(viewer("ratings", "reviews"))
    wait_for("everything", steadily(lambda: page() == "200"))
    assert ingress.login_status() == 403, "only GET is allowed"


def test_authorization_for_tcp(foo: Asker) -> None:
    """Ports; rules with HTTP fields allow nothing on TCP, and deny everything that is left of them."""

    def ports(action: str, numbers: str, more: str = "") -> str:
        rule = f"{{to: [{{operation: {{ports: [{numbers}]{more}}}}}]}}"
        spec = (
            f"{{selector: {{matchLabels: {{app: tcp-echo}}}}, action: {action}, rules: [{rule}]}}"
        )
        return policy("AuthorizationPolicy", "tcp-policy", spec)

    pod = f"TCP {foo.address('tcp-echo')}:9002"
    one, two = "TCP tcp-echo:9000", "TCP tcp-echo:9001"
    foo.expect("no policy", {one: "hello line", two: "hello line", pod: "hello line"})
    foo.apply(ports("ALLOW", "'9000', '9001'"))
    foo.expect("two ports", {one: "hello line", two: "hello line", pod: "closed"})
    foo.apply(ports("ALLOW", "'9000'", ", methods: [GET]"))
    foo.expect("nothing", {one: "closed", two: "closed", pod: "closed"})
    foo.apply(ports("DENY", "'9000'", ", methods: [GET]"))
    foo.expect("one port refused", {one: "closed", two: "hello line", pod: "hello line"})


def test_authorization_with_tokens(foo: Asker) -> None:
    """Keys from the key server; optional tokens, then required ones, then one of a list of groups."""
    url = "GET http://httpbin:8000/headers"
    demo, groups = (
        (TOKENS / name).read_text().strip() for name in ("demo.jwt", "groups-scope.jwt")
    )
    rule = f"{{issuer: {ISSUER}, jwksUri: 'http://jwt-server.foo:8000/keys'}}"
    foo.apply(policy("RequestAuthentication", "jwt-example", httpbin(f"jwtRules: [{rule}]")))
    foo.expect("a wrong token", {url: "401 "}, token="wrong.to.ken")
    foo.expect("a token", {url: "200 "}, token=demo)
    foo.expect("no token", {url: "200 "})
    source = f"from: [{{source: {{requestPrincipals: ['{ISSUER}/{ISSUER}']}}}}]"
    require = policy(
        "AuthorizationPolicy", "require-jwt", httpbin(f"action: ALLOW, rules: [{{{source}}}]")
    )
    foo.apply(require)
    foo.expect("no token any more", {url: "403 RBAC: access denied"})
    foo.expect("still with one", {url: "200 "}, token=demo)
    claim = "when: [{key: 'request.auth.claims[groups]', values: [group1]}]"
    foo.apply(require.replace(source, f"{source}, {claim}"))
    foo.expect("a token without groups", {url: "403 "}, token=demo)
    foo.expect("a token of the group", {url: "200 "}, token=groups)


def test_explicit_deny(foo: Asker) -> None:
    """DENY by method, by a header that is missing, and before any ALLOW."""
    get, other, post = (
        f"{method} http://httpbin:8000{path}"
        for method, path in (("GET", "/get"), ("GET", "/ip"), ("POST", "/post"))
    )
    to = "to: [{operation: {methods: [GET]}}]"
    deny = policy(
        "AuthorizationPolicy", "deny-method-get", httpbin(f"action: DENY, rules: [{{{to}}}]")
    )
    foo.apply(deny)
    foo.expect("GET is refused", {get: "403 ", post: "200 "})
    when = "when: [{key: 'request.headers[x-token]', notValues: [admin]}]"
    foo.apply(deny.replace(to, f"{to}, {when}"))
    foo.expect("refused without the header", {get: "403 "})
    foo.expect("passed with it", {get: "200 "}, x_token="admin")
    path = "to: [{operation: {paths: [/ip]}}]"
    foo.apply(
        policy(
            "AuthorizationPolicy", "allow-path-ip", httpbin(f"action: ALLOW, rules: [{{{path}}}]")
        )
    )
    foo.expect("one path is left", {other: "200 ", get: "403 "}, x_token="admin")
    foo.expect("denied first", {other: "403 "}, x_token="guest")


def test_dry_run(foo: Asker, mesh: Shell) -> None:
    """A policy that would refuse everything refuses nothing; Envoy counts what it would have done."""
    url = "GET http://httpbin:8000/headers"
    deny = policy(
        "AuthorizationPolicy",
        "deny-path-headers",
        httpbin("action: DENY, rules: [{to: [{operation: {paths: [/headers]}}]}]"),
        notes="'istio.io/dry-run': 'true'",
    )
    foo.apply(deny)
    pod = foo.kubectl("get pod -l app=httpbin -o jsonpath={.items[0].metadata.name}")
    path = f"/api/v1/namespaces/foo/pods/{pod}:15020/proxy/stats/prometheus"

    def counted() -> Counter[str]:
        assert foo.ask(url)[0].startswith("200 ")
        pattern = r'^envoy_http_inbound_.*_rbac\{.*authz_dry_run_action="(\w+)",authz_dry_run_result="(\w+)".*\} (\d+)'
        counts: Counter[str] = Counter()
        for action, result, count in re.findall(pattern, mesh(f"kubectl get --raw {path}"), re.M):
            counts[f"{action} {result}"] += int(count)
        return counts

    wait_for("shadow decisions", counted, accept=lambda c: c["deny denied"] >= 3)
    foo.kubectl("annotate authorizationpolicy deny-path-headers istio.io/dry-run-")
    foo.expect("enforced", {url: "403 ", "GET http://httpbin:8000/ip": "200 "})


@pytest.fixture
def mesh_config(mesh: Shell) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Merge into the mesh's configuration; what was merged is taken out again afterwards."""
    names: set[str] = set()

    def merge(values: Mapping[str, object]) -> None:
        names.update(values)
        body = json.dumps({"spec": {"meshConfig": dict(values)}})
        mesh(f"kubectl patch -n istio-system istiooperator istio --type=merge -p '{body}'")

    yield merge
    if names:
        merge(dict.fromkeys(names))


def test_external_authorization(foo: Asker, mesh_config: Callable[..., None]) -> None:
    """An authorizer of one's own decides about a path, asked over HTTP and over gRPC."""
    mesh_config({"extensionProviders": PROVIDERS})
    asked, free = "GET http://httpbin:8000/headers", "GET http://httpbin:8000/ip"
    for protocol in ("http", "grpc"):
        provider = f"sample-ext-authz-{protocol}"
        rules = "rules: [{to: [{operation: {paths: [/headers]}}]}]"
        spec = httpbin(f"action: CUSTOM, provider: {{name: {provider}}}, {rules}")
        foo.apply(policy("AuthorizationPolicy", "ext-authz", spec))
        wanted = {asked: "403 denied by ext_authz for not found header", free: "200 "}
        foo.expect(f"{provider} refuses", wanted, x_ext_authz="deny")

        def refused(said: str = f"{protocol} GET /headers: denied") -> bool:
            foo.ask(asked)
            return said in foo.kubectl("logs deploy/ext-authz -c ext-authz --tail=50")

        wait_for(f"{provider} is the one that is asked", refused)
        foo.expect(f"{provider} allows", {asked: "200 ", free: "200 "}, x_ext_authz="allow")
        (answer,) = foo.ask(asked, x_ext_authz="allow")
        assert seen(answer, "X-Ext-Authz-Check-Result") == ["allowed"]
    log = foo.kubectl("logs deploy/ext-authz -c ext-authz")
    assert "/ip" not in log, "only what the rule matches is asked about"


def test_trust_domain_migration(
    spaces: dict[str, Asker], foo: Asker, mesh_config: Callable[..., None]
) -> None:
    """The mesh gets another trust domain while it runs; rules that name the old one go on to hold for both."""
    url = "GET http://httpbin.foo:8000/headers"
    bar = spaces["bar"]
    source = "from: [{source: {principals: [cluster.local/ns/foo/sa/curl]}}]"
    foo.apply(
        policy("AuthorizationPolicy", "curl", httpbin(f"action: ALLOW, rules: [{{{source}}}]"))
    )
    verdicts = ((foo, {url: "200 "}), (bar, {url: "403 "}))
    for asker, wanted in verdicts:
        asker.expect("before", wanted)
    mesh_config({"trustDomain": "new.example", "trustDomainAliases": ["cluster.local"]})

    def restarted(what: str, server: str, client: str) -> None:
        """A new pod, with the mesh's present trust domain; the others keep theirs."""
        foo.kubectl(f"rollout restart deployment/{what}")
        for name in ("httpbin", "curl"):
            foo.kubectl(f"rollout status deployment/{name} --timeout=60s")
        for asker, wanted in verdicts:
            asker.expect(f"after {what}", wanted)
        shown = seen(foo.ask(url)[0], "X-Forwarded-Client-Cert")[0]
        assert f"By=spiffe://{server}/ns/foo/sa/httpbin" in shown
        assert f"URI=spiffe://{client}/ns/foo/sa/curl" in shown

    try:
        wait_for(
            "the new trust domain",
            lambda: foo.shell("kubectl get configmap -n istio-system istio -o yaml"),
            accept=lambda text: "new.example" in text,
        )
        restarted("httpbin", "new.example", "cluster.local")
        restarted("curl", "new.example", "new.example")
    finally:
        mesh_config({"trustDomain": None, "trustDomainAliases": ["new.example"]})
    wait_for(
        "the old trust domain",
        lambda: foo.shell("kubectl get configmap -n istio-system istio -o yaml"),
        accept=lambda text: "trustDomain: new.example" not in text,
    )
    restarted("httpbin deployment/curl", "cluster.local", "cluster.local")
