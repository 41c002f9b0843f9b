"""An independent model of Istio's authorization rules, on plain data: who may do what, and what is audited.

Written from the API's documentation; it shares no code with the translation.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

ISSUER = "https://iss/x"
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
    return bool(asked.subject) and text_matches(wanted, f"{ISSUER}/{asked.subject}")


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
