"""HTTP routing: what a request must look like, and what happens to it then."""

from __future__ import annotations

from meltemi.ir.value import Origins, Pairs, origins_field, value


@value
class StringMatch:
    """``kind``: exact, prefix, suffix, contains, regex or present."""

    kind: str
    value: str = ""
    ignore_case: bool = False


@value
class HeaderMatch:
    """A condition on a header (pseudo-headers included). ``missing_is_empty``: an absent header matches as ''."""

    name: str
    match: StringMatch
    invert: bool = False
    missing_is_empty: bool = False


@value
class ClaimMatch:
    """A condition on a claim of the request's verified token; an absent claim only matches inverted."""

    path: tuple[str, ...]
    match: StringMatch
    invert: bool = False


@value
class RouteMatch:
    """All conditions must hold. ``path.kind``: exact, prefix, regex or path_prefix (whole segments)."""

    path: StringMatch = StringMatch("prefix", "/")
    headers: tuple[HeaderMatch, ...] = ()
    query: tuple[tuple[str, StringMatch], ...] = ()
    grpc: bool = False
    claims: tuple[ClaimMatch, ...] = ()


@value
class HeaderOps:
    """Header changes, applied in the order remove, set, add."""

    request_set: Pairs = ()
    request_add: Pairs = ()
    request_remove: tuple[str, ...] = ()
    response_set: Pairs = ()
    response_add: Pairs = ()
    response_remove: tuple[str, ...] = ()


NO_HEADER_OPS = HeaderOps()


@value
class WeightedCluster:
    """One destination of a route and its share."""

    cluster: str
    weight: int = 100
    headers: HeaderOps = NO_HEADER_OPS


@value
class RetryPolicy:
    """Retries. ``host_attempts`` counts how often another host is looked for."""

    on: str
    attempts: int
    per_try_timeout_s: float | None = None
    status_codes: tuple[int, ...] = ()
    avoid_previous_hosts: bool = True
    host_attempts: int = 5
    prefer_other_priorities: bool = False
    backoff_s: float | None = None


@value
class HashPolicy:
    """Where the consistent hash comes from. ``kind``: header, cookie, source_ip or query."""

    kind: str
    name: str = ""
    path: str = ""
    ttl_s: float | None = None
    attributes: Pairs = ()


@value
class Mirror:
    """A copy of the traffic. ``percent`` of 100."""

    cluster: str
    percent: float = 100.0
    shadow_suffix: bool = True


@value
class Fault:
    """Faults that are injected. Percentages of 100."""

    delay_s: float | None = None
    delay_percent: float = 0.0
    abort_status: int | None = None
    abort_grpc: int | None = None
    abort_percent: float = 0.0


@value
class Cors:
    """Cross-origin resource sharing."""

    origins: tuple[StringMatch, ...] = ()
    methods: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    max_age_s: float | None = None
    credentials: bool | None = None
    forward_unmatched: bool | None = None


@value
class Forward:
    """Send the request to one of ``clusters``.

    ``timeout_s`` 0 means none. ``prefix_rewrite`` replaces the matched prefix, ``regex_rewrite`` is
    (pattern, substitution), ``host_rewrite`` the authority.
    """

    clusters: tuple[WeightedCluster, ...]
    timeout_s: float = 0.0
    retry: RetryPolicy | None = None
    prefix_rewrite: str = ""
    regex_rewrite: tuple[str, str] | None = None
    host_rewrite: str = ""
    mirrors: tuple[Mirror, ...] = ()
    hashes: tuple[HashPolicy, ...] = ()
    websocket: bool = False
    forwarded_host: bool = False  # a host that is rewritten is told in X-Forwarded-Host


@value
class Redirect:
    """Answer with a redirect. Empty strings leave that part of the URL as it is."""

    code: int = 301
    path: str = ""
    prefix: str = ""
    host: str = ""
    port: int = 0
    scheme: str = ""
    https: bool = False


@value
class DirectResponse:
    """Answer directly."""

    status: int
    body: str = ""
    body_bytes: bytes = b""


Action = Forward | Redirect | DirectResponse


@value
class Route:
    """One entry of a virtual host; the first that matches wins.

    ``external`` keeps our peer headers off the wire. ``sniffed`` tells the endpoint's proxy that
    HTTP is inside the mTLS, for ports whose protocol is not declared. ``config`` is the API path of the object, for telemetry.
    """

    name: str
    match: RouteMatch
    action: Action
    headers: HeaderOps = NO_HEADER_OPS
    fault: Fault | None = None
    cors: Cors | None = None
    external: bool = False
    sniffed: bool = False
    decorator: str = ""
    config: str = ""
    stat_prefix: str = ""
    origins: Origins = origins_field()


@value
class VirtualHost:
    """The routes of a set of authorities."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    require_tls: bool = False
    attempt_count: bool = True
    origins: Origins = origins_field()


@value
class RouteConfig:
    """A named route table; ``max_direct_response_bytes`` of 0 is Envoy's default (4096)."""

    name: str
    virtual_hosts: tuple[VirtualHost, ...]
    ignore_port_in_host: bool = False
    response_headers: Pairs = ()
    max_direct_response_bytes: int = 0
    origins: Origins = origins_field()
