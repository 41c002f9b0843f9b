"""The application's own probes, answered by Envoy.

In: the JSON of ``ISTIO_KUBE_APP_PROBERS`` (path -> the probe as the user wrote it, ports as numbers). Out:
routes, clusters and HTTP filters for the health listener of the bootstrap. An HTTP probe is a route to the
application. A TCP or gRPC probe is Envoy's own health check of the application, which a kubelet reads over
HTTP: no Python stands between a kubelet and a container. The injector writes the JSON.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TYPE = "type.googleapis.com/envoy."
HTTP_OPTIONS = TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions"


@dataclass(frozen=True, slots=True)
class AppProbes:
    """Pieces of the health listener. ``filters`` go before the router."""

    routes: tuple[dict[str, Any], ...] = ()
    clusters: tuple[dict[str, Any], ...] = ()
    filters: tuple[dict[str, Any], ...] = ()


def build_app_probes(text: str, address: str, mark: int = 0) -> tuple[AppProbes, list[str]]:
    """Pieces for every probe of the JSON ``text``, and messages about entries that cannot be used.

    ``address`` is where the application listens (the pod's own); ``mark`` the socket mark or 0.
    """
    if not text:
        return AppProbes(), []
    try:
        probes = json.loads(text)
        items = sorted(probes.items())
    except (ValueError, AttributeError) as error:
        return AppProbes(), [f"ISTIO_KUBE_APP_PROBERS is not a JSON object: {error}"]
    routes, clusters, filters, problems = [], {}, [], []
    for path, probe in items:
        name = path.strip("/").replace("/", "_")
        try:
            if "httpGet" in probe:
                cluster = _http_cluster(probe["httpGet"], address, mark)
                routes.append(_http_route(path, probe, cluster["name"]))
            else:
                cluster = _checked_cluster(name, probe, address, mark)
                filters.append(_health_filter(path, cluster["name"]))
                routes.append(_unreached_route(path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"ISTIO_KUBE_APP_PROBERS {path}: {type(error).__name__} {error}")
            continue
        clusters[cluster["name"]] = cluster
    return AppProbes(tuple(routes), tuple(clusters.values()), tuple(filters)), problems


def bind_config(address: str, mark: int) -> dict[str, Any]:
    """Bind as Envoy does for its application, so that capture leaves the connection alone."""
    source = "::6" if ipaddress.ip_address(address).version == 6 else "127.0.0.6"
    config: dict[str, Any] = {"source_address": {"address": source, "port_value": 0}}
    if mark:
        config["socket_options"] = [mark_option(mark)]
    return config


def mark_option(mark: int) -> dict[str, Any]:
    """SOL_SOCKET (1), SO_MARK (36), set before connecting."""
    return {
        "description": "mark",
        "level": 1,
        "name": 36,
        "int_value": mark,
        "state": "STATE_PREBIND",
    }


def _cluster(name: str, address: str, port: int, mark: int, timeout_s: float) -> dict[str, Any]:
    endpoint = {"address": {"socket_address": {"address": address, "port_value": port}}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": f"{timeout_s}s",
        "upstream_bind_config": bind_config(address, mark),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
    }


def _http_cluster(get: Mapping[str, Any], address: str, mark: int) -> dict[str, Any]:
    tls = str(get.get("scheme", "HTTP")).upper() == "HTTPS"
    port = int(get["port"])
    cluster = _cluster(f"app-probe-{'https' if tls else 'http'}-{port}", address, port, mark, 1)
    if tls:
        # A kubelet does not verify the certificate of a probed application either.
        context = {"@type": TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext"}
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": context,
        }
    return cluster


def _http_route(path: str, probe: Mapping[str, Any], cluster: str) -> dict[str, Any]:
    get = probe["httpGet"]
    target = str(get.get("path") or "/")
    if not target.startswith("/"):
        target = "/" + target
    action: dict[str, Any] = {
        "cluster": cluster,
        "timeout": f"{float(probe.get('timeoutSeconds') or 1)}s",
        # A probe's path may carry a query; the whole path of the request is replaced.
        "regex_rewrite": {
            "pattern": {"regex": "^.*$"},
            "substitution": target.replace("\\", "\\\\"),
        },
    }
    route: dict[str, Any] = {
        "match": {"path": path},
        "route": action,
        # A redirect is a success; without its target a kubelet has nothing to follow.
        "response_headers_to_remove": ["location"],
    }
    headers = []
    for header in get.get("httpHeaders") or ():
        if str(header["name"]).lower() == "host":
            action["host_rewrite_literal"] = str(header["value"])
        else:
            value = str(header["value"]).replace("%", "%%")
            headers.append(
                {
                    "header": {"key": str(header["name"]), "value": value},
                    "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                }
            )
    if headers:
        route["request_headers_to_add"] = headers
    return route


def _checked_cluster(
    name: str, probe: Mapping[str, Any], address: str, mark: int
) -> dict[str, Any]:
    grpc = "grpc" in probe
    port = int((probe["grpc"] if grpc else probe["tcpSocket"])["port"])
    period_s = max(1.0, float(probe.get("periodSeconds") or 10))
    timeout_s = float(probe.get("timeoutSeconds") or 1)
    cluster = _cluster(f"app-probe-{name}", address, port, mark, timeout_s)
    check: dict[str, Any] = {
        "timeout": f"{timeout_s}s",
        "interval": f"{period_s}s",
        # Envoy checks a cluster without traffic once a minute by default; this one has no other traffic.
        "no_traffic_interval": f"{period_s}s",
        "unhealthy_interval": f"{min(period_s, 1.0)}s",
        "healthy_threshold": 1,
        "unhealthy_threshold": 1,
        "interval_jitter": "0.1s",
    }
    if grpc:
        service = probe["grpc"].get("service") or ""
        check["grpc_health_check"] = {"service_name": service} if service else {}
        options = {"@type": HTTP_OPTIONS, "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {HTTP_OPTIONS.rpartition("/")[2]: options}
    else:
        check["tcp_health_check"] = {}
    cluster["health_checks"] = [check]
    return cluster


def _health_filter(path: str, cluster: str) -> dict[str, Any]:
    return {
        "name": "envoy.filters.http.health_check",
        "typed_config": {
            "@type": TYPE + "extensions.filters.http.health_check.v3.HealthCheck",
            "pass_through_mode": False,
            "headers": [{"name": ":path", "string_match": {"exact": path}}],
            "cluster_min_healthy_percentages": {cluster: {"value": 100}},
        },
    }


def _unreached_route(path: str) -> dict[str, Any]:
    """Listed so that the route table names every probe; the health check filter answers first."""
    return {"match": {"path": path}, "direct_response": {"status": 503}}
