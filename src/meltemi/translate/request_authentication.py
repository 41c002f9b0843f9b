"""RequestAuthentication: which tokens are accepted at a workload, and where their keys come from.

A request without a token passes (unless a rule's ``presence`` or an AuthorizationPolicy asks for one); one whose tokens are all invalid, or of an issuer that
nobody named, is refused. Keys are given inline, or fetched by the proxy or by istiod, from an address that is written down or that the
issuer's OpenID discovery document gives; a rule whose keys cannot be had refuses every token of its issuer.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from meltemi.ir.cluster import Cluster, ClusterType, HttpOptions, HttpVersion, StaticEndpoint
from meltemi.ir.jwt import JwtAuthn, JwtProvider, RemoteKeys
from meltemi.ir.tls import SanMatch, UpstreamTls
from meltemi.model.config import AnyConfig, Config
from meltemi.model.names import outbound_cluster
from meltemi.model.security import JWTRule, RequestAuthentication
from meltemi.translate.build import Build
from meltemi.translate.key_sets import NO_KEYS, usable_keys

# Claims that hold several words (RFC 8693 and common practice); Istio splits these always.
_LIST_CLAIMS = ("scope", "permission")
_TIMEOUT_S = 5.0


def key_cluster(build: Build, uri: str) -> tuple[str, Cluster | None]:
    """(name, cluster) for a key set's address; None when the mesh already has a cluster for its host and port.

    Raises ValueError for an address that is none.
    """
    parts = urlsplit(uri)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{uri!r} is not an HTTP address")
    port = parts.port or (443 if secure else 80)
    service = build.scope.by_host.get(host)
    if service is not None and service.port(port) is not None and not service.mesh_external:
        return outbound_cluster(host, port, ""), None
    name = f"jwks|{port}||{host}" + ("|tls" if secure else "")
    return name, Cluster(
        name=name,
        type=ClusterType.STRICT_DNS,
        connect_timeout_s=build.context.mesh.connect_timeout,
        endpoints=(StaticEndpoint(host, port),),
        http=HttpOptions(version=HttpVersion.NONE),
        tls=UpstreamTls(sni=host, system_roots=True, sans=(SanMatch("dns", "exact", host),))
        if secure
        else None,
        dns_refresh_s=build.context.mesh.dns_refresh_rate,
        external=True,
    )


def _keys(
    build: Build, config: Config[RequestAuthentication], rule: JWTRule, path: str
) -> str | RemoteKeys:
    if rule.jwks:
        return _checked(build, config, rule, f"{path}.jwks", rule.jwks)
    held = build.context.issuer_keys
    uri = _address(build, rule)
    try:
        if not uri:
            raise ValueError("its discovery document has not been read yet")
        name, _ = key_cluster(build, uri)
        if not held.by_proxies and uri not in held.sets:
            raise ValueError(f"{uri} has not been fetched yet")
    except ValueError as problem:
        build.report(
            "MLT0214",
            f"no keys for issuer {rule.issuer}: {problem}; its tokens are refused",
            config.origin(path),
            "see that istiod reaches the issuer, or add jwks or jwksUri",
        )
        return NO_KEYS
    if not held.by_proxies:
        return _checked(build, config, rule, f"{path}.jwksUri", held.sets[uri])
    timeout = rule.timeout if rule.timeout else _TIMEOUT_S
    return RemoteKeys(uri, name, timeout, held.refresh_s)


def _address(build: Build, rule: JWTRule) -> str:
    """Where the keys are: written down, or found by OpenID discovery; "" while that has not succeeded."""
    return rule.jwks_uri or build.context.issuer_keys.addresses.get(rule.issuer, "")


def _checked(
    build: Build, config: Config[RequestAuthentication], rule: JWTRule, path: str, text: str
) -> str:
    """The usable keys of a key set."""
    keys, problems = usable_keys(text)
    for problem in problems:
        build.report(
            "MLT0215",
            f"a key of issuer {rule.issuer} is not used: {problem}",
            config.origin(path),
            "paste the key set as the issuer publishes it",
        )
    return keys


def _provider(
    build: Build, config: Config[RequestAuthentication], rule: JWTRule, path: str
) -> JwtProvider:
    return JwtProvider(
        issuer=rule.issuer,
        keys=_keys(build, config, rule, path),
        audiences=rule.audiences,
        headers=tuple((entry.name, entry.prefix) for entry in rule.from_headers),
        params=rule.from_params,
        cookies=rule.from_cookies,
        payload_header=rule.output_payload_to_header,
        claim_headers=tuple((e.header, e.claim) for e in rule.output_claim_to_headers),
        forward=rule.forward_original_token,
        list_claims=tuple(dict.fromkeys((*_LIST_CLAIMS, *rule.space_delimited_claims))),
        required=rule.presence == "REQUIRED",
        origins=(config.origin(path),),
    )


def jwt_filter(build: Build, configs: Iterable[AnyConfig]) -> tuple[JwtAuthn, ...]:
    """The filter for all rules of these policies; nothing without rules."""
    found = [
        _provider(build, config, rule, f"spec.jwtRules[{index}]")
        for config in configs
        for index, rule in enumerate(config.spec.jwt_rules)
    ]
    if not found:
        return ()
    origins = tuple(config.origin() for config in configs)
    return (JwtAuthn(tuple(found), clear_route_cache=build.proxy.is_gateway, origins=origins),)


def key_clusters(build: Build, configs: Iterable[AnyConfig]) -> list[Cluster]:
    """Clusters that only serve to fetch keys."""
    found: dict[str, Cluster] = {}
    for config in configs:
        for rule in config.spec.jwt_rules:
            uri = _address(build, rule)
            if rule.jwks or not uri or not build.context.issuer_keys.by_proxies:
                continue
            try:
                name, made = key_cluster(build, uri)
            except ValueError:
                continue
            if made is not None:
                found[name] = made
    return list(found.values())
