"""Verification of JSON Web Tokens as an Envoy message."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import http_uri_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2

from meltemi.envoy.anys import duration
from meltemi.ir.jwt import JWT_FILTER, PAYLOAD, JwtAuthn, JwtProvider, RemoteKeys

# Envoy counts in whole seconds here; with less than one it would fetch without a pause.
_REFRESH_MIN_S = 1.0
# How soon a failed fetch is tried again.
_RETRY_S = 1.0


def _remote(keys: RemoteKeys) -> Any:
    """Fetched before the first token comes; until then tokens are refused, other requests pass."""
    return config_pb2.RemoteJwks(
        http_uri=http_uri_pb2.HttpUri(
            uri=keys.uri, cluster=keys.cluster, timeout=duration(keys.timeout_s)
        ),
        cache_duration=duration(max(keys.refresh_s, _REFRESH_MIN_S)),
        async_fetch=config_pb2.JwksAsyncFetch(
            fast_listener=True, failed_refetch_duration=duration(_RETRY_S)
        ),
    )


def _provider(entry: JwtProvider, *, clear_route_cache: bool) -> Any:
    made = config_pb2.JwtProvider(
        issuer=entry.issuer,
        audiences=entry.audiences,
        forward=entry.forward,
        from_params=entry.params,
        from_cookies=entry.cookies,
        forward_payload_header=entry.payload_header,
        payload_in_metadata=PAYLOAD,
        clear_route_cache=clear_route_cache,
    )
    if isinstance(entry.keys, RemoteKeys):
        made.remote_jwks.CopyFrom(_remote(entry.keys))
    else:
        made.local_jwks.inline_string = entry.keys
    for name, prefix in entry.headers:
        made.from_headers.add(name=name, value_prefix=prefix)
    for header, claim in entry.claim_headers:
        made.claim_to_headers.add(header_name=header, claim_name=claim)
    made.normalize_payload_in_metadata.space_delimited_claims.extend(entry.list_claims)
    return made


def _all_of(
    required: list[config_pb2.JwtRequirement], optional: config_pb2.JwtRequirement
) -> config_pb2.JwtRequirement:
    """One requirement of all. Envoy wants two parts at least, and parts that can fail."""
    parts = [*required, optional] if len(optional.requires_any.requirements) > 1 else required
    if not required:
        return optional
    if len(parts) == 1:
        return parts[0]
    made = config_pb2.JwtRequirement()
    made.requires_all.requirements.extend(parts)
    return made


def jwt_authn(entry: JwtAuthn) -> tuple[str, Any]:
    """The HTTP filter: every required token, and of the others a valid one or none at all."""
    made = config_pb2.JwtAuthentication(bypass_cors_preflight=True)
    optional = config_pb2.JwtRequirement()
    required: list[config_pb2.JwtRequirement] = []
    for index, provider in enumerate(entry.providers):
        name = f"origins-{index}"
        made.providers[name].CopyFrom(
            _provider(provider, clear_route_cache=entry.clear_route_cache)
        )
        if provider.required:
            required.append(config_pb2.JwtRequirement(provider_name=name))
        else:
            optional.requires_any.requirements.add(provider_name=name)
    optional.requires_any.requirements.add().allow_missing.SetInParent()
    requirement = _all_of(required, optional)
    made.rules.add(match=route_components_pb2.RouteMatch(prefix="/"), requires=requirement)
    return JWT_FILTER, made
