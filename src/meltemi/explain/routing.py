"""Which virtual host and route take an HTTP request, as Envoy would decide."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import re2

from meltemi.explain.request import Request
from meltemi.ir.route import HeaderMatch, Route, RouteConfig, RouteMatch, StringMatch, VirtualHost


def _host(request: Request, config: RouteConfig) -> str:
    host = request.host.lower()
    if config.ignore_port_in_host:
        name, colon, port = host.rpartition(":")
        if colon and port.isdecimal() and not host.endswith("]"):
            return name
    return host


def find_virtual_host(config: RouteConfig, request: Request) -> VirtualHost | None:
    """Exact names first, then the longest ``*.suffix``, then the longest ``prefix*``, then ``*``."""
    host = _host(request, config)
    best: tuple[int, int, VirtualHost] | None = None
    for candidate in config.virtual_hosts:
        for domain in candidate.domains:
            name = domain.lower()
            if name == host:
                rank = (3, 0)
            elif name == "*":
                rank = (0, 0)
            elif name.startswith("*") and host.endswith(name[1:]):
                rank = (2, len(name))
            elif name.endswith("*") and host.startswith(name[:-1]):
                rank = (1, len(name))
            else:
                continue
            if best is None or rank > best[:2]:
                best = (*rank, candidate)
    return best[2] if best is not None else None


def string_holds(match: StringMatch, text: str) -> bool:
    """Whether a condition on a string holds."""
    wanted = match.value.lower() if match.ignore_case else match.value
    text = text.lower() if match.ignore_case else text
    if match.kind == "exact":
        return text == wanted
    if match.kind == "prefix":
        return text.startswith(wanted)
    if match.kind == "suffix":
        return text.endswith(wanted)
    if match.kind == "contains":
        return wanted in text
    if match.kind == "regex":
        try:
            return re2.fullmatch(match.value, text) is not None
        except re2.error:
            return False
    return True


def _path_holds(match: StringMatch, path: str) -> bool:
    if match.kind == "path_prefix":
        return path == match.value or path.startswith(match.value + "/")
    return string_holds(match, path)


def _header_holds(match: HeaderMatch, headers: dict[str, str]) -> bool:
    value = headers.get(match.name.lower())
    if value is None:
        if match.match.kind == "present":
            return match.invert
        if not match.missing_is_empty:
            return False  # Envoy: an absent header never matches, inverted or not
        value = ""
    return string_holds(match.match, value) != match.invert


def match_holds(match: RouteMatch, request: Request) -> bool:
    """Whether all conditions of a route hold."""
    split = urlsplit(request.path)
    if not _path_holds(match.path, split.path):
        return False
    headers = {name.lower(): value for name, value in request.headers.items()}
    headers |= {":method": request.method, ":authority": request.host, ":scheme": request.scheme}
    if not all(_header_holds(entry, headers) for entry in match.headers):
        return False
    query = {name: values[0] for name, values in parse_qs(split.query, True).items()}
    for name, wanted in match.query:
        if name not in query or not string_holds(wanted, query[name]):
            return False
    if not all(claim.invert for claim in match.claims):
        return False  # a pretend request has no token
    return not match.grpc or headers.get("content-type", "").startswith("application/grpc")


def find_route(host: VirtualHost, request: Request) -> tuple[int, Route] | None:
    """The first route that matches, with its position."""
    for index, route in enumerate(host.routes):
        if match_holds(route.match, request):
            return index, route
    return None


def describe(match: RouteMatch) -> str:
    """A route's conditions in words."""
    parts = []
    if (match.path.kind, match.path.value) != ("prefix", "/"):
        parts.append(f"path {match.path.kind} {match.path.value}")
    for header in match.headers:
        word = "is not" if header.invert else header.match.kind
        parts.append(f"header {header.name} {word} {header.match.value}".rstrip())
    parts += [f"query {name} {wanted.kind} {wanted.value}".rstrip() for name, wanted in match.query]
    return " and ".join(parts) or "every request"
