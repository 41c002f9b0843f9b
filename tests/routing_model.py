"""An independent model of how VirtualServices, DestinationRules and ServiceEntries route a sidecar's HTTP requests.

Written from the API's documentation; it shares no code with the translation and works on the plain data of the objects. It knows
the services of ``tests/behaviour/services.yaml`` and what ``tests/behaviour/test_properties_routing.py`` draws.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]
DOMAIN = "svc.cluster.local"
SERVICES = {
    f"reviews.default.{DOMAIN}": {
        "reviews-v1": {"app": "reviews", "version": "v1"},
        "reviews-v2": {"app": "reviews", "version": "v2"},
        "reviews-v3": {"app": "reviews", "version": "v3"},
    },
    f"details.default.{DOMAIN}": {"details-v1": {"app": "details", "version": "v1"}},
}
PORTS = (9080, 9081)


@dataclass(frozen=True)
class Source:
    """Who asks."""

    workload: str
    namespace: str
    labels: Mapping[str, str] = field(hash=False)


@dataclass(frozen=True)
class Asked:
    """One request. ``host`` is the authority without its port."""

    source: Source
    host: str
    port: int
    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]


@dataclass
class Expected:
    """What has to come back. ``workloads`` None: nobody was asked."""

    status: int
    workloads: frozenset[str] | None = None
    path: str = ""
    host: str = ""
    headers: dict[str, str | None] = field(default_factory=dict)  # as the application sees them
    location: str = ""


# --- names --------------------------------------------------------------------------------------------


def full(host: str, namespace: str) -> str:
    """The whole name of a host that an object of a namespace writes."""
    return host if "." in host or host == "*" else f"{host}.{namespace}.{DOMAIN}"


def means(authority: str, service: str, namespace: str) -> bool:
    """Whether a client of a namespace means a service by an authority."""
    if authority == service:
        return True
    if not service.endswith(f".{DOMAIN}"):
        return False
    short = service.removesuffix(f".{DOMAIN}")
    name, _, own = short.partition(".")
    forms = {short, f"{short}.svc"} | ({name} if own == namespace else set[str]())
    return authority in forms


def covers(pattern: str, host: str) -> bool:
    """Exact names and wildcards."""
    if pattern.startswith("*"):
        return host.endswith(pattern[1:]) and host != pattern[1:]
    return pattern == host


def visible(entry: Object, namespace: str) -> bool:
    """exportTo."""
    own = entry["metadata"]["namespace"]
    exported = entry["spec"].get("exportTo") or ["*"]
    return any(to == "*" or to == namespace or (to == "." and own == namespace) for to in exported)


# --- which objects hold -------------------------------------------------------------------------------


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    """Objects of one kind; they are given oldest first."""
    return [entry for entry in objects if entry["kind"] == kind]


def services_for(objects: list[Object], source: Source) -> dict[str, dict[str, dict[str, str]]]:
    """Hosts that a client knows, with their endpoints (name -> labels)."""
    found: dict[str, dict[str, dict[str, str]]] = {k: dict(v) for k, v in SERVICES.items()}
    for entry in of_kind(objects, "ServiceEntry"):
        if not visible(entry, source.namespace):
            continue
        for host in entry["spec"]["hosts"]:
            endpoints = {
                f"{entry['metadata']['name']}-{e['labels']['version']}": e["labels"]
                for e in entry["spec"]["endpoints"]
            }
            found.setdefault(host, endpoints)
    return found


def rule_of(objects: list[Object], host: str, asked: Asked) -> Object | None:
    """The VirtualService for a host: an exact host before a wildcard, a longer wildcard before a shorter, the oldest first.

    One that has nothing for this client and port is none.
    """
    best: tuple[int, int] | None = None
    chosen = None
    for entry in of_kind(objects, "VirtualService"):
        spec = entry["spec"]
        if not visible(entry, asked.source.namespace):
            continue
        matches = [match for http in spec["http"] for match in http.get("match") or [{}]]
        if not any(concerns(match, asked) for match in matches):
            continue
        for name in spec["hosts"]:
            pattern = full(name, entry["metadata"]["namespace"])
            if not covers(pattern, host):
                continue
            rank = (0 if pattern.startswith("*") else 1, len(pattern))
            if best is None or rank > best:
                best, chosen = rank, entry
    return chosen


def subsets_of(
    objects: list[Object], host: str, source: Source, namespace_of_host: str
) -> dict[str, Mapping[str, str]]:
    """Subsets by name: the client's namespace first, then the service's, then the root namespace; the most specific host in each."""
    for namespace in dict.fromkeys((source.namespace, namespace_of_host, "istio-system")):
        rank: tuple[int, int] | None = None
        found: list[Object] = []
        for entry in of_kind(objects, "DestinationRule"):
            if entry["metadata"]["namespace"] != namespace or not visible(entry, source.namespace):
                continue
            pattern = full(entry["spec"]["host"], namespace)
            if not covers(pattern, host):
                continue
            mine = (0 if pattern.startswith("*") else 1, len(pattern))
            if rank is None or mine > rank:
                rank, found = mine, [entry]
            elif mine == rank:
                found.append(entry)
        if found:
            merged: dict[str, Mapping[str, str]] = {}
            for entry in found:
                for subset in entry["spec"].get("subsets", ()):
                    merged.setdefault(subset["name"], subset["labels"])
            return merged
    return {}


# --- matching -----------------------------------------------------------------------------------------


def text_matches(wanted: Mapping[str, str], value: str | None, fold: bool = False) -> bool:
    """A StringMatch; an empty one is presence."""
    if value is None:
        return False
    if fold:
        value = value.lower()
        wanted = {kind: text.lower() for kind, text in wanted.items()}
    if "exact" in wanted:
        return value == wanted["exact"]
    if "prefix" in wanted:
        return value.startswith(wanted["prefix"])
    if "regex" in wanted:
        return re.fullmatch(wanted["regex"], value) is not None
    return True


def header_matches(name: str, wanted: Mapping[str, str], asked: Asked) -> bool:
    return text_matches(wanted, dict(asked.headers).get(name))


def query_matches(name: str, wanted: Mapping[str, str], asked: Asked) -> bool:
    pairs = [part.partition("=") for part in asked.query.split("&") if part]
    return text_matches(wanted, next((v for k, _, v in pairs if k == name), None))


def concerns(match: Mapping[str, Any], asked: Asked) -> bool:
    """The conditions on who asks and on which port, which are the same for every request of one client."""
    if match.get("port") and match["port"] != asked.port:
        return False
    labels = match.get("sourceLabels", {})
    if any(asked.source.labels.get(name) != value for name, value in labels.items()):
        return False
    if match.get("sourceNamespace") not in (None, asked.source.namespace):
        return False
    return "gateways" not in match or "mesh" in match["gateways"]


def match_holds(match: Mapping[str, Any], asked: Asked) -> bool:
    """All conditions of one HTTPMatchRequest."""
    fold = bool(match.get("ignoreUriCase"))
    if "uri" in match and not text_matches(match["uri"], asked.path, fold):
        return False
    if "method" in match and not text_matches(match["method"], asked.method):
        return False
    if "authority" in match and not text_matches(match["authority"], f"{asked.host}:{asked.port}"):
        return False
    if "scheme" in match and not text_matches(match["scheme"], "http"):
        return False
    if not concerns(match, asked):
        return False
    if any(not header_matches(n, w, asked) for n, w in match.get("headers", {}).items()):
        return False
    if any(header_matches(n, w, asked) for n, w in match.get("withoutHeaders", {}).items()):
        return False
    return all(query_matches(n, w, asked) for n, w in match.get("queryParams", {}).items())


def first_match(rule: Mapping[str, Any], asked: Asked) -> tuple[bool, Mapping[str, Any]]:
    """Whether a rule takes a request, and by which match."""
    matches = rule.get("match") or [{}]
    for match in matches:
        if match_holds(match, asked):
            return True, match
    return False, {}


# --- what comes of it ---------------------------------------------------------------------------------


def expected(objects: list[Object], asked: Asked) -> Expected:
    """The outcome of one request."""
    services = services_for(objects, asked.source)
    host = next((h for h in services if means(asked.host, h, asked.source.namespace)), None)
    if host is None:
        raise AssertionError(f"the model knows no {asked.host}")
    rule = rule_of(objects, host, asked)
    if rule is None:
        return forwarded(objects, services, asked, host, "", {}, {})
    for http in rule["spec"]["http"]:
        holds, match = first_match(http, asked)
        if holds:
            return acted(objects, services, asked, rule, http, match)
    return Expected(404)


def acted(
    objects: list[Object],
    services: Mapping[str, Mapping[str, Mapping[str, str]]],
    asked: Asked,
    rule: Object,
    http: Mapping[str, Any],
    match: Mapping[str, Any],
) -> Expected:
    """What the rule's action does."""
    if "directResponse" in http:
        return Expected(http["directResponse"]["status"])
    if "redirect" in http:
        return redirected(http["redirect"], asked)
    fault = http.get("fault", {}).get("abort")
    if fault is not None and fault["percentage"]["value"] == 100:
        return Expected(fault["httpStatus"])
    (target,) = [t for t in http["route"] if len(http["route"]) == 1 or t["weight"] > 0]
    host = full(target["destination"]["host"], rule["metadata"]["namespace"])
    if host not in services:
        return Expected(503)
    subset = target["destination"].get("subset", "")
    made = forwarded(objects, services, asked, host, subset, http, match)
    if made.workloads is not None:
        change_headers(made.headers, http, target)
    return made


def redirected(redirect: Mapping[str, Any], asked: Asked) -> Expected:
    """The Location of a redirect."""
    authority = redirect.get("authority") or f"{asked.host}:{asked.port}"
    path = redirect.get("uri") or asked.path
    query = f"?{asked.query}" if asked.query else ""
    scheme = redirect.get("scheme") or "http"
    return Expected(
        redirect.get("redirectCode") or 301, location=f"{scheme}://{authority}{path}{query}"
    )


def forwarded(
    objects: list[Object],
    services: Mapping[str, Mapping[str, Mapping[str, str]]],
    asked: Asked,
    host: str,
    subset: str,
    http: Mapping[str, Any],
    match: Mapping[str, Any],
) -> Expected:
    """The request arrives at one of the destination's endpoints."""
    endpoints = services[host]
    namespace = host.split(".")[1] if host in SERVICES else "default"
    if subset:
        known = subsets_of(objects, host, asked.source, namespace)
        if subset not in known:
            return Expected(503)
        wanted = known[subset]
        endpoints = {
            name: labels
            for name, labels in endpoints.items()
            if all(labels.get(key) == value for key, value in wanted.items())
        }
    if not endpoints:
        return Expected(503)
    rewrite = http.get("rewrite", {})
    made = Expected(
        200,
        frozenset(endpoints),
        path=rewritten(asked.path, rewrite, match.get("uri"), bool(match.get("ignoreUriCase"))),
        host=rewrite.get("authority") or f"{asked.host}:{asked.port}",
        headers=dict(asked.headers),
    )
    if asked.query:
        made.path += f"?{asked.query}"
    return made


def rewritten(
    path: str, rewrite: Mapping[str, Any], matched: Mapping[str, str] | None, fold: bool
) -> str:
    """``uri`` replaces the prefix that was matched, or the whole path of an exact or regex match; without a match, ``/``."""
    if "uriRegexRewrite" in rewrite:
        change = rewrite["uriRegexRewrite"]
        return re.sub(change["match"], change["rewrite"], path)
    if "uri" not in rewrite:
        return path
    if matched is None:
        matched = {"prefix": "/"}
    if "prefix" in matched:
        rest = path[len(matched["prefix"]) :]
        if rewrite["uri"] == "/" and not matched["prefix"].endswith("/"):
            # A path never begins with two slashes.
            rest = rest.removeprefix("/")
        return str(rewrite["uri"]) + rest
    return str(rewrite["uri"])


def change_headers(
    seen: dict[str, str | None], http: Mapping[str, Any], target: Mapping[str, Any]
) -> None:
    """Request headers: of one target, all removals come first; among several, the target's own changes come first."""
    own = operations_of(target)
    whole = operations_of(http)
    if len(http["route"]) > 1:
        steps = [(own, True), (own, False), (whole, True), (whole, False)]
    else:
        steps = [(whole, True), (own, True), (whole, False), (own, False)]
    for operations, removing in steps:
        if removing:
            seen |= dict.fromkeys(operations.get("remove", ()))
            continue
        seen |= operations.get("set", {})
        for name, value in operations.get("add", {}).items():
            seen[name] = value if seen.get(name) is None else f"{seen[name]},{value}"


def operations_of(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """The request header operations of a rule or a target."""
    found: Mapping[str, Any] = part.get("headers", {}).get("request", {})
    return found
