"""Random policies and requests: a real Envoy and an independent model of Istio's rules must agree.

All four actions, over HTTP and TCP, at all levels: the root namespace, the workload's, other namespaces, with and without selector.
The model is in ``policy_model.py``. ``POLICY_EXAMPLES`` (default 12) is the number of random meshes; each is asked
``ASKED`` requests and as many connections.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from meltemi.ir.route import StringMatch
from meltemi.translate import authorization_rules
from meltemi.translate.authorization_rules import RuleBuilder
from policy import policy_model
from policy.authorizer import Authorizer
from policy.guard import Caller, Guard, policy
from policy.guard import Verdict as GuardVerdict
from policy.policy_model import ALIAS, DOMAIN, Asked, judge
from policy.tokens import Issuer

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(3600)]
EXAMPLES = int(os.environ.get("POLICY_EXAMPLES", "12"))
ASKED = 12
ISSUER = Issuer(policy_model.ISSUER)
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


class Disagreement(AssertionError):
    """Envoy and the model say different things."""


def agree(same: bool, told: object) -> None:
    """The verdicts are the same, or ``told`` says about what."""
    if not same:
        raise Disagreement(told)


def compare(
    guard: Guard, asker: Authorizer, policies: list[dict[str, Any]], asked: list[Asked]
) -> None:
    """Every request and every connection gets the model's verdict. Raises Disagreement."""
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
        agree(answer.status == (200 if wanted.allowed else 403), (seen, text))
        # An authorizer's refusal comes before everything else.
        if audits and answer.status == 200:
            agree(answer.audited == wanted.audited, (seen, text))
        wanted = judge(known, seen, guard.tcp.port, tcp=True)
        agree(bool(guard.ask(caller)) == wanted.allowed, ("tcp", seen, text))


RANDOM = {
    "policies": st.lists(_policy(), min_size=1, max_size=4),
    "asked": st.lists(_asked, min_size=ASKED, max_size=ASKED),
}
BOUNDS = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@settings(BOUNDS, max_examples=EXAMPLES)
@given(**RANDOM)
def test_envoy_agrees_with_the_model(
    guard: Guard, asker: Authorizer, policies: list[dict[str, Any]], asked: list[Asked]
) -> None:
    """Random policies, requests and connections."""
    compare(guard, asker, policies, asked)


_field = RuleBuilder._field
FAULTS: dict[str, tuple[object, str, Any]] = {
    "what must not be must be": (
        RuleBuilder,
        "_field",
        lambda self, attribute, name, values, unwanted, path: _field(
            self, attribute, name, unwanted, values, path
        ),
    ),
    "one of several conditions is enough": (
        authorization_rules,
        "_both",
        authorization_rules._either,
    ),
    "a beginning has to be all of it": (
        authorization_rules,
        "string_match",
        lambda value: StringMatch("exact", value.strip("*") or "nothing"),
    ),
}


SLOW = pytest.mark.slow  # one of them is enough every time


@pytest.mark.parametrize(
    "fault", [name if n == 0 else pytest.param(name, marks=SLOW) for n, name in enumerate(FAULTS)]
)
def test_a_planted_fault_is_noticed(
    guard: Guard, asker: Authorizer, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The comparison can fail: a translation with one fault does not get past a few random meshes."""
    monkeypatch.setattr(*FAULTS[fault])

    @settings(
        BOUNDS,
        max_examples=30,
        derandomize=True,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(**RANDOM)
    def search(policies: list[dict[str, Any]], asked: list[Asked]) -> None:
        compare(guard, asker, policies, asked)

    with pytest.raises(Disagreement):
        search()
