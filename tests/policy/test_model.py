"""Random policies and requests: a real Envoy and an independent model of Istio's rules must agree.

The model below is written from the API's documentation and shares no code with the translation. ``POLICY_EXAMPLES``
(default 40) is the number of random meshes; each is asked ``ASKED`` requests.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.guard import Caller, Guard, policy
from policy.tokens import Issuer

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(3600)]
EXAMPLES = int(os.environ.get("POLICY_EXAMPLES", "40"))
ASKED = 16
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
    sni: str


@dataclass(frozen=True)
class Place:
    """The namespace of a policy, which short names of service accounts belong to, and the port that is asked."""

    namespace: str
    port: int


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
    if field == "requestPrincipals":
        return subject_matches(wanted, asked)
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


def fields_match(fields: dict[str, list[str]], asked: Asked, place: Place) -> bool:
    """All fields of a source or an operation."""
    for name, values in fields.items():
        negative = name.startswith("not")
        field = name[3].lower() + name[4:] if negative else name
        if any(one_matches(field, value, asked, place) for value in values) == negative:
            return False
    return True


def rule_matches(rule: dict[str, Any], asked: Asked, place: Place) -> bool:
    """From, to and when."""
    sources = [entry["source"] for entry in rule.get("from", ())]
    operations = [entry["operation"] for entry in rule.get("to", ())]
    if sources and not any(fields_match(entry, asked, place) for entry in sources):
        return False
    if operations and not any(fields_match(entry, asked, place) for entry in operations):
        return False
    for condition in rule.get("when", ()):
        for part, negative in (("values", False), ("notValues", True)):
            values = condition.get(part)
            if values is None:
                continue
            found = any(one_matches(condition["key"], value, asked, place) for value in values)
            if found == negative:
                return False
    return True


def allowed(policies: list[dict[str, Any]], asked: Asked, port: int) -> bool:
    """Istio's order of evaluation, for the policies that select the workload."""
    here = [p for p in policies if p["namespace"] in ("default", "istio-system")]
    hits = {
        action: any(
            rule_matches(rule, asked, Place(p["namespace"], port))
            for p in here
            if p["action"] == action
            for rule in p["rules"]
        )
        for action in ("DENY", "ALLOW")
    }
    if hits["DENY"]:
        return False
    return hits["ALLOW"] or not any(p["action"] == "ALLOW" for p in here)


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
    "ports": ("1", "PORT"),
}
_CONDITIONS = {
    "request.headers[x-role]": ("dev", "de*", "*v", "*", "ops"),
    "request.auth.claims[groups]": ("dev", "de*", "*s", "*"),
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
    action = draw(st.sampled_from(("ALLOW", "DENY")))
    least = 1 if action == "DENY" else 0
    return {
        "action": action,
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
    sni=st.sampled_from(("", "a.example", "b.example")),
)


def _yaml(number: int, entry: dict[str, Any], port: int) -> str:
    spec = {"action": entry["action"], "rules": entry["rules"]}
    text = yaml.safe_dump(spec, default_flow_style=True, width=10**6).strip()
    return policy(
        re.sub(r"\bPORT\b", f"'{port}'", text), name=f"p{number}", namespace=entry["namespace"]
    )


def _numbered(entry: Any, port: int) -> Any:
    """The same data with the real port."""
    if isinstance(entry, dict):
        return {key: _numbered(inner, port) for key, inner in entry.items()}
    if isinstance(entry, list):
        return [_numbered(inner, port) for inner in entry]
    return str(port) if entry == "PORT" else entry


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    policies=st.lists(_policy(), min_size=1, max_size=3),
    asked=st.lists(_asked, min_size=ASKED, max_size=ASKED),
)
def test_envoy_agrees_with_the_model(
    guard: Guard, policies: list[dict[str, Any]], asked: list[Asked]
) -> None:
    """Every request gets the model's verdict."""
    tokens = policy(
        f"{{jwtRules: [{{issuer: '{ISSUER.name}', jwks: '{ISSUER.keys}'}}]}}",
        kind="RequestAuthentication",
    )
    known = _numbered(policies, guard.http.port)
    text = "".join(_yaml(n, entry, guard.http.port) for n, entry in enumerate(known))
    guard.apply(tokens + text, mesh=f"trustDomain: {DOMAIN}\ntrustDomainAliases: [{ALIAS}]")
    for entry in asked:
        plain = not entry.account
        caller = Caller(entry.account, entry.address, entry.domain, "" if plain else entry.sni)
        seen = Asked(**{**entry.__dict__, "sni": caller.sni})
        token = ISSUER.token(sub=seen.subject, groups=list(seen.groups)) if seen.subject else ""
        answer = guard.send(
            caller,
            entry.path,
            method=entry.method,
            host=entry.host,
            headers={"x-role": entry.role} if entry.role else {},
            token=token,
        )
        wanted = 200 if allowed(known, seen, guard.http.port) else 403
        assert answer.status == wanted, (seen, text)
