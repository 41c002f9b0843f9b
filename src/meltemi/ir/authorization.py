"""Who may do what: conditions on connections and requests, policies made of them, and the filters that enforce them.

A condition is a small boolean algebra. Which attributes exist on a TCP connection, and which only on an HTTP request, is
decided before: every condition in a value here can be checked where the value is used.
"""

from __future__ import annotations

from meltemi.ir.route import StringMatch
from meltemi.ir.value import Origins, Pairs, origins_field, value


@value
class PeerName:
    """The URI in the peer's verified certificate. False without mTLS."""

    match: StringMatch


@value
class Address:
    """``which``: source (of the connection), remote (the original client's) or destination. ``cidr`` with a length."""

    which: str
    cidr: str


@value
class DestinationPort:
    """The port that the client addressed, as the proxy sees it."""

    port: int


@value
class ServerName:
    """The SNI of the connection."""

    match: StringMatch


@value
class Header:
    """A request header; ``:authority`` and ``:method`` count as such. False when it is missing."""

    name: str
    match: StringMatch


@value
class Path:
    """The path of the request without its query."""

    match: StringMatch


@value
class Metadata:
    """What an earlier filter wrote. ``lists``: also true when an element of a list matches; ``text``: a string may match."""

    filter: str
    path: tuple[str, ...]
    match: StringMatch
    text: bool = True
    lists: bool = True


@value
class Not:
    """True when ``inner`` is not."""

    inner: Condition


@value
class All:
    """True when all are; always, when there are none."""

    inner: tuple[Condition, ...] = ()


@value
class AnyOf:
    """True when one is; never, when there are none."""

    inner: tuple[Condition, ...] = ()


Leaf = PeerName | Address | DestinationPort | ServerName | Header | Path | Metadata
Condition = Leaf | Not | All | AnyOf
ALWAYS = All()


@value
class Policy:
    """One rule: matches when both conditions do. ``name`` shows in access logs."""

    name: str
    principals: Condition
    permissions: Condition
    origins: Origins = origins_field()


@value
class PolicySet:
    """ALLOW refuses what no policy matches, DENY what one matches; LOG only marks."""

    action: str
    policies: tuple[Policy, ...] = ()


@value
class Rbac:
    """Enforces ``rules``; ``shadow`` is only counted and written to metadata, under keys with ``shadow_prefix``."""

    rules: PolicySet | None = None
    shadow: PolicySet | None = None
    shadow_prefix: str = ""
    origins: Origins = origins_field()


@value
class CheckBody:
    """How much of a request's body an authorizer gets."""

    max_bytes: int
    allow_partial: bool = False
    as_bytes: bool = False


@value
class ExtAuthz:
    """Asks an external authorizer when the shadow rules under ``shadow_prefix`` matched a policy of ``policy_prefix``.

    ``grpc`` False asks over HTTP. Header patterns are those of the API: exact, ``prefix*``, ``*suffix``.
    """

    cluster: str
    authority: str
    grpc: bool
    shadow_prefix: str
    policy_prefix: str
    timeout_s: float = 600.0
    path_prefix: str = ""
    fail_open: bool = False
    clear_route_cache: bool = False
    status_on_error: int = 403
    body: CheckBody | None = None
    request_headers: tuple[StringMatch, ...] = ()
    extra_headers: Pairs = ()
    upstream_headers: tuple[StringMatch, ...] = ()
    deny_headers: tuple[StringMatch, ...] = ()
    allow_headers: tuple[StringMatch, ...] = ()
    origins: Origins = origins_field()
