"""Random policies and requests: a real Envoy and an independent model of Istio's rules must agree.

All four actions, over HTTP and TCP, at all levels: the root namespace, the workload's, other namespaces, with and without selector.
The model below is written from the API's documentation and shares no code with the translation. ``POLICY_EXAMPLES``
(default 12) is the number of random meshes; each is asked ``ASKED`` requests and as many connections.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.authorizer import Authorizer
from policy.guard import Caller, Guard, policy
from policy.guard import Verdict as GuardVerdict
from policy.tokens import Issuer

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(3600)]
EXAMPLES = int(os.environ.get("POLICY_EXAMPLES", "12"))
ASKED = 12
ISSUER = Issuer("https://iss/x")
DOMAIN, ALIAS = "mesh.example", "old.example"


@dataclass(frozen=True)
class Asked:
    """One request."""

    account: str
    domain: str
    address: str
    method: str
    path: str
    host: str
    role: str
    subject: str
    groups: tuple[str, ...]
    realm: str
    audience: str
    sni: str
    passes: bool


@dataclass(frozen=True)
class Place:
    """The namespace of a policy, which short names of service accounts belong to, and the port that is asked."""

    namespace: str
    port: int
    tcp: bool = False


# What no TCP connection has, and what nobody knows before a token is verified: CUSTOM policies are asked before.
TOKEN = {"requestPrincipals", "request.auth.claims[groups]", "request.auth.claims[realm][role]"}
TOKEN |= {"request.auth.audiences", "request.auth.principal"}
HTTP = TOKEN | {"hosts", "methods", "paths", "request.headers[x-role]"}


# ---- the model -----------------------------------------------------------------------------------------------


def text_matches(wanted: str, value: str | None) -> bool:
    """Exact, prefix, suffix, presence. Something empty is not present."""
    if value is None:
        return False
    if wanted == "*":
        return value != ""
    if wanted.startswith("*"):
        return value.endswith(wanted[1:])
    if wanted.endswith("*"):
        return value.startswith(wanted[:-1])
    return value == wanted


def path_matches(wanted: str, path: str) -> bool:
    """Templates by comparing segments, other patterns as text."""
    if "{" not in wanted:
        return text_matches(wanted, path)

    def walk(left: list[str], right: list[str]) -> bool:
        if not left:
            return not right
        if left[0] == "{**}":
            return any(walk(left[1:], right[n:]) for n in range(1, len(right) + 1))
        if not right:
            return False
        fits = right[0] != "" if left[0] == "{*}" else left[0] == right[0]
        return fits and walk(left[1:], right[1:])

    return walk(wanted.split("/"), path.split("/"))


def principal_matches(wanted: str, asked: Asked) -> bool:
    """With the mesh's trust domains taken as one."""
    if not asked.account:
        return False
    namespace, name = asked.account.split("/")
    rest = f"ns/{namespace}/sa/{name}"
    domain, slash, _ = wanted.partition("/")
    local = {DOMAIN, ALIAS, "cluster.local"}
    spellings = {asked.domain}
    if slash and domain in local and wanted.count("/") == 4 and asked.domain in local:
        spellings = local
    return any(text_matches(wanted, f"{spelling}/{rest}") for spelling in spellings)


def subject_matches(wanted: str, asked: Asked) -> bool:
    return bool(asked.subject) and text_matches(wanted, f"{ISSUER.name}/{asked.subject}")


def one_matches(field: str, wanted: str, asked: Asked, place: Place) -> bool:
    """Whether one value of one field takes the request."""
    namespace = asked.account.partition("/")[0]
    if field == "principals":
        return principal_matches(wanted, asked)
    if field == "namespaces":
        return bool(asked.account) and text_matches(wanted, namespace)
    if field == "serviceAccounts":
        full = wanted if "/" in wanted else f"{place.namespace}/{wanted}"
        return asked.account == full
    if field == "ipBlocks":
        return ip_address(asked.address) in ip_network(wanted, strict=False)
    if field in ("requestPrincipals", "request.auth.principal"):
        return subject_matches(wanted, asked)
    if field == "request.auth.claims[realm][role]":
        return bool(asked.subject) and text_matches(wanted, asked.realm or None)
    if field == "request.auth.audiences":
        return bool(asked.subject) and text_matches(wanted, asked.audience or None)
    if field == "hosts":
        return text_matches(wanted.lower(), asked.host.lower())
    if field == "methods":
        return text_matches(wanted, asked.method)
    if field == "paths":
        return path_matches(wanted, asked.path.partition("?")[0])
    if field == "ports":
        return int(wanted) == place.port
    if field == "request.headers[x-role]":
        return text_matches(wanted, asked.role or None)
    if field == "request.auth.claims[groups]":
        return bool(asked.subject) and any(text_matches(wanted, group) for group in asked.groups)
    if field == "connection.sni":
        return text_matches(wanted, asked.sni)
    raise AssertionError(field)


Parts = list[tuple[str, bool, list[str]]]  # (field, is it a not-field, its values)


def parts_of(fields: dict[str, list[str]]) -> Parts:
    """The fields of a source or an operation."""
    found: Parts = []
    for name, values in fields.items():
        negative = name.startswith("not")
        found.append((name[3].lower() + name[4:] if negative else name, negative, values))
    return found


def alternatives(rule: dict[str, Any]) -> tuple[list[Parts], list[Parts], Parts]:
    """(sources, operations, conditions)."""
    conditions: Parts = []
    for entry in rule.get("when", ()):
        for part, negative in (("values", False), ("notValues", True)):
            if entry.get(part) is not None:
                conditions.append((entry["key"], negative, entry[part]))
    sources = [parts_of(entry["source"]) for entry in rule.get("from", ())]
    return sources, [parts_of(entry["operation"]) for entry in rule.get("to", ())], conditions


def rule_matches(rule: dict[str, Any], asked: Asked, place: Place, action: str) -> bool:
    """From, to and when. What is unknown at a place takes the whole of an ALLOW rule away, and is left out of other rules."""
    unknown = HTTP if place.tcp else TOKEN if action == "CUSTOM" else set()
    sources, operations, conditions = alternatives(rule)
    everything = [part for group in (*sources, *operations, conditions) for part in group]
    if action == "ALLOW" and any(field in unknown for field, _, _ in everything):
        return False

    def holds(parts: Parts) -> bool:
        return all(
            any(one_matches(field, value, asked, place) for value in values) != negative
            for field, negative, values in parts
            if field not in unknown
        )

    return (
        (not sources or any(map(holds, sources)))
        and (not operations or any(map(holds, operations)))
        and holds(conditions)
    )


@dataclass(frozen=True)
class Verdict:
    """What the model says."""

    allowed: bool
    audited: bool


def judge(policies: list[dict[str, Any]], asked: Asked, port: int, *, tcp: bool = False) -> Verdict:
    """Istio's order of evaluation: CUSTOM, DENY, ALLOW, for the policies that select the workload; AUDIT beside them."""
    here = [
        p
        for p in policies
        if p["namespace"] in ("default", "istio-system") and p["selects"] in ("", "server")
    ]
    hits = {
        action: any(
            rule_matches(rule, asked, Place(p["namespace"], port, tcp), action)
            for p in here
            if p["action"] == action
            for rule in p["rules"]
        )
        for action in ("CUSTOM", "DENY", "ALLOW", "AUDIT")
    }
    # The authorizer speaks HTTP: what it would be asked about on TCP is refused.
    asked_out = hits["CUSTOM"] and (tcp or not asked.passes)
    closed = not hits["ALLOW"] and any(p["action"] == "ALLOW" for p in here)
    return Verdict(not (asked_out or hits["DENY"] or closed), hits["AUDIT"])


# ---- random inputs -------------------------------------------------------------------------------------------

NAMES = ("a", "ab", "b.c")
PATHS = ("/", "/a", "/a/", "/a/b", "/a//b", "/ab/a/b", "/a/b/a", "/A")
_VALUES: dict[str, tuple[str, ...]] = {
    "principals": (
        f"{DOMAIN}/ns/a/sa/ab",
        f"{ALIAS}/ns/a/sa/a",
        "cluster.local/ns/ab/sa/a",
        "other.example/ns/a/sa/a",
        "*/sa/a",
        "*/ns/ab/sa/b.c",
        f"{DOMAIN}/ns/a/*",
        f"{ALIAS}/ns/a*",
        "*",
        "*a",
        "mesh*",
    ),
    "namespaces": ("a", "ab", "a*", "*b", "*", "b.c", "b*c"),
    "serviceAccounts": ("a/a", "ab/b.c", "a", "default/ab", "ab/bxc"),
    "ipBlocks": ("127.0.0.0/24", "127.0.1.1", "127.0.0.0/8", "10.0.0.0/8"),
    "requestPrincipals": (
        "*",
        "https://iss/x/alice",
        "https://iss/x/*",
        "https://*",
        "*/alice",
        "*x/alice",
        "*alice",
        "https://iss/x/y/bob",
        "https://iss/x/y/*",
        "https://iss/*",
        "*y/bob",
        "*bob",
    ),
    "hosts": ("a.example", "A.Example", "*.example", "a.*", "*", "a.example:80"),
    "methods": ("GET", "POST", "P*", "*T", "*"),
    "paths": (*PATHS, "/a*", "*b", "*", "/{*}/b", "/a/{**}", "/{*}", "/{**}/b", "/a/{*}/{**}"),
    "ports": ("1", "PORT", "TCP"),
}
_CONDITIONS = {
    "request.headers[x-role]": ("dev", "de*", "*v", "*", "ops"),
    "request.auth.claims[groups]": ("dev", "de*", "*s", "*"),
    "request.auth.claims[realm][role]": ("dev", "*v", "*"),
    "request.auth.audiences": ("web", "w*", "*"),
    "request.auth.principal": ("https://iss/x/alice", "*/alice", "*"),
    "connection.sni": ("a.example", "*.example", "a*"),
}
_SOURCE = ("principals", "namespaces", "ipBlocks", "requestPrincipals")
_OPERATION = ("hosts", "methods", "paths", "ports")


def _values(pool: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(pool), min_size=1, max_size=2, unique=True)


def _fields(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, list[str]]]:
    choices: dict[str, st.SearchStrategy[list[str]]] = {}
    for name in names:
        choices[name] = _values(_VALUES[name])
        choices[f"not{name[0].upper()}{name[1:]}"] = _values(_VALUES[name])
    return st.lists(st.sampled_from(sorted(choices)), min_size=1, max_size=2, unique=True).flatmap(
        lambda picked: st.fixed_dictionaries({name: choices[name] for name in picked})
    )


_source = st.one_of(
    _fields(_SOURCE),
    _fields(("serviceAccounts",)),
)


@st.composite
def _condition(draw: st.DrawFn) -> dict[str, Any]:
    key = draw(st.sampled_from(sorted(_CONDITIONS)))
    made: dict[str, Any] = {"key": key}
    part = draw(st.sampled_from(("values", "notValues", "both")))
    if part != "notValues":
        made["values"] = draw(_values(_CONDITIONS[key]))
    if part != "values":
        made["notValues"] = draw(_values(_CONDITIONS[key]))
    return made


@st.composite
def _rule(draw: st.DrawFn) -> dict[str, Any]:
    made: dict[str, Any] = {}
    # Few parts, so that a verdict often hangs on a single value.
    shape = draw(st.sampled_from(("from", "to", "when", "from to", "from to when")))
    sources = draw(st.lists(_source, min_size=1, max_size=2)) if "from" in shape else []
    operations = (
        draw(st.lists(_fields(_OPERATION), min_size=1, max_size=2)) if "to" in shape else []
    )
    conditions = [draw(_condition())] if "when" in shape else []
    if sources:
        made["from"] = [{"source": entry} for entry in sources]
    if operations:
        made["to"] = [{"operation": entry} for entry in operations]
    if conditions:
        made["when"] = conditions
    return made


@st.composite
def _policy(draw: st.DrawFn) -> dict[str, Any]:
    action = draw(st.sampled_from(("ALLOW", "ALLOW", "DENY", "DENY", "CUSTOM", "AUDIT")))
    least = 1 if action in ("DENY", "CUSTOM") else 0
    return {
        "action": action,
        "selects": draw(st.sampled_from(("", "", "server", "other"))),
        "namespace": draw(st.sampled_from(("default", "default", "istio-system", "elsewhere"))),
        "rules": draw(st.lists(_rule(), min_size=least, max_size=2)),
    }


_asked = st.builds(
    Asked,
    account=st.sampled_from(("", *(f"{n}/{s}" for n in ("a", "ab", "default") for s in NAMES))),
    domain=st.sampled_from((DOMAIN, ALIAS)),
    address=st.sampled_from(("127.0.0.1", "127.0.1.1")),
    method=st.sampled_from(("GET", "POST", "PUT")),
    path=st.sampled_from((*PATHS, "/a?x=/b")),
    host=st.sampled_from(("a.example", "A.EXAMPLE", "b.example", "a", "a.example:80")),
    role=st.sampled_from(("", "dev", "devs", "ops")),
    subject=st.sampled_from(("", "alice", "malice", "y/bob")),
    groups=st.sampled_from(((), ("dev",), ("ops", "devs"))),
    realm=st.sampled_from(("", "dev", "ops")),
    audience=st.sampled_from(("", "web", "api")),
    passes=st.booleans(),
    sni=st.sampled_from(("", "a.example", "b.example")),
)


def _yaml(number: int, entry: dict[str, Any]) -> str:
    spec: dict[str, Any] = {"action": entry["action"], "rules": entry["rules"]}
    if entry["selects"]:
        spec["selector"] = {"matchLabels": {"app": entry["selects"]}}
    if entry["action"] == "CUSTOM":
        spec["provider"] = {"name": "asker"}
    text = yaml.safe_dump(spec, default_flow_style=True, width=10**6)
    return policy(text, name=f"p{number}", namespace=entry["namespace"])


def _numbered(entry: Any, ports: dict[str, str]) -> Any:
    """The same data with real ports."""
    if isinstance(entry, dict):
        return {key: _numbered(inner, ports) for key, inner in entry.items()}
    if isinstance(entry, list):
        return [_numbered(inner, ports) for inner in entry]
    return ports.get(entry, entry)


@pytest.fixture(scope="module")
def asker() -> Iterator[Authorizer]:
    """An authorizer that lets pass what has a header."""
    made = Authorizer()
    yield made
    made.close()


def _caller(asked: Asked) -> tuple[Caller, Asked]:
    """Who connects, and the request as the server can see it: plaintext has no name."""
    sni = asked.sni if asked.account else ""
    caller = Caller(asked.account, asked.address, asked.domain, sni)
    return caller, replace(asked, sni=sni)


def _request(guard: Guard, caller: Caller, asked: Asked, *, why: bool) -> GuardVerdict:
    claims: dict[str, Any] = {"sub": asked.subject, "groups": list(asked.groups)}
    claims |= {"realm": {"role": asked.realm}} if asked.realm else {}
    claims |= {"aud": asked.audience} if asked.audience else {}
    headers = {"x-role": asked.role} if asked.role else {}
    return guard.send(
        caller,
        asked.path,
        method=asked.method,
        host=asked.host,
        headers=headers | ({"x-pass": "yes"} if asked.passes else {}),
        token=ISSUER.token(**claims) if asked.subject else "",
        why=why,
    )


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    policies=st.lists(_policy(), min_size=1, max_size=4),
    asked=st.lists(_asked, min_size=ASKED, max_size=ASKED),
)
def test_envoy_agrees_with_the_model(
    guard: Guard, asker: Authorizer, policies: list[dict[str, Any]], asked: list[Asked]
) -> None:
    """Every request and every connection gets the model's verdict."""
    tokens = policy(
        f"{{jwtRules: [{{issuer: '{ISSUER.name}', jwks: '{ISSUER.keys}'}}]}}",
        kind="RequestAuthentication",
    )
    known = _numbered(policies, {"PORT": str(guard.http.port), "TCP": str(guard.tcp.port)})
    text = "".join(_yaml(n, entry) for n, entry in enumerate(known))
    more = ", includeRequestHeadersInCheck: [x-pass]"
    mesh = f"trustDomain: {DOMAIN}\ntrustDomainAliases: [{ALIAS}]\n"
    mesh += asker.mesh("envoyExtAuthzHttp", more)
    guard.apply(tokens + asker.objects("envoyExtAuthzHttp") + text, mesh)
    audits = any(entry["action"] == "AUDIT" for entry in known)
    for entry in asked:
        caller, seen = _caller(entry)
        wanted = judge(known, seen, guard.http.port)
        answer = _request(guard, caller, seen, why=audits)
        assert answer.status == (200 if wanted.allowed else 403), (seen, text)
        # An authorizer's refusal comes before everything else.
        if audits and answer.status == 200:
            assert answer.audited == wanted.audited, (seen, text)
        wanted = judge(known, seen, guard.tcp.port, tcp=True)
        assert bool(guard.ask(caller)) == wanted.allowed, ("tcp", seen, text)
