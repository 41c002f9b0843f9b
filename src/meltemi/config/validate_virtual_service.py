"""What makes a VirtualService wrong, beyond its schema. In: a decoded object. Out: findings in the report."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence

from meltemi.config import checks
from meltemi.config.paths import item, join
from meltemi.config.reader import Report, nearest, quoted
from meltemi.model.config import Config
from meltemi.model.traffic import (
    CorsPolicy,
    HeaderOperations,
    HTTPFaultInjection,
    HTTPMatchRequest,
    HTTPRedirect,
    HTTPRetry,
    HTTPRoute,
    HTTPRouteDestination,
    RouteDestination,
    TCPRoute,
    TLSRoute,
    VirtualService,
)

# Envoy's x-envoy-retry-on and x-envoy-retry-grpc-on values.
RETRY_ON = (
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
)
GRPC_STATUS = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*")
REDIRECT_CODES = (301, 302, 303, 307, 308)
MAX_BODY = 1024 * 1024


def validate_virtual_service(config: Config[VirtualService], report: Report) -> None:
    """All rules of the kind."""
    spec = config.spec
    delegate = not spec.hosts
    if delegate and spec.gateways:
        text = "a VirtualService without hosts is a delegate, which has no gateways"
        report.error("spec.gateways", text, "add hosts, or remove the gateways")
    if delegate and (spec.tcp or spec.tls):
        report.error("spec.hosts", "is required for tcp and tls routes", "add hosts")
    _hosts(spec, report)
    checks.gateway_names(spec.gateways, "spec.gateways", report)
    checks.export_to(spec.export_to, "spec.exportTo", report)
    if not (spec.http or spec.tls or spec.tcp):
        report.error("spec", "has no routes", "add http, tls or tcp")
    for index, route in enumerate(spec.http):
        _http(route, item("spec.http", index), delegate, spec, report)
    for index, tls in enumerate(spec.tls):
        _tls(tls, item("spec.tls", index), spec, report)
    for index, tcp in enumerate(spec.tcp):
        _tcp(tcp, item("spec.tcp", index), report)


def _hosts(spec: VirtualService, report: Report) -> None:
    in_mesh = not spec.gateways or "mesh" in spec.gateways
    seen: set[str] = set()
    for index, host in enumerate(spec.hosts):
        where = item("spec.hosts", index)
        checks.wildcard_host(host, where, report)
        if host in seen:
            report.error(where, f"{quoted(host)} is given twice", "remove one")
        seen.add(host)
        if host == "*" and in_mesh:
            text = 'the host "*" cannot be used inside the mesh (gateway "mesh")'
            report.error(where, text, "name the hosts, or list only ingress gateways in gateways")


def _http(
    route: HTTPRoute, path: str, delegate: bool, spec: VirtualService, report: Report
) -> None:
    _action(route, path, delegate, report)
    for index, match in enumerate(route.match):
        _match(match, item(join(path, "match"), index), report)
    _weights(route.route, path, report)
    for index, target in enumerate(route.route):
        if target.headers:
            _headers(
                target.headers.request, item(f"{path}.route", index) + ".headers.request", report
            )
            _headers(
                target.headers.response, item(f"{path}.route", index) + ".headers.response", report
            )
    if route.headers:
        _headers(route.headers.request, f"{path}.headers.request", report)
        _headers(route.headers.response, f"{path}.headers.response", report)
    if route.timeout is not None and route.timeout != 0:
        checks.duration(route.timeout, f"{path}.timeout", report)
    _retries(route.retries, f"{path}.retries", report)
    _fault(route.fault, f"{path}.fault", report)
    _cors(route.cors_policy, f"{path}.corsPolicy", report)
    _mirrors(route, path, report)
    _rewrite(route, path, report)


def _action(route: HTTPRoute, path: str, delegate: bool, report: Report) -> None:
    """Exactly one of route, redirect, directResponse, delegate; and what may not go with each."""
    actions = {
        "route": bool(route.route),
        "redirect": route.redirect is not None,
        "directResponse": route.direct_response is not None,
        "delegate": route.delegate is not None,
    }
    given = [name for name, present in actions.items() if present]
    if len(given) > 1:
        text = f"{' and '.join(given)} exclude each other"
        report.error(join(path, given[1]), text, "keep one of them")
    if not given:
        remedy = "add route, redirect, directResponse or delegate"
        report.error(path, "says nothing about where requests go", remedy)
    answered = "redirect" if route.redirect else "directResponse" if route.direct_response else ""
    if answered:
        others: dict[str, object] = {
            "rewrite": route.rewrite,
            "fault": route.fault if answered == "redirect" else None,
        }
        others |= {"mirror": route.mirror, "retries": route.retries}
        for name, value in others.items():
            if value is not None:
                text = f"has no effect together with {answered}"
                if name in ("rewrite", "fault"):
                    report.error(
                        join(path, name), f"cannot be combined with {answered}", "remove it"
                    )
                else:
                    report.warn(join(path, name), text, "remove it")
    if route.delegate is not None and delegate:
        text = "a delegate cannot delegate again"
        report.error(f"{path}.delegate", text, "write the routes here")
    if route.redirect is not None:
        _redirect(route.redirect, f"{path}.redirect", report)
    if route.direct_response is not None:
        status = route.direct_response.status
        if not 200 <= status <= 599:
            text = f"{status} is not a status that can be answered"
            report.error(f"{path}.directResponse.status", text, "use 200 to 599")
        body = route.direct_response.body
        if body is not None and body.bytes and not _is_base64(body.bytes):
            where = f"{path}.directResponse.body.bytes"
            report.error(where, "is not base64", "encode the bytes, or use string")
        size = len((body.string or body.bytes or "").encode()) if body else 0
        if size > MAX_BODY:
            report.error(f"{path}.directResponse.body", "is larger than 1 MiB", "shorten it")


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


def _redirect(redirect: HTTPRedirect, path: str, report: Report) -> None:
    empty = not (redirect.uri or redirect.prefix_rewrite or redirect.authority or redirect.scheme)
    if (
        empty
        and redirect.port is None
        and redirect.derive_port is None
        and not redirect.redirect_code
    ):
        report.error(path, "changes nothing", "set uri, authority, port or scheme")
    code = redirect.redirect_code
    if code and code not in REDIRECT_CODES:
        remedy = f"use one of {', '.join(map(str, REDIRECT_CODES))}"
        report.error(f"{path}.redirectCode", f"{code} is not a redirect status", remedy)
    if redirect.scheme and redirect.scheme not in ("http", "https"):
        report.error(
            f"{path}.scheme", f"{quoted(redirect.scheme)} is no scheme", "use http or https"
        )
    if redirect.port == 0:
        report.error(f"{path}.port", "0 is not a port", "use 1 to 65535")


# A claim of the request's token in the place of a header: ``.name.inner`` or ``[name][inner]``.
_CLAIM = re.compile(r"@request\.auth\.claims(?:(?:\.[^.\[\]]+)+|(?:\[[^\[\]]+\])+)")


def _match(match: HTTPMatchRequest, path: str, report: Report) -> None:
    for name in ("uri", "scheme", "method", "authority"):
        checks.string_match(getattr(match, name), join(path, name), report)
    for field, headers in (
        ("headers", match.headers),
        ("withoutHeaders", match.without_headers),
        ("queryParams", match.query_params),
    ):
        for name, value in headers.items():
            where = join(join(path, field), name)
            if not name:
                report.error(where, "a name may not be empty", "")
            elif field != "queryParams" and name.startswith("@"):
                if not _CLAIM.fullmatch(name):
                    text = f"{quoted(name)} does not name a claim"
                    report.error(where, text, 'as in "@request.auth.claims.sub"')
            elif field != "queryParams":
                checks.header_name(name.removeprefix(":"), where, report)
                if name.lower() in ("uri", "scheme", "method", "authority"):
                    text = f'the header "{name}" is ignored'
                    report.warn(where, text, f"use the match field {name.lower()}")
            if value.prefix != "":
                checks.string_match(value, where, report)
    checks.labels(match.source_labels, f"{path}.sourceLabels", report)
    checks.gateway_names(match.gateways, f"{path}.gateways", report)


def _weights(
    route: Sequence[HTTPRouteDestination | RouteDestination], path: str, report: Report
) -> None:
    for index, target in enumerate(route):
        checks.destination(
            target.destination, item(f"{path}.route", index) + ".destination", report
        )
    if len(route) > 1 and sum(target.weight for target in route) == 0:
        text = "the weights of all targets are 0, so none can be chosen"
        report.error(f"{path}.route", text, "give each target a weight, as in 90 and 10")


def _headers(operations: HeaderOperations | None, path: str, report: Report) -> None:
    if operations is None:
        return
    names: Iterator[tuple[str, str]] = iter(
        [(f"{path}.set", n) for n in operations.set]
        + [(f"{path}.add", n) for n in operations.add]
        + [(f"{path}.remove", n) for n in operations.remove]
    )
    for field, name in names:
        where = join(field, name)
        if name.startswith(":") and name.lower() != ":authority":
            report.error(where, f"{quoted(name)} cannot be changed this way", "use rewrite")
        elif not name.startswith(":"):
            checks.header_name(name, where, report)
        if field.endswith(".remove") and name.lower() in ("host", ":authority"):
            report.error(where, "the host cannot be removed", "use rewrite.authority to change it")


def _retries(retries: HTTPRetry | None, path: str, report: Report) -> None:
    if retries is None:
        return
    if retries.attempts == 0 and (retries.per_try_timeout or retries.retry_on):
        text = "attempts is 0, which turns retries off, but other settings are given"
        report.error(f"{path}.attempts", text, "set attempts, or remove the other settings")
    checks.duration(retries.per_try_timeout, f"{path}.perTryTimeout", report)
    checks.duration(retries.backoff, f"{path}.backoff", report)
    for part in filter(None, retries.retry_on.split(",")):
        if part not in RETRY_ON and not (part.isdecimal() and 100 <= int(part[:6]) <= 599):
            guess = nearest(part, RETRY_ON)
            remedy = f"did you mean {guess}?" if guess else f"use {', '.join(RETRY_ON)} or a status"
            report.error(f"{path}.retryOn", f"{quoted(part)} is not a retry condition", remedy)


def _fault(fault: HTTPFaultInjection | None, path: str, report: Report) -> None:
    if fault is None:
        return
    if fault.delay is None and fault.abort is None:
        report.error(path, "injects nothing", "add delay or abort")
    if fault.delay is not None:
        if fault.delay.fixed_delay is None and fault.delay.exponential_delay is None:
            report.error(f"{path}.delay.fixedDelay", "is required", 'write a duration such as "5s"')
        checks.duration(fault.delay.fixed_delay, f"{path}.delay.fixedDelay", report)
        if fault.delay.percent:
            report.warn(f"{path}.delay.percent", "is deprecated", "use percentage.value", "IST0002")
            if not 0 <= fault.delay.percent <= 100:
                report.error(f"{path}.delay.percent", "is not a percentage", "use 0 to 100")
        if fault.delay.percentage is None and not fault.delay.percent:
            text = "without a percentage no request is delayed"
            report.warn(f"{path}.delay", text, "add percentage: {value: 100} to delay all")
    if fault.abort is not None:
        abort = fault.abort
        if abort.percentage is None:
            text = "without a percentage no request is aborted"
            report.warn(f"{path}.abort", text, "add percentage: {value: 100} to abort all")
        if abort.http_status is None and abort.grpc_status is None and abort.http2_error is None:
            report.error(f"{path}.abort", "says not how to abort", "set httpStatus or grpcStatus")
        if abort.http_status is not None and not 200 <= abort.http_status <= 599:
            text = f"{abort.http_status} is not a status that can be answered"
            report.error(f"{path}.abort.httpStatus", text, "use 200 to 599")
        if abort.grpc_status is not None and abort.grpc_status not in GRPC_STATUS:
            guess = nearest(abort.grpc_status, GRPC_STATUS)
            remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(GRPC_STATUS)}"
            text = f"{quoted(abort.grpc_status)} is not a gRPC status"
            report.error(f"{path}.abort.grpcStatus", text, remedy)


def _cors(policy: CorsPolicy | None, path: str, report: Report) -> None:
    if policy is None:
        return
    if policy.allow_origin:
        report.warn(f"{path}.allowOrigin", "is deprecated", "use allowOrigins", "IST0002")
    for index, origin in enumerate(policy.allow_origins):
        checks.string_match(origin, item(f"{path}.allowOrigins", index), report)
    for index, method in enumerate(policy.allow_methods):
        if method not in METHODS:
            remedy = f"use one of {', '.join(METHODS)}"
            where = item(f"{path}.allowMethods", index)
            report.error(where, f"{quoted(method)} is not a method", remedy)
    for name, headers in (
        ("allowHeaders", policy.allow_headers),
        ("exposeHeaders", policy.expose_headers),
    ):
        for index, header in enumerate(headers):
            checks.header_name(header, item(join(path, name), index), report)
    if policy.max_age is not None and policy.max_age != int(policy.max_age):
        report.error(f"{path}.maxAge", "must be whole seconds", 'as in "24h"')


def _mirrors(route: HTTPRoute, path: str, report: Report) -> None:
    if route.mirror is not None:
        checks.destination(route.mirror, f"{path}.mirror", report)
    for index, mirror in enumerate(route.mirrors):
        where = item(f"{path}.mirrors", index) + ".destination"
        checks.destination(mirror.destination, where, report)
    if route.mirror_percent is not None:
        report.warn(
            f"{path}.mirrorPercent", "is deprecated", "use mirrorPercentage.value", "IST0002"
        )
        if route.mirror_percent > 100:
            report.error(f"{path}.mirrorPercent", "is not a percentage", "use 0 to 100")


def _rewrite(route: HTTPRoute, path: str, report: Report) -> None:
    rewrite = route.rewrite
    if rewrite is None:
        return
    if not (rewrite.uri or rewrite.authority or rewrite.uri_regex_rewrite):
        report.error(f"{path}.rewrite", "changes nothing", "set uri, uriRegexRewrite or authority")
    if rewrite.uri_regex_rewrite is not None:
        where = f"{path}.rewrite.uriRegexRewrite"
        if not rewrite.uri_regex_rewrite.match:
            report.error(f"{where}.match", "is required", "write a regular expression")
        checks.regex(rewrite.uri_regex_rewrite.match, f"{where}.match", report)
    regex = any(match.uri and match.uri.regex is not None for match in route.match)
    if rewrite.uri and regex:
        text = "replaces the whole path where the match is a regular expression"
        report.warn(f"{path}.rewrite.uri", text, "use uriRegexRewrite")


def _tls(route: TLSRoute, path: str, spec: VirtualService, report: Report) -> None:
    if not route.match:
        report.error(f"{path}.match", "is required", "match sniHosts")
    for index, match in enumerate(route.match):
        where = item(f"{path}.match", index)
        if not match.sni_hosts:
            report.error(f"{where}.sniHosts", "is required", "name the hosts of the TLS handshake")
        for number, host in enumerate(match.sni_hosts):
            checks.wildcard_host(host, item(f"{where}.sniHosts", number), report)
            if not any(covers(name, host) for name in spec.hosts):
                text = f"{quoted(host)} is not among the hosts of this VirtualService"
                report.error(item(f"{where}.sniHosts", number), text, "add it to hosts")
        for number, subnet in enumerate(match.destination_subnets):
            checks.cidr(subnet, item(f"{where}.destinationSubnets", number), report)
        checks.labels(match.source_labels, f"{where}.sourceLabels", report)
        checks.gateway_names(match.gateways, f"{where}.gateways", report)
    if not route.route:
        report.error(f"{path}.route", "is required", "add a destination")
    _weights(route.route, path, report)


def _tcp(route: TCPRoute, path: str, report: Report) -> None:
    for index, match in enumerate(route.match):
        where = item(f"{path}.match", index)
        for number, subnet in enumerate(match.destination_subnets):
            checks.cidr(subnet, item(f"{where}.destinationSubnets", number), report)
        if match.source_subnet:
            checks.cidr(match.source_subnet, f"{where}.sourceSubnet", report)
        checks.labels(match.source_labels, f"{where}.sourceLabels", report)
        checks.gateway_names(match.gateways, f"{where}.gateways", report)
    if not route.route:
        report.error(f"{path}.route", "is required", "add a destination")
    _weights(route.route, path, report)


def covers(wide: str, narrow: str) -> bool:
    """True when every name that ``narrow`` stands for is one of ``wide``'s (``*.a.com`` covers ``b.a.com``)."""
    if wide in ("*", narrow):
        return True
    if wide.startswith("*"):
        return narrow.removeprefix("*").endswith(wide[1:])
    return False
