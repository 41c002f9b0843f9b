"""What a proxy's own settings change about its connections: ``proxyHeaders`` and ``connectionSettings``.

In: a connection manager as a kind of proxy has it by default. Out: the same with the settings over it. What is not set
leaves the default alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from meltemi.ir.http_filter import Router
from meltemi.ir.listener import HttpManager
from meltemi.ir.proxy import ProxyIR
from meltemi.ir.route import RouteConfig
from meltemi.model.mesh import ConnectionSettings, ProxyHeaders, SetCurrentClientCertDetails
from meltemi.translate.build import Build

# What Envoy recommends for proxies at an edge, as Istio's profile EDGE has it.
_EDGE = ConnectionSettings(
    listener_per_connection_buffer_limit_bytes=32 * 1024,
    cluster_per_connection_buffer_limit_bytes=32 * 1024,
    http_idle_timeout=3600.0,
    http_request_timeout=300.0,
    http_stream_idle_timeout=300.0,
    http_max_concurrent_streams=100,
    http2_initial_stream_window_size=64 * 1024,
    http2_initial_connection_window_size=1024 * 1024,
    http_request_headers_timeout=60.0,
    http_headers_with_underscores_action="HEADERS_WITH_UNDERSCORES_REJECT_REQUEST",
    http_merge_slashes=True,
    http_path_with_escaped_slashes_action="UNESCAPE_AND_REDIRECT",
)
_NOTHING = ConnectionSettings()
_TIMES = (
    ("idle_timeout_s", "http_idle_timeout"),
    ("max_connection_duration_s", "http_max_connection_duration"),
    ("max_stream_duration_s", "http_max_stream_duration"),
    ("stream_idle_timeout_s", "http_stream_idle_timeout"),
    ("request_timeout_s", "http_request_timeout"),
    ("request_headers_timeout_s", "http_request_headers_timeout"),
    ("drain_timeout_s", "http_drain_timeout"),
    ("max_concurrent_streams", "http_max_concurrent_streams"),
    ("h2_stream_window", "http2_initial_stream_window_size"),
    ("h2_connection_window", "http2_initial_connection_window_size"),
    ("merge_slashes", "http_merge_slashes"),
)


def connection_settings(build: Build) -> ConnectionSettings:
    """The settings of connections; the profile EDGE fills in at gateways what is not set."""
    given = build.settings.connection_settings
    if given is None:
        return _NOTHING
    if given.profile != "EDGE" or not build.proxy.is_gateway:
        return given
    unset = {
        name: getattr(_EDGE, name)
        for name in ConnectionSettings.__struct_fields__
        if getattr(given, name) == getattr(_NOTHING, name)
    }
    return msgspec.structs.replace(given, **unset)


def proxy_headers(build: Build) -> ProxyHeaders:
    """The headers that the proxy adds by itself."""
    return build.settings.proxy_headers or ProxyHeaders()


def forwarded_host(build: Build) -> bool:
    """Whether a host that is rewritten is told in X-Forwarded-Host."""
    setting = proxy_headers(build).x_forwarded_host
    return setting is not None and bool(setting.enabled)


def shaped(build: Build, manager: HttpManager) -> HttpManager:
    """A connection manager with the proxy's settings over it."""
    return replace(manager, **_connections(build), **_headers(build, manager))


def shaped_resources(build: Build, made: ProxyIR) -> ProxyIR:
    """The configuration of a class with what the proxy's settings say about whole listeners, clusters and tables."""
    settings, headers = connection_settings(build), proxy_headers(build)
    limit = settings.listener_per_connection_buffer_limit_bytes
    if limit is not None:
        made = replace(
            made, listeners=tuple(replace(entry, buffer_limit=limit) for entry in made.listeners)
        )
    limit = settings.cluster_per_connection_buffer_limit_bytes
    if limit is not None:
        made = replace(
            made, clusters=tuple(replace(entry, buffer_limit=limit) for entry in made.clusters)
        )
    if headers.preserve_http1_header_case:
        clusters = (
            replace(entry, http=replace(entry.http, preserve_header_case=True))
            for entry in made.clusters
        )
        made = replace(made, clusters=tuple(clusters))
    if headers.attempt_count is not None and headers.attempt_count.disabled:
        made = replace(made, routes=tuple(_uncounted(table) for table in made.routes))
    return made


def _uncounted(table: RouteConfig) -> RouteConfig:
    hosts = tuple(replace(host, attempt_count=False) for host in table.virtual_hosts)
    return replace(table, virtual_hosts=hosts)


def _connections(build: Build) -> dict[str, Any]:
    settings = connection_settings(build)
    changes = {
        mine: getattr(settings, theirs)
        for mine, theirs in _TIMES
        if getattr(settings, theirs) is not None
    }
    underscores = settings.http_headers_with_underscores_action.removeprefix(
        "HEADERS_WITH_UNDERSCORES_"
    )
    if underscores != "UNSPECIFIED":
        changes["underscores"] = "" if underscores == "ALLOW" else underscores
    escaped = settings.http_path_with_escaped_slashes_action
    if escaped != "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED":
        changes["escaped_slashes"] = escaped
    return changes


def _headers(build: Build, manager: HttpManager) -> dict[str, Any]:
    headers = proxy_headers(build)
    changes: dict[str, Any] = {"preserve_header_case": bool(headers.preserve_http1_header_case)}
    if headers.request_id is not None and headers.request_id.disabled:
        changes["generate_request_id"] = False
    if headers.server is not None and headers.server.disabled:
        changes["server_header"] = "PASS_THROUGH"
    elif headers.server is not None and headers.server.value:
        changes |= {"server_header": "", "server_name": headers.server.value}
    if headers.envoy_debug_headers is not None and headers.envoy_debug_headers.disabled:
        changes["filters"] = tuple(
            Router(quiet=True) if isinstance(entry, Router) else entry for entry in manager.filters
        )
    if headers.x_forwarded_port is not None and headers.x_forwarded_port.enabled:
        changes["append_forwarded_port"] = True
    if manager.forward_client_cert:
        changes["client_cert_details"] = _details(manager, headers.set_current_client_cert_details)
        # Gateways have gatewayTopology for this.
        if headers.forwarded_client_cert != "UNDEFINED" and not build.proxy.is_gateway:
            changes["forward_client_cert"] = headers.forwarded_client_cert
    return changes


def _details(manager: HttpManager, wanted: SetCurrentClientCertDetails | None) -> tuple[str, ...]:
    usual = manager.client_cert_details
    if wanted is None:
        return usual
    return tuple(
        name
        for name in ("subject", "cert", "chain", "dns", "uri")
        if (name in usual if getattr(wanted, name) is None else getattr(wanted, name))
    )
