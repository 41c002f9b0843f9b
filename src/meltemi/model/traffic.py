"""VirtualService, with what other kinds borrow from it. (DestinationRule: ``model.destination_rule``.)

In: nothing; these are types. Out: frozen, hashable structs with the API's own names (networking.istio.io v1, v1beta1
and v1alpha3 are the same). Promise: a struct that came out of ``config.decode`` has every field at its documented
default, durations in seconds, lists as tuples, maps as hashable FrozenMaps. Enumerations are ``Literal`` strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from meltemi.model.fields import Duration, Int32, PortNumber, Regex, Spec, UInt32
from meltemi.model.frozen import EMPTY_MAP

Strings = tuple[str, ...]
StringMap = Mapping[str, str]


class LabelSelector(Spec, frozen=True):
    """Workloads by labels (``matchLabels``)."""

    match_labels: StringMap = field(default_factory=lambda: EMPTY_MAP)


class StringMatch(Spec, frozen=True):
    """One way to match a string; an empty one matches any value that is present.

    exact: The whole value.
    prefix: The beginning of the value.
    regex: RE2 expression for the whole value.
    """

    ONE_OF: ClassVar = (("exact", "prefix", "regex"),)
    exact: str | None = None
    prefix: str | None = None
    regex: Regex | None = None


class PortSelector(Spec, frozen=True):
    """A service port by number."""

    number: PortNumber = 0


class Percent(Spec, frozen=True):
    """A percentage from 0 to 100, fractions allowed."""

    value: Annotated[float, Meta(ge=0, le=100)] = 0.0


class Destination(Spec, frozen=True):
    """Where traffic goes.

    host: A service of the mesh; a short name is a Service of this object's namespace.
    subset: A subset that a DestinationRule of the host defines.
    port: The host's port; may be left out when it has only one.
    """

    REQUIRED: ClassVar = ("host",)
    host: str = ""
    subset: str = ""
    port: PortSelector | None = None


class HeaderOperations(Spec, frozen=True):
    """Changes to headers.

    set: Overwrite.
    add: Append.
    remove: Delete.
    """

    set: StringMap = field(default_factory=lambda: EMPTY_MAP)
    add: StringMap = field(default_factory=lambda: EMPTY_MAP)
    remove: Strings = ()


class Headers(Spec, frozen=True):
    """Changes to the headers of requests and responses."""

    request: HeaderOperations | None = None
    response: HeaderOperations | None = None


class HTTPRouteDestination(Spec, frozen=True):
    """One weighted target of an HTTP route.

    weight: Share of the requests, relative to the other targets; a single target gets all.
    """

    REQUIRED: ClassVar = ("destination",)
    destination: Destination = Destination()
    weight: Annotated[int, Meta(ge=0, le=2147483647)] = 0
    headers: Headers | None = None


class RouteDestination(Spec, frozen=True):
    """One weighted target of a TCP or TLS route."""

    REQUIRED: ClassVar = ("destination",)
    destination: Destination = Destination()
    weight: Annotated[int, Meta(ge=0, le=2147483647)] = 0


class HTTPMatchRequest(Spec, frozen=True):
    """Conditions that all have to hold.

    name: Appears in the route's name.
    port: The port that the request was addressed to.
    source_labels: Labels of the calling workload.
    gateways: Overrides the object's own gateways.
    without_headers: Headers that must not match.
    stat_prefix: Prefix of the statistics of this route.
    """

    name: str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Mapping[str, StringMatch] = field(default_factory=lambda: EMPTY_MAP)
    query_params: Mapping[str, StringMatch] = field(default_factory=lambda: EMPTY_MAP)
    without_headers: Mapping[str, StringMatch] = field(default_factory=lambda: EMPTY_MAP)
    port: PortNumber = 0
    source_labels: StringMap = field(default_factory=lambda: EMPTY_MAP)
    source_namespace: str = ""
    gateways: Strings = ()
    ignore_uri_case: bool = False
    stat_prefix: str = ""


class HTTPRedirect(Spec, frozen=True):
    """Answer with a redirect.

    uri: Replaces the whole path.
    prefix_rewrite: Replaces the matched prefix.
    derive_port: Where the port comes from when none is given.
    redirect_code: 301 (the default), 302, 303, 307 or 308.
    """

    ONE_OF: ClassVar = (("port", "derive_port"), ("uri", "prefix_rewrite"))
    uri: str = ""
    prefix_rewrite: str = ""
    authority: str = ""
    port: PortNumber | None = None
    derive_port: Literal["FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT"] | None = None
    scheme: str = ""
    redirect_code: UInt32 = 0


class HTTPBody(Spec, frozen=True):
    """The body of a direct response: text, or bytes in base64."""

    ONE_OF: ClassVar = (("string", "bytes"),)
    string: str | None = None
    bytes: str | None = None


class HTTPDirectResponse(Spec, frozen=True):
    """Answer without asking any upstream."""

    REQUIRED: ClassVar = ("status",)
    status: UInt32 = 0
    body: HTTPBody | None = None


class Delegate(Spec, frozen=True):
    """Another VirtualService (without hosts) whose routes go here."""

    name: str = ""
    namespace: str = ""


class RegexRewrite(Spec, frozen=True):
    """RE2 substitution on the path."""

    match: Regex = ""
    rewrite: str = ""


class HTTPRewrite(Spec, frozen=True):
    """Changes to path and authority before forwarding.

    uri: Replaces the matched part of the path.
    """

    ONE_OF: ClassVar = (("uri", "uri_regex_rewrite"),)
    uri: str = ""
    authority: str = ""
    uri_regex_rewrite: RegexRewrite | None = None


class HTTPRetry(Spec, frozen=True):
    """Retries of failed requests.

    attempts: Retries beside the first try; 0 turns them off.
    retry_on: Envoy's retry conditions, separated by commas.
    backoff: Shortest interval between two tries.
    """

    attempts: Annotated[int, Meta(ge=0, le=2147483647)] = 0
    per_try_timeout: Duration | None = None
    retry_on: str = ""
    retry_remote_localities: bool | None = None
    retry_ignore_previous_hosts: bool | None = None
    backoff: Duration | None = None


class FaultDelay(Spec, frozen=True):
    """Delay a share of the requests.

    percent: Deprecated; use percentage.
    """

    ONE_OF: ClassVar = (("fixed_delay", "exponential_delay"),)
    percent: Int32 = 0
    fixed_delay: Duration | None = None
    exponential_delay: Duration | None = None
    percentage: Percent | None = None


class FaultAbort(Spec, frozen=True):
    """Refuse a share of the requests."""

    ONE_OF: ClassVar = (("http_status", "grpc_status", "http2_error"),)
    http_status: Int32 | None = None
    grpc_status: str | None = None
    http2_error: str | None = None
    percentage: Percent | None = None


class HTTPFaultInjection(Spec, frozen=True):
    """Faults for tests of resilience."""

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None


class HTTPMirrorPolicy(Spec, frozen=True):
    """Copy a share of the requests to another destination; answers are dropped."""

    REQUIRED: ClassVar = ("destination",)
    destination: Destination = Destination()
    percentage: Percent | None = None


class CorsPolicy(Spec, frozen=True):
    """Cross-origin resource sharing.

    allow_origin: Deprecated; use allowOrigins.
    """

    allow_origin: Strings = ()
    allow_origins: tuple[StringMatch, ...] = ()
    allow_methods: Strings = ()
    allow_headers: Strings = ()
    expose_headers: Strings = ()
    max_age: Duration | None = None
    allow_credentials: bool | None = None
    unmatched_preflights: Literal["UNSPECIFIED", "FORWARD", "IGNORE"] = "UNSPECIFIED"


class HTTPRoute(Spec, frozen=True):
    """One HTTP rule: the first whose match holds decides.

    match: Alternatives; one has to hold. None at all matches everything.
    route: Weighted targets.
    delegate: Hand over to another VirtualService; only in one that has hosts.
    timeout: Whole request, retries included; off when not set.
    mirror_percent: Deprecated; use mirrorPercentage.
    """

    ONE_OF: ClassVar = (("mirror", "mirrors"),)
    name: str = ""
    match: tuple[HTTPMatchRequest, ...] = ()
    route: tuple[HTTPRouteDestination, ...] = ()
    redirect: HTTPRedirect | None = None
    direct_response: HTTPDirectResponse | None = None
    delegate: Delegate | None = None
    rewrite: HTTPRewrite | None = None
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None
    mirror: Destination | None = None
    mirrors: tuple[HTTPMirrorPolicy, ...] = ()
    mirror_percent: UInt32 | None = None
    mirror_percentage: Percent | None = None
    cors_policy: CorsPolicy | None = None
    headers: Headers | None = None


class L4MatchAttributes(Spec, frozen=True):
    """Conditions on a TCP connection that all have to hold."""

    destination_subnets: Strings = ()
    port: PortNumber = 0
    source_subnet: str = ""
    source_labels: StringMap = field(default_factory=lambda: EMPTY_MAP)
    gateways: Strings = ()
    source_namespace: str = ""


class TLSMatchAttributes(Spec, frozen=True):
    """Conditions on a TLS connection that all have to hold."""

    REQUIRED: ClassVar = ("sni_hosts",)
    sni_hosts: Strings = ()
    destination_subnets: Strings = ()
    port: PortNumber = 0
    source_labels: StringMap = field(default_factory=lambda: EMPTY_MAP)
    gateways: Strings = ()
    source_namespace: str = ""


class TLSRoute(Spec, frozen=True):
    """One rule for TLS that is passed through, by SNI."""

    REQUIRED: ClassVar = ("match",)
    match: tuple[TLSMatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class TCPRoute(Spec, frozen=True):
    """One rule for opaque TCP."""

    match: tuple[L4MatchAttributes, ...] = ()
    route: tuple[RouteDestination, ...] = ()


class VirtualService(Spec, frozen=True):
    """How requests to some hosts are routed.

    hosts: The names that clients address.
    gateways: Where the rules apply: ``mesh`` is every sidecar, others are Gateways.
    export_to: Namespaces that see the rules: ``*`` all, ``.`` this one.
    """

    hosts: Strings = ()
    gateways: Strings = ()
    http: tuple[HTTPRoute, ...] = ()
    tls: tuple[TLSRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()
    export_to: Strings = ()
