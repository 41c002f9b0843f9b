"""AuthorizationPolicy on a real Envoy: a table of who, to where, with what, allowed or denied, and by which rule."""

from __future__ import annotations

import json
from typing import Any

import pytest

from policy.guard import PLAIN, Caller, Guard, policy
from policy.tokens import Issuer

pytestmark = pytest.mark.envoy
ISSUER = Issuer("https://issuer.example/a")
ALICE = Caller("shop/alice")
BOB = Caller("bank/bob")
OLD = Caller("shop/alice", domain="old.example")
NONE = "none"  # no ALLOW rule matched


def rule(index: int = 0, name: str = "p", namespace: str = "default") -> str:
    """Istio's name of a rule, as Envoy logs it."""
    return f"ns[{namespace}]-policy[{name}]-rule[{index}]"


def check(guard: Guard, caller: Caller, wanted: str, line: str = "", **request: Any) -> None:
    """``wanted``: '' is allowed, otherwise the rule that refuses. ``line``: what the YAML that decided is called."""
    verdict = guard.send(caller, why=True, **request)
    seen = "" if verdict.status == 200 else verdict.rule
    expected = f"rbac_access_denied_matched_policy[{wanted}]" if wanted else ""
    assert seen == expected, (caller, request, verdict)
    assert bool(verdict.line) if wanted not in ("", NONE) else not line or verdict.line, verdict
    assert line in verdict.line, verdict


def authn(issuer: Issuer = ISSUER, more: str = "") -> str:
    """A RequestAuthentication for one issuer."""
    return policy(
        f"{{jwtRules: [{{issuer: '{issuer.name}', jwks: '{issuer.keys}'{more}}}]}}",
        name="tokens",
        kind="RequestAuthentication",
    )


# One field at a time, in an ALLOW rule: (field, callers and requests that it takes, those that it does not).
Case = tuple[Caller, dict[str, Any]]
SOURCES: dict[str, tuple[list[Case], list[Case]]] = {
    "principals: [cluster.local/ns/shop/sa/alice]": ([(ALICE, {})], [(BOB, {}), (PLAIN, {})]),
    "principals: ['*/sa/alice']": ([(ALICE, {})], [(BOB, {}), (PLAIN, {})]),
    "principals: ['cluster.local/ns/shop/*']": ([(ALICE, {})], [(BOB, {})]),
    "principals: ['*']": ([(ALICE, {}), (BOB, {})], [(PLAIN, {})]),
    "notPrincipals: ['*/ns/bank/sa/bob']": ([(ALICE, {}), (PLAIN, {})], [(BOB, {})]),
    "namespaces: [shop]": ([(ALICE, {})], [(BOB, {}), (PLAIN, {}), (Caller("shopper/x"), {})]),
    "namespaces: ['sh*']": ([(ALICE, {}), (Caller("shopper/x"), {})], [(BOB, {})]),
    "notNamespaces: [bank]": ([(ALICE, {}), (PLAIN, {})], [(BOB, {})]),
    "serviceAccounts: [shop/alice]": ([(ALICE, {})], [(BOB, {}), (Caller("x/alice"), {})]),
    "serviceAccounts: [local]": ([(Caller("default/local"), {})], [(Caller("x/local"), {})]),
    "notServiceAccounts: [bank/bob]": ([(ALICE, {})], [(BOB, {})]),
    "trustDomains: [cluster.local]": ([(ALICE, {})], [(PLAIN, {})]),
    "trustDomains: ['cluster.*']": ([(ALICE, {})], [(PLAIN, {})]),
    "notTrustDomains: [cluster.local]": ([(PLAIN, {})], [(ALICE, {}), (BOB, {})]),
    "notTrustDomains: [elsewhere]": ([(PLAIN, {}), (ALICE, {})], []),
    "remoteIpBlocks: [10.9.0.0/16]": (
        [(ALICE, {"headers": {"X-Forwarded-For": "10.9.1.2"}})],
        [
            (ALICE, {}),
            (ALICE, {"headers": {"X-Forwarded-For": "10.8.1.2"}}),
            # The last one counts: a caller can write what comes before.
            (ALICE, {"headers": {"X-Forwarded-For": "10.9.1.2, 10.8.1.2"}}),
        ],
    ),
    "notRemoteIpBlocks: [10.9.0.0/16, 'fd00::/8']": (
        [(ALICE, {})],
        [
            (ALICE, {"headers": {"X-Forwarded-For": "10.9.1.2"}}),
            (ALICE, {"headers": {"X-Forwarded-For": "fd00::1"}}),
        ],
    ),
    "ipBlocks: [127.0.7.0/24]": (
        [(Caller("shop/alice", "127.0.7.9"), {})],
        [(ALICE, {}), (ALICE, {"headers": {"X-Forwarded-For": "127.0.7.9"}})],
    ),
    "notIpBlocks: [127.0.7.9]": ([(ALICE, {})], [(Caller("shop/alice", "127.0.7.9"), {})]),
    "requestPrincipals: ['https://issuer.example/a/alice']": (
        [(ALICE, {"token": ISSUER.token()})],
        [(ALICE, {}), (ALICE, {"token": ISSUER.token(sub="bob")})],
    ),
    "requestPrincipals: ['https://issuer.example/*']": (
        [(PLAIN, {"token": ISSUER.token()})],
        [(ALICE, {})],
    ),
    "requestPrincipals: ['*/alice']": (
        [(PLAIN, {"token": ISSUER.token()})],
        [(PLAIN, {"token": ISSUER.token(sub="malice")})],
    ),
    "requestPrincipals: ['*']": (
        [(PLAIN, {"token": ISSUER.token()})],
        [(PLAIN, {}), (PLAIN, {"token": ISSUER.token(sub=None)})],
    ),
    "notRequestPrincipals: ['*']": ([(ALICE, {})], [(ALICE, {"token": ISSUER.token()})]),
}
OPERATIONS: dict[str, tuple[list[Case], list[Case]]] = {
    "hosts: [Shop.example]": (
        [(ALICE, {"host": "shop.example"}), (ALICE, {"host": "SHOP.example."})],
        [(ALICE, {"host": "x.shop.example"})],
    ),
    "hosts: ['*.shop.example']": (
        [(ALICE, {"host": "x.SHOP.example"})],
        [(ALICE, {"host": "shop.example"})],
    ),
    "notHosts: [shop.example]": ([(ALICE, {})], [(ALICE, {"host": "shop.example."})]),
    "methods: [GET, HEAD]": ([(ALICE, {})], [(ALICE, {"method": "POST"})]),
    "notMethods: [POST]": ([(ALICE, {})], [(ALICE, {"method": "POST"})]),
    "paths: [/a]": (
        [(ALICE, {"path": "/a?b=c"}), (ALICE, {"path": "/x/../a"})],
        [(ALICE, {"path": "/a/"}), (ALICE, {"path": "/A"})],
    ),
    "paths: ['/a/*']": (
        [(ALICE, {"path": "/a/b/c"})],
        [(ALICE, {"path": "/a"}), (ALICE, {"path": "/a/../b"})],
    ),
    "paths: ['*/info']": ([(ALICE, {"path": "/a/info"})], [(ALICE, {"path": "/a/infos"})]),
    "notPaths: ['/admin*']": (
        [(ALICE, {"path": "/a"})],
        [(ALICE, {"path": "/admin"}), (ALICE, {"path": "/x/%2e%2e/admin"})],
    ),
    "paths: ['/a/{*}/c']": (
        [(ALICE, {"path": "/a/b/c"})],
        [(ALICE, {"path": "/a//c"}), (ALICE, {"path": "/a/b/b/c"})],
    ),
    "paths: ['/a/{**}']": (
        [(ALICE, {"path": "/a/b/c"}), (ALICE, {"path": "/a/"})],
        [(ALICE, {"path": "/a"})],
    ),
    "paths: ['/{*}/b/{**}']": ([(ALICE, {"path": "/x/b/c/d"})], [(ALICE, {"path": "/x/c/b/d"})]),
}
CONDITIONS: dict[str, tuple[list[Case], list[Case]]] = {
    "{key: 'request.headers[X-Role]', values: [admin, 'op*']}": (
        [(ALICE, {"headers": {"x-role": "admin"}}), (ALICE, {"headers": {"x-role": "operator"}})],
        [(ALICE, {}), (ALICE, {"headers": {"x-role": "user"}})],
    ),
    "{key: 'request.headers[x-role]', notValues: [admin]}": (
        [(ALICE, {})],
        [
            (ALICE, {"headers": {"x-role": "admin"}}),
            (ALICE, {"headers": (("x-role", "user"), ("x-role", "admin"))}),
        ],
    ),
    "{key: source.ip, values: [127.0.7.9]}": ([(Caller("a/b", "127.0.7.9"), {})], [(ALICE, {})]),
    "{key: source.ip, notValues: [127.0.7.0/24]}": (
        [(ALICE, {})],
        [(Caller("a/b", "127.0.7.9"), {})],
    ),
    "{key: remote.ip, values: [10.9.0.0/16]}": (
        [(ALICE, {"headers": {"X-Forwarded-For": "10.9.1.2"}})],
        [(ALICE, {})],
    ),
    "{key: 'request.headers[x-role]', values: ['*']}": (
        [(ALICE, {"headers": {"x-role": "any"}})],
        [(ALICE, {})],
    ),
    "{key: source.namespace, values: [shop]}": ([(ALICE, {})], [(BOB, {})]),
    "{key: source.principal, notValues: ['*/sa/bob']}": ([(ALICE, {})], [(BOB, {})]),
    "{key: source.serviceAccount, values: [shop/alice]}": ([(ALICE, {})], [(BOB, {})]),
    "{key: source.trustDomain, notValues: [cluster.local]}": ([(PLAIN, {})], [(ALICE, {})]),
    "{key: request.auth.principal, values: ['*/alice']}": (
        [(ALICE, {"token": ISSUER.token()})],
        [(ALICE, {})],
    ),
    "{key: request.auth.audiences, values: [web]}": (
        [
            (ALICE, {"token": ISSUER.token(aud="web")}),
            (ALICE, {"token": ISSUER.token(aud=["x", "web"])}),
        ],
        [(ALICE, {"token": ISSUER.token(aud="webs")}), (ALICE, {})],
    ),
    "{key: request.auth.presenter, values: [app]}": (
        [(ALICE, {"token": ISSUER.token(azp="app")})],
        [(ALICE, {"token": ISSUER.token()})],
    ),
    "{key: 'request.auth.claims[groups]', values: [dev]}": (
        [(ALICE, {"token": ISSUER.token(groups=["ops", "dev"])})],
        [(ALICE, {"token": ISSUER.token(groups=["ops"])})],
    ),
    "{key: 'request.auth.claims[realm][role]', values: [dev]}": (
        [(ALICE, {"token": ISSUER.token(realm={"role": "dev"})})],
        [(ALICE, {"token": ISSUER.token(role="dev")})],
    ),
    "{key: 'request.auth.claims[scope]', values: [write]}": (
        [(ALICE, {"token": ISSUER.token(scope="read write")})],
        [(ALICE, {"token": ISSUER.token(scope="read")})],
    ),
    "{key: connection.sni, values: ['*.example']}": (
        [(Caller("a/b", sni="x.example"), {})],
        [(ALICE, {})],
    ),
}


# What an earlier filter left; here one that an EnvoyFilter adds.
METADATA: dict[str, tuple[list[Case], list[Case]]] = {
    "{key: 'experimental.envoy.filters.http.note[colour]', values: [red, 'bl*']}": (
        [(ALICE, {"headers": {"x-colour": "red"}}), (ALICE, {"headers": {"x-colour": "blue"}})],
        [(ALICE, {}), (ALICE, {"headers": {"x-colour": "green"}})],
    ),
    "{key: 'experimental.envoy.filters.http.note[colour]', notValues: [red]}": (
        [(ALICE, {}), (ALICE, {"headers": {"x-colour": "green"}})],
        [(ALICE, {"headers": {"x-colour": "red"}})],
    ),
}
NOTE = """
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: note}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match: {context: SIDECAR_INBOUND}
    patch:
      operation: INSERT_FIRST
      value:
        name: note
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
          request_rules:
          - header: x-colour
            on_header_present: {metadata_namespace: envoy.filters.http.note, key: colour, type: STRING}
"""


def _document(part: str, field: str) -> str:
    if part == "when":
        return f"{{rules: [{{when: [{field}]}}]}}"
    inner = "source" if part == "from" else "operation"
    return f"{{rules: [{{{part}: [{{{inner}: {{{field}}}}}]}}]}}"


TABLE = [
    pytest.param(part, field, *cases, id=f"{part}: {field}")
    for part, table in (
        ("from", SOURCES),
        ("to", OPERATIONS),
        ("when", {**CONDITIONS, **METADATA}),
    )
    for field, cases in table.items()
]


@pytest.mark.covers(
    "AuthorizationPolicy.action",
    "AuthorizationPolicy.rules.from.source.principals",
    "AuthorizationPolicy.rules.from.source.notPrincipals",
    "AuthorizationPolicy.rules.from.source.namespaces",
    "AuthorizationPolicy.rules.from.source.notNamespaces",
    "AuthorizationPolicy.rules.from.source.serviceAccounts",
    "AuthorizationPolicy.rules.from.source.notServiceAccounts",
    "AuthorizationPolicy.rules.from.source.trustDomains",
    "AuthorizationPolicy.rules.from.source.notTrustDomains",
    "AuthorizationPolicy.rules.from.source.ipBlocks",
    "AuthorizationPolicy.rules.from.source.notIpBlocks",
    "AuthorizationPolicy.rules.from.source.remoteIpBlocks",
    "AuthorizationPolicy.rules.from.source.notRemoteIpBlocks",
    "AuthorizationPolicy.rules.from.source.requestPrincipals",
    "AuthorizationPolicy.rules.from.source.notRequestPrincipals",
    "AuthorizationPolicy.rules.to.operation.hosts",
    "AuthorizationPolicy.rules.to.operation.notHosts",
    "AuthorizationPolicy.rules.to.operation.methods",
    "AuthorizationPolicy.rules.to.operation.notMethods",
    "AuthorizationPolicy.rules.to.operation.paths",
    "AuthorizationPolicy.rules.to.operation.notPaths",
    "AuthorizationPolicy.rules.when.key",
    "AuthorizationPolicy.rules.when.values",
    "AuthorizationPolicy.rules.when.notValues",
)
@pytest.mark.parametrize(("part", "field", "yes", "no"), TABLE)
def test_a_field_allows_and_denies(
    guard: Guard, part: str, field: str, yes: list[Case], no: list[Case]
) -> None:
    """What a field takes passes an ALLOW rule and is refused by a DENY rule; what it does not take, the other way round."""
    body = _document(part, field)
    beside = authn() + (NOTE if field in METADATA else "")
    this = "(AuthorizationPolicy/p.default spec.rules[0])"
    guard.apply(beside + policy(body), mesh="pathNormalization: {normalization: BASE}")
    for caller, request in yes:
        check(guard, caller, "", this, **request)
    for caller, request in no:
        check(guard, caller, NONE, **request)
    guard.apply(beside + policy("{action: DENY, " + body[1:]))
    for caller, request in yes:
        check(guard, caller, rule(), this, **request)
    for caller, request in no:
        check(guard, caller, "", **request)


MODES = {
    # mode: which of the spellings of /a/b count as that path
    "NONE": {"/a/b"},
    "BASE": {"/a/b", "/a/x/../b", "/a/./b", "/a\\b", "/%61/b"},
    "MERGE_SLASHES": {"/a/b", "/a/x/../b", "/a/./b", "/a\\b", "/%61/b", "//a///b"},
    "DECODE_AND_MERGE_SLASHES": {
        "/a/b", "/a/x/../b", "/a/./b", "/a\\b", "/%61/b", "//a///b", "/a%2fb", "/a%2Fb",
        "/a%5cb", "/a%5Cb", "/a%2f%2fb", "/a/x%2f..%2fb",
    },
}  # fmt: skip
SPELLINGS = sorted(MODES["DECODE_AND_MERGE_SLASHES"] | {"/A/b", "/a/b/", "/a%252fb", "/a;x/b"})


@pytest.mark.covers("MeshConfig.pathNormalization.normalization")
@pytest.mark.parametrize("mode", MODES)
def test_how_paths_are_normalised(guard: Guard, mode: str) -> None:
    """The policy and the application see the same path, whatever the mode; what a DENY rule names has no other spelling."""
    text = "{action: DENY, rules: [{to: [{operation: {paths: [/a/b]}}]}]}"
    guard.apply(policy(text), mesh=f"pathNormalization: {{normalization: {mode}}}")
    for spelling in SPELLINGS:
        verdict = guard.send(ALICE, spelling)
        if spelling in MODES[mode]:
            assert verdict.status == 403, spelling
        else:
            assert verdict.status == 200, spelling
            assert json.loads(verdict.body)["path"] != "/a/b", spelling


@pytest.mark.covers(
    "AuthorizationPolicy.rules.to.operation.ports",
    "AuthorizationPolicy.rules.to.operation.notPorts",
    "AuthorizationPolicy.rules.when.key",
)
def test_ports_addresses_and_numbers(guard: Guard) -> None:
    """Ports are the workload's own, as in Istio."""
    guard.apply(policy(f"{{rules: [{{to: [{{operation: {{ports: ['{guard.http.port}']}}}}]}}]}}"))
    check(guard, ALICE, "")
    check(guard, ALICE, NONE, port=guard.auto.port)
    guard.apply(
        policy(f"{{rules: [{{when: [{{key: destination.ip, values: ['{guard.ip}/32']}}]}}]}}")
    )
    check(guard, ALICE, "")
    guard.apply(
        policy(f"{{rules: [{{to: [{{operation: {{notPorts: ['{guard.http.port}']}}}}]}}]}}")
    )
    check(guard, ALICE, NONE)
    check(guard, ALICE, "", port=guard.auto.port)
    guard.apply(
        policy(f"{{rules: [{{when: [{{key: destination.ip, notValues: ['{guard.ip}']}}]}}]}}")
    )
    check(guard, ALICE, NONE)
    guard.apply(
        policy(
            f"{{rules: [{{when: [{{key: destination.port, notValues: ['{guard.http.port}']}}]}}]}}"
        )
    )
    check(guard, ALICE, NONE)
    check(guard, ALICE, "", port=guard.auto.port)


def test_all_parts_of_a_rule_and_one_of_its_alternatives(guard: Guard) -> None:
    """AND between from, to, when and fields; OR between alternatives, values and rules."""
    guard.apply(
        policy(
            """
  rules:
  - from: [{source: {namespaces: [shop]}}, {source: {namespaces: [bank], notPrincipals: ['*/sa/eve']}}]
    to: [{operation: {methods: [GET], paths: [/a]}}, {operation: {methods: [POST]}}]
    when: [{key: 'request.headers[x-ok]', values: ['*']}]
  - to: [{operation: {paths: [/public]}}]
"""
        )
    )
    ok = {"x-ok": "1"}
    check(guard, ALICE, "", path="/a", headers=ok)
    check(guard, BOB, "", method="POST", headers=ok)
    check(guard, Caller("bank/eve"), NONE, path="/a", headers=ok)
    check(guard, ALICE, NONE, path="/a")
    check(guard, ALICE, NONE, path="/b", headers=ok)
    check(guard, PLAIN, "", path="/public")


@pytest.mark.covers("AuthorizationPolicy.action")
def test_order_of_actions_and_default(guard: Guard) -> None:
    """DENY before ALLOW; no policy allows all; an ALLOW policy without rules denies all; DENY alone allows the rest."""
    guard.apply()
    check(guard, PLAIN, "")
    guard.apply(policy("{}"))
    check(guard, ALICE, NONE)
    deny = policy("{action: DENY, rules: [{to: [{operation: {paths: ['/secret*']}}]}]}", name="d")
    guard.apply(deny)
    check(guard, PLAIN, "")
    check(guard, ALICE, rule(name="d"), path="/secret")
    guard.apply(deny + policy("{rules: [{from: [{source: {namespaces: [shop]}}]}]}"))
    check(guard, ALICE, rule(name="d"), path="/secret/1")
    check(guard, ALICE, "")
    check(guard, BOB, NONE)


@pytest.mark.covers("AuthorizationPolicy.action")
def test_audit_marks_and_changes_nothing(guard: Guard) -> None:
    """What an AUDIT rule takes is marked for the access log, allowed or not; DENY and ALLOW decide."""
    audit = policy("{action: AUDIT, rules: [{from: [{source: {namespaces: [shop]}}]}]}", name="a")
    guard.apply(audit)
    assert guard.send(ALICE, why=True).audited
    assert not guard.send(BOB, why=True).audited
    guard.apply(audit + policy("{rules: [{to: [{operation: {paths: [/ok]}}]}]}"))
    for caller, path, status in ((ALICE, "/ok", 200), (ALICE, "/", 403), (BOB, "/ok", 200)):
        verdict = guard.send(caller, path, why=True)
        assert (verdict.status, verdict.audited) == (status, caller is ALICE)


@pytest.mark.covers(
    "AuthorizationPolicy.selector.matchLabels", "AuthorizationPolicy.targetRefs.name"
)
def test_where_a_policy_applies(guard: Guard) -> None:
    """Root namespace, own namespace, selectors; not other namespaces, workloads or gateways."""
    deny = "{action: DENY, rules: [{}]%s}"
    guard.apply(policy(deny % "", name="mesh", namespace="istio-system"))
    check(guard, ALICE, rule(name="mesh", namespace="istio-system"))
    guard.apply(policy(deny % "", namespace="elsewhere"))
    check(guard, ALICE, "")
    guard.apply(policy(deny % ", selector: {matchLabels: {app: server}}"))
    check(guard, ALICE, rule())
    guard.apply(policy(deny % ", selector: {matchLabels: {app: other}}"))
    check(guard, ALICE, "")
    guard.apply(policy(deny % ", selector: {matchLabels: {app: server}}", namespace="istio-system"))
    check(guard, ALICE, rule(namespace="istio-system"))
    target = ", targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]"
    guard.apply(policy(deny % target))
    check(guard, ALICE, "")


def test_dry_run_only_counts(guard: Guard) -> None:
    """A dry-run policy refuses nothing, and Envoy counts what it would have done."""
    text = policy("{action: DENY, rules: [{to: [{operation: {paths: [/x]}}]}]}").replace(
        "metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, "
    )
    guard.apply(text)
    check(guard, ALICE, "", path="/x")
    name = f"http.inbound_0.0.0.0_{guard.http.port}.rbac.istio_dry_run_deny_.shadow_denied"
    assert guard.envoy.counter(name) == 1
    guard.apply(text + policy("{rules: [{from: [{source: {namespaces: [shop]}}]}]}", name="allow"))
    check(guard, ALICE, "", path="/x")
    check(guard, BOB, NONE)


def test_tcp_ports(guard: Guard) -> None:
    """On TCP an ALLOW rule with an HTTP field allows nothing; a DENY rule goes without the field."""
    allow = "{rules: [{from: [{source: {namespaces: [shop]}}]%s}]}"
    guard.apply(policy(allow % ""))
    assert guard.ask(ALICE) == b"tcp:HELLO THERE\n"
    assert guard.ask(BOB) == b""
    assert guard.ask(PLAIN) == b""
    world = guard.apply(policy(allow % ", to: [{operation: {methods: [GET]}}]"))
    assert guard.ask(ALICE) == b""
    check(guard, ALICE, "")
    assert [f.code for f in world.ir("server").findings] == ["MLT0201"]
    deny = "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {paths: [/x]}}]}]}"
    guard.apply(policy(deny))
    assert guard.ask(ALICE) == b""
    assert guard.ask(BOB) == b"tcp:HELLO THERE\n"
    check(guard, ALICE, "")
    check(guard, ALICE, rule(), path="/x")
    guard.apply(
        policy(
            f"{{action: DENY, rules: [{{to: [{{operation: {{ports: ['{guard.tcp.port}']}}}}]}}]}}"
        )
    )
    assert guard.ask(BOB) == b""
    check(guard, BOB, "")


@pytest.mark.covers("MeshConfig.trustDomain", "MeshConfig.trustDomainAliases")
def test_trust_domain_aliases(guard: Guard) -> None:
    """``cluster.local`` in a policy means the mesh's domain and its aliases; members of others cannot connect."""
    by_old_name = policy(
        "{rules: [{from: [{source: {principals: [old.example/ns/shop/sa/alice]}}]}]}"
    )
    new = Caller("shop/alice", domain="new.example")
    guard.apply(by_old_name, mesh="trustDomain: new.example\ntrustDomainAliases: [old.example]")
    check(guard, new, "")
    check(guard, OLD, "")
    check(guard, Caller("shop/other", domain="new.example"), NONE)
    guard.apply(
        policy("{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/alice]}}]}]}"),
        mesh="trustDomain: new.example\ntrustDomainAliases: [old.example]",
    )
    check(guard, new, "")
    check(guard, OLD, "")
    with pytest.raises(OSError):
        guard.send(Caller("shop/alice", domain="stranger.example"))


BROKEN = {
    "an unknown attribute": "{rules: [{when: [{key: request.color, values: [red]}]}]}",
    "an address that is none": "{rules: [{from: [{source: {ipBlocks: [1.2.3.4.5, 0.0.0.0/0]}}]}]}",
    "an empty source": "{rules: [{from: [{source: {}}]}]}",
    "a template that is none": "{rules: [{to: [{operation: {paths: ['/{a}/{*}']}}]}]}",
    "a port that is none": "{rules: [{to: [{operation: {ports: [http]}}]}]}",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_expressed_is_refused(guard: Guard, body: str) -> None:
    """A mistake never opens anything, is reported, and does not touch the other policies."""
    world = guard.apply(policy(body), clean=False)
    assert world.findings
    check(guard, ALICE, NONE)
    guard.apply(policy("{action: DENY, " + body[1:]), clean=False)
    check(guard, ALICE, rule())
    good = policy("{rules: [{from: [{source: {namespaces: [shop]}}]}]}", name="good")
    guard.apply(policy(body) + good, clean=False)
    check(guard, ALICE, "")
    check(guard, BOB, NONE)


UNREADABLE = {
    "a number in the place of a text": ("{rules: [{from: [{source: {principals: [1]}}]}]}", NONE),
    "an unknown action": ("{action: DENNY, rules: [{to: [{operation: {paths: [/x]}}]}]}", rule()),
    "rules that are no list": ("{action: DENY, rules: all}", rule()),
    "a selector that is none": (
        "{action: DENY, selector: {matchLabels: [a]}, rules: [{}]}",
        rule(),
    ),
    "another workload's": ("{selector: {matchLabels: {app: other}}, action: DENNY}", ""),
}


@pytest.mark.parametrize(("body", "wanted"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_refused(guard: Guard, body: str, wanted: str) -> None:
    """Where it applies, and only there; a finding says so."""
    world = guard.apply(policy(body), clean=False)
    assert "MLT0013" in {finding.code for finding in world.findings}
    check(guard, ALICE, wanted)
