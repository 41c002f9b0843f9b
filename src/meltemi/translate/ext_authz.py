"""External authorizers of the mesh configuration: an extension provider's name to the filter that asks it."""

from __future__ import annotations

from dataclasses import dataclass

from meltemi.ir.authorization import CheckBody, ExtAuthz
from meltemi.ir.value import Origins
from meltemi.model.names import outbound_cluster
from meltemi.model.providers import EnvoyExtAuthzGrpc, EnvoyExtAuthzHttp, ExtAuthzRequestBody
from meltemi.translate.authorization_rules import string_match
from meltemi.translate.build import Build

# Istio's default: the authorizer may ask a person.
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Authorizer:
    """How the filter will be used: the metadata that switches it on, and for which kind of traffic."""

    shadow_prefix: str
    policy_prefix: str
    origins: Origins
    http: bool


def find_authorizer(build: Build, name: str, use: Authorizer) -> ExtAuthz | str:
    """The filter, or why there is none."""
    for provider in build.context.mesh.extension_providers:
        if provider.name != name:
            continue
        spec = provider.envoy_ext_authz_grpc or provider.envoy_ext_authz_http
        if spec is None:
            return "the extension provider is not an authorizer"
        if not use.http and isinstance(spec, EnvoyExtAuthzHttp):
            return "an HTTP authorizer cannot decide about TCP connections"
        return _filter(build, spec, use)
    return "there is no extension provider of this name"


def _filter(
    build: Build, spec: EnvoyExtAuthzGrpc | EnvoyExtAuthzHttp, use: Authorizer
) -> ExtAuthz | str:
    namespace, _, host = spec.service.rpartition("/")
    service = build.scope.by_host.get(host)
    if service is None or (namespace and service.namespace != namespace):
        return f"this proxy knows no service {spec.service}"
    if service.port(spec.port) is None:
        return f"service {host} has no port {spec.port}"
    if spec.status_on_error and not _is_status(spec.status_on_error):
        return f"statusOnError {spec.status_on_error!r} is not an HTTP status"
    common = {
        "cluster": outbound_cluster(host, spec.port, ""),
        "authority": host,
        "shadow_prefix": use.shadow_prefix,
        "policy_prefix": use.policy_prefix,
        "timeout_s": spec.timeout or _TIMEOUT_S,
        "fail_open": spec.fail_open,
        "clear_route_cache": spec.clear_route_cache,
        "status_on_error": int(spec.status_on_error or 403),
        "body": _body(spec.include_request_body_in_check),
        "origins": use.origins,
    }
    if isinstance(spec, EnvoyExtAuthzGrpc):
        return ExtAuthz(grpc=True, **common)  # type: ignore[arg-type]
    requested = spec.include_request_headers_in_check or spec.include_headers_in_check
    return ExtAuthz(
        grpc=False,
        path_prefix=spec.path_prefix,
        request_headers=tuple(map(string_match, requested)),
        extra_headers=tuple(sorted(spec.include_additional_headers_in_check.items())),
        upstream_headers=tuple(map(string_match, spec.headers_to_upstream_on_allow)),
        deny_headers=tuple(map(string_match, spec.headers_to_downstream_on_deny)),
        allow_headers=tuple(map(string_match, spec.headers_to_downstream_on_allow)),
        **common,  # type: ignore[arg-type]
    )


def _is_status(text: str) -> bool:
    return text.isdecimal() and 100 <= int(text[:4]) < 600


def _body(settings: ExtAuthzRequestBody | None) -> CheckBody | None:
    if settings is None:
        return None
    return CheckBody(
        settings.max_request_bytes, settings.allow_partial_message, settings.pack_as_bytes
    )
