"""What an HTTP rule does: forward, redirect or answer; with retries, faults, mirrors and CORS."""

from __future__ import annotations

import base64
import binascii

from meltemi.config.validate_virtual_service import GRPC_STATUS
from meltemi.ir.route import (
    Action,
    Cors,
    DirectResponse,
    Fault,
    Forward,
    Mirror,
    Redirect,
    RetryPolicy,
    RouteMatch,
    StringMatch,
)
from meltemi.model.config import Config
from meltemi.model.traffic import (
    CorsPolicy,
    FaultAbort,
    HTTPFaultInjection,
    HTTPRedirect,
    HTTPRetry,
    HTTPRoute,
    VirtualService,
)
from meltemi.translate.build import Build
from meltemi.translate.destinations import cluster_of, hashes_for, weighted
from meltemi.translate.header_ops import authority_of
from meltemi.translate.http_match import Place, string_match
from meltemi.translate.proxy_settings import forwarded_host

# Istio's defaults for routes without a retry policy.
DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
DEFAULT_ATTEMPTS = 2
DEFAULT_STATUS_CODES = (503,)
_GRPC_STATUS = {name: number for number, name in enumerate(GRPC_STATUS)}


def default_retry(build: Build) -> RetryPolicy | None:
    """Retries of routes that say nothing: the mesh's, else two."""
    own = build.context.mesh.default_http_retry_policy
    if own is not None:
        return retry_policy(own)
    return RetryPolicy(DEFAULT_RETRY_ON, DEFAULT_ATTEMPTS, status_codes=DEFAULT_STATUS_CODES)


def retry_policy(retry: HTTPRetry) -> RetryPolicy | None:
    """A rule's retries. Numbers in ``retryOn`` are status codes. None when they are off."""
    if retry.attempts <= 0:
        return None
    words = [word.strip() for word in retry.retry_on.split(",") if word.strip()]
    codes = tuple(int(word) for word in words if word.isdecimal())
    conditions = [word for word in words if not word.isdecimal()]
    if not words:
        conditions, codes = [DEFAULT_RETRY_ON], DEFAULT_STATUS_CODES
    elif codes and "retriable-status-codes" not in conditions:
        conditions.append("retriable-status-codes")
    return RetryPolicy(
        on=",".join(conditions),
        attempts=retry.attempts,
        per_try_timeout_s=retry.per_try_timeout,
        status_codes=codes,
        avoid_previous_hosts=retry.retry_ignore_previous_hosts is not False,
        prefer_other_priorities=bool(retry.retry_remote_localities),
        backoff_s=retry.backoff,
    )


def _percent(value: object, fallback: float = 100.0) -> float:
    found = getattr(value, "value", None)
    return float(found) if found is not None else fallback


def build_fault(fault: HTTPFaultInjection | None) -> Fault | None:
    """Faults of a rule; a delay and an abort may both apply. Without a percentage there are none, as documented."""
    if fault is None or (fault.delay is None and fault.abort is None):
        return None
    delay, abort = fault.delay, fault.abort
    status, grpc = _abort_codes(abort)
    return Fault(
        delay_s=delay.fixed_delay if delay is not None else None,
        delay_percent=_percent(delay.percentage, float(delay.percent))
        if delay is not None
        else 0.0,
        abort_status=status,
        abort_grpc=grpc,
        abort_percent=_percent(abort.percentage, 0.0) if abort is not None else 0.0,
    )


def _abort_codes(abort: FaultAbort | None) -> tuple[int | None, int | None]:
    if abort is None:
        return None, None
    if abort.http_status is not None:
        return abort.http_status, None
    if abort.grpc_status:
        word = abort.grpc_status.upper()
        return None, int(word) if word.isdecimal() else _GRPC_STATUS.get(word)
    return None, None


def build_cors(cors: CorsPolicy | None) -> Cors | None:
    """A rule's CORS policy."""
    if cors is None:
        return None
    origins = [string_match(match) for match in cors.allow_origins]
    origins += [
        StringMatch("regex", ".*") if origin == "*" else StringMatch("exact", origin)
        for origin in cors.allow_origin
    ]
    return Cors(
        origins=tuple(StringMatch("regex", ".*") if o.kind == "present" else o for o in origins),
        methods=cors.allow_methods,
        headers=cors.allow_headers,
        expose=cors.expose_headers,
        max_age_s=cors.max_age,
        credentials=cors.allow_credentials,
        forward_unmatched=None
        if cors.unmatched_preflights == "UNSPECIFIED"
        else cors.unmatched_preflights == "FORWARD",
    )


def _redirect(redirect: HTTPRedirect, place: Place) -> Redirect:
    port = redirect.port or 0
    if redirect.derive_port == "FROM_REQUEST_PORT":
        port = place.port
    path, prefix = redirect.uri, redirect.prefix_rewrite
    if path.startswith("%PREFIX()%"):
        path, prefix = "", path.removeprefix("%PREFIX()%")
    return Redirect(
        code=redirect.redirect_code or 301,
        path=path,
        prefix=prefix,
        host=redirect.authority,
        port=port,
        scheme=redirect.scheme,
    )


def _direct(rule: HTTPRoute) -> DirectResponse:
    answer = rule.direct_response
    status = answer.status if answer is not None else 500
    body = answer.body if answer is not None else None
    if body is not None and body.bytes is not None:
        try:
            return DirectResponse(status, body_bytes=base64.b64decode(body.bytes, validate=True))
        except (binascii.Error, ValueError):
            return DirectResponse(status)
    return DirectResponse(status, body=body.string or "" if body is not None else "")


def _mirrors(
    build: Build, config: Config[VirtualService], rule: HTTPRoute, port: int
) -> tuple[Mirror, ...]:
    namespace = config.meta.namespace
    if rule.mirror is not None:
        percent = float(rule.mirror_percent) if rule.mirror_percent is not None else 100.0
        percent = _percent(rule.mirror_percentage, percent)
        cluster = cluster_of(build, rule.mirror, namespace, port)
        return (Mirror(cluster, percent),) if percent > 0 else ()
    return tuple(
        Mirror(cluster_of(build, entry.destination, namespace, port), _percent(entry.percentage))
        for entry in rule.mirrors
        if _percent(entry.percentage) > 0
    )


def _forward(
    build: Build, config: Config[VirtualService], rule: HTTPRoute, match: RouteMatch, place: Place
) -> Forward:
    rewrite = rule.rewrite
    regex = None
    prefix = rewrite.uri if rewrite is not None else ""
    if rewrite is not None and rewrite.uri_regex_rewrite is not None:
        regex = (rewrite.uri_regex_rewrite.match, rewrite.uri_regex_rewrite.rewrite)
    elif prefix and match.path.kind == "prefix" and _drops_slash(match.path.value, prefix):
        # '/api/' -> '/' by plain replacement is right; '/api' -> '/' would leave '//v1' of '/api/v1'.
        regex = (f"^{_quote(match.path.value)}(/?)(.*)", r"/\2")
        prefix = ""
    elif prefix and match.path.kind == "regex":
        regex, prefix = ("^.*$", prefix), ""
    host = rewrite.authority if rewrite is not None else ""
    host = host or authority_of(rule.headers)
    for target in rule.route[:1] if len(rule.route) == 1 else ():
        host = host or authority_of(target.headers)
    return Forward(
        clusters=weighted(build, config, rule.route, place.port),
        timeout_s=rule.timeout or 0.0,
        retry=retry_policy(rule.retries) if rule.retries is not None else default_retry(build),
        prefix_rewrite=prefix,
        regex_rewrite=regex,
        host_rewrite=host,
        forwarded_host=bool(host) and forwarded_host(build),
        mirrors=_mirrors(build, config, rule, place.port),
        hashes=hashes_for(build, config, rule.route, place.port),
    )


def _drops_slash(prefix: str, replacement: str) -> bool:
    return replacement == "/" and not prefix.endswith("/")


def _quote(text: str) -> str:
    """Escape a literal for RE2."""
    return "".join(c if c.isalnum() or c in "/_-~" else f"\\{c}" for c in text)


def build_action(
    build: Build, config: Config[VirtualService], rule: HTTPRoute, match: RouteMatch, place: Place
) -> Action | None:
    """The action of one rule, or None when it names none (a finding of validation)."""
    if rule.redirect is not None:
        return _redirect(rule.redirect, place)
    if rule.direct_response is not None:
        return _direct(rule)
    if not rule.route:
        return None
    return _forward(build, config, rule, match, place)
