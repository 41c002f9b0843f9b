"""HTTPMatchRequest -> RouteMatch, and whether a match applies to this proxy at all."""

from __future__ import annotations

from dataclasses import dataclass

from meltemi.ir.route import ClaimMatch, HeaderMatch, RouteMatch, StringMatch
from meltemi.model.traffic import HTTPMatchRequest
from meltemi.model.traffic import StringMatch as ApiMatch
from meltemi.push.classes import ProxyClass
from meltemi.translate.scope import MESH_GATEWAY, qualified

MATCH_ALL = RouteMatch()
# "Headers" of this name are claims of the request's token (Istio's claim-based routing at gateways).
CLAIMS = "@request.auth.claims"


@dataclass(frozen=True, slots=True)
class Place:
    """Where routes are built for: the gateways (or ``mesh``) and the port that clients address."""

    gateways: frozenset[str]
    port: int

    @property
    def in_mesh(self) -> bool:
        """True for sidecars."""
        return MESH_GATEWAY in self.gateways


def gateways_apply(names: tuple[str, ...], namespace: str, place: Place) -> bool:
    """Whether any of the named gateways is meant. No names at all mean the object's own."""
    return not names or any(qualified(name, namespace) in place.gateways for name in names)


def source_applies(
    match: HTTPMatchRequest,
    rule_namespace: str,
    own: tuple[str, ...],
    proxy: ProxyClass,
    place: Place,
) -> bool:
    """The conditions that are decided here and not per request: gateways, port, source labels and namespace."""
    named = match.gateways or own or (MESH_GATEWAY,)
    if not gateways_apply(named, rule_namespace, place):
        return False
    if match.port and match.port != place.port:
        return False
    if not place.in_mesh and match.gateways:
        # Whoever names the gateway means its visitors, who have neither labels nor a namespace.
        return True
    if match.source_namespace and match.source_namespace != proxy.namespace:
        return False
    return proxy.matches(match.source_labels)


def string_match(match: ApiMatch, *, ignore_case: bool = False) -> StringMatch:
    """A StringMatch; an empty one means that a value is present."""
    if match.exact is not None:
        return StringMatch("exact", match.exact, ignore_case)
    if match.prefix is not None:
        # Envoy refuses an empty prefix; it means the same as presence.
        return StringMatch("prefix", match.prefix, ignore_case) if match.prefix else _PRESENT
    if match.regex is not None:
        if match.regex in (".*", "*"):
            return _PRESENT
        pattern = f"(?i){match.regex}" if ignore_case else match.regex
        return StringMatch("regex", pattern)
    return _PRESENT


_PRESENT = StringMatch("present")


def _path(match: HTTPMatchRequest) -> StringMatch:
    if match.uri is None:
        return StringMatch("prefix", "/")
    found = string_match(match.uri, ignore_case=match.ignore_uri_case)
    return StringMatch("prefix", "/") if found.kind == "present" else found


def _headers(match: HTTPMatchRequest) -> list[HeaderMatch]:
    found = [
        HeaderMatch(name, string_match(value))
        for name, value in sorted(match.headers.items())
        if not name.startswith(CLAIMS)
    ]
    for name, value in sorted(match.without_headers.items()):
        if name.startswith(CLAIMS):
            continue
        # A header that is missing does not match, so it satisfies withoutHeaders.
        wanted = string_match(value)
        found.append(
            HeaderMatch(name, wanted, invert=True, missing_is_empty=wanted.kind != "present")
        )
    for name, condition in (
        (":method", match.method),
        (":authority", match.authority),
        (":scheme", match.scheme),
    ):
        if condition is not None:
            found.append(HeaderMatch(name, string_match(condition)))
    return found


def claim_path(name: str) -> tuple[str, ...]:
    """``@request.auth.claims.a.b`` or ``@request.auth.claims[a.b][c]`` -> the claim's path."""
    rest = name.removeprefix(CLAIMS)
    if rest.startswith("[") and rest.endswith("]"):
        return tuple(rest[1:-1].split("]["))
    return tuple(rest.removeprefix(".").split("."))


def _claims(match: HTTPMatchRequest) -> tuple[ClaimMatch, ...]:
    return tuple(
        ClaimMatch(claim_path(name), string_match(value), invert)
        for conditions, invert in ((match.headers, False), (match.without_headers, True))
        for name, value in sorted(conditions.items())
        if name.startswith(CLAIMS)
    )


def build_match(match: HTTPMatchRequest | None) -> RouteMatch:
    """The conditions that Envoy checks per request. None matches everything."""
    if match is None:
        return MATCH_ALL
    query = tuple((name, string_match(value)) for name, value in sorted(match.query_params.items()))
    return RouteMatch(
        path=_path(match), headers=tuple(_headers(match)), query=query, claims=_claims(match)
    )


def is_catch_all(match: RouteMatch) -> bool:
    """Whether nothing can come after it."""
    path = match.path
    everything = (path.kind == "prefix" and path.value == "/") or (
        path.kind == "regex" and path.value in ("/.*", ".*")
    )
    conditions = match.headers or match.query or match.claims
    return everything and not conditions and not match.grpc
