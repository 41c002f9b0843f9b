"""Build Envoy's bootstrap.

In: ``ProxySettings``. Out: the bootstrap as JSON-ready values, Envoy's command line and environment, and
messages about unusable input. Promises JSON (never YAML, whose bare words turn into booleans), an admin port
on loopback only, and that Envoy is not LIVE before it has clusters and listeners from istiod. Files that the
bootstrap names are rendered by ``agent.secrets``.
"""

from __future__ import annotations

import ipaddress
import os.path
from typing import Any

from meltemi.agent import secrets
from meltemi.agent.own_service import add_own_service
from meltemi.agent.probes import HTTP_OPTIONS, TYPE, AppProbes, build_app_probes, mark_option
from meltemi.agent.settings import VERSION, ProxySettings
from meltemi.agent.stats_config import build_stats_config
from meltemi.model.names import BOOTSTRAP_XDS, SDS_DEFAULT, SDS_ROOTCA

XDS_CLUSTER = "xds-grpc"
XDS_LISTENER = "agent-xds"
# Envoy's own limit is 30 s between tries. A proxy that waits that long after istiod is back routes by endpoints
# that have gone meanwhile; the jittered pauses keep a thousand proxies from coming at once.
_RECONNECT = {"retry_back_off": {"base_interval": "0.5s", "max_interval": "3s"}}
ADMIN_CLUSTER = "agent-admin"
_LOG_FORMAT = "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; port 15012 when there is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return address.strip("[]"), 15012
    return host.strip("[]"), int(port)


def is_plaintext(settings: ProxySettings, address: str) -> bool:
    """Whether istiod is reached without TLS there: by its plaintext port, or by configuration."""
    return split_address(address)[1] == 15010 or settings.config.control_plane_auth == "NONE"


def server_name(settings: ProxySettings, address: str) -> str:
    """The DNS name that istiod's certificate must carry."""
    host = split_address(address)[0]
    return settings.istiod_san or host


def build_bootstrap(
    settings: ProxySettings, *, with_token: bool = True, resolver_port: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """The bootstrap.

    ``with_token`` says that a token file exists to authenticate the stream with. ``resolver_port``: Envoy's own DNS
    questions go to that port of this pod; 0 leaves them to /etc/resolv.conf.
    """
    probes, problems = build_app_probes(settings.app_probers, settings.instance_ip, settings.mark)
    bootstrap: dict[str, Any] = {
        "node": build_node(settings),
        "admin": {"address": _socket("127.0.0.1", settings.config.admin_port)},
        "stats_config": build_stats_config(settings),
        "stats_flush_interval": f"{settings.stats_flush_s}s",
        "layered_runtime": _runtime(settings),
        "overload_manager": _overload(settings),
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {"envoy_grpc": {"cluster_name": XDS_CLUSTER, "retry_policy": _RECONNECT}}
                ],
            },
            # Without a timeout Envoy stays INITIALIZING until istiod has answered: not ready, not empty.
            "lds_config": {
                "ads": {},
                "resource_api_version": "V3",
                "initial_fetch_timeout": "0s",
            },
            "cds_config": {
                "ads": {},
                "resource_api_version": "V3",
                "initial_fetch_timeout": "0s",
            },
        },
        "static_resources": {
            "clusters": [
                _xds_cluster(settings, with_token),
                _admin_cluster(settings),
                *probes.clusters,
            ],
            "listeners": [_prometheus_listener(settings), _health_listener(settings, probes)],
        },
    }
    if settings.calls_istiod:
        bootstrap["static_resources"]["listeners"].append(_xds_listener(settings))
    if resolver_port:
        bootstrap["typed_dns_resolver_config"] = _resolver(resolver_port)
    if settings.mark:
        bootstrap["cluster_manager"] = {"upstream_bind_config": _marked_bind(settings.mark)}
    add_own_service(bootstrap, settings)
    return bootstrap, problems


def build_node(settings: ProxySettings) -> dict[str, Any]:
    """The xDS node: Istio's id and metadata keys."""
    labels = dict(settings.labels)
    metadata: dict[str, Any] = {
        **settings.metadata,
        "NAME": settings.pod_name,
        "NAMESPACE": settings.namespace,
        "SERVICE_ACCOUNT": settings.service_account,
        "INSTANCE_IPS": settings.instance_ip,
        "LABELS": labels,
        "ANNOTATIONS": dict(settings.annotations),
        "PROXY_CONFIG": dict(settings.config.raw),
        "INTERCEPTION_MODE": settings.config.interception_mode,
        "ENVOY_STATUS_PORT": settings.health_port,
        "ENVOY_PROMETHEUS_PORT": settings.prometheus_port,
        "PILOT_SAN": [server_name(settings, settings.config.discovery_address)],
    }
    metadata.setdefault("ISTIO_VERSION", VERSION)
    metadata.setdefault("CLUSTER_ID", "Kubernetes")
    metadata.setdefault("MESH_ID", settings.trust_domain)
    metadata.setdefault("WORKLOAD_NAME", settings.pod_name)
    if settings.node_name:
        metadata["NODE_NAME"] = settings.node_name
    if settings.host_ip:
        metadata["HOST_IP"] = settings.host_ip
    if settings.bootstrap_xds:
        metadata[BOOTSTRAP_XDS] = "true"
    if settings.mark:
        metadata["MESH_SO_MARK"] = str(settings.mark)
    if settings.uid != 0 and settings.node_type == "router":
        metadata.setdefault("UNPRIVILEGED_POD", "true")
    network = labels.get("topology.istio.io/network")
    if network:
        metadata["NETWORK"] = network
    place = labels.get("istio-locality", "").replace(".", "/").split("/")
    locality = dict(zip(("region", "zone", "sub_zone"), filter(None, place), strict=False))
    return {
        **({"locality": locality} if locality else {}),
        "id": settings.node_id,
        "cluster": settings.config.service_cluster
        or f"{workload_app(settings)}.{settings.namespace}",
        "metadata": metadata,
    }


def workload_app(settings: ProxySettings) -> str:
    """The canonical service name: by label, else the ``app`` labels, else the workload's name."""
    for key in ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app"):
        if settings.labels.get(key):
            return settings.labels[key]
    return str(settings.metadata.get("WORKLOAD_NAME", settings.pod_name))


def build_environment(settings: ProxySettings) -> dict[str, str]:
    """Variables that shared resources read with ``%ENVIRONMENT(X)%``: what differs between two pods."""
    labels = settings.labels
    version = labels.get("app.kubernetes.io/version") or labels.get("version") or ""
    return {
        "MESH_WORKLOAD": str(settings.metadata.get("WORKLOAD_NAME", settings.pod_name)),
        "MESH_NAMESPACE": settings.namespace,
        "MESH_CANONICAL": workload_app(settings),
        "MESH_REVISION": labels.get("service.istio.io/canonical-revision") or version or "latest",
        "MESH_APP": labels.get("app") or labels.get("app.kubernetes.io/name") or "unknown",
        "MESH_VERSION": version or "unknown",
        "MESH_CLUSTER": str(settings.metadata.get("CLUSTER_ID", "Kubernetes")),
        "MESH_PRINCIPAL": settings.identity,
        "POD_NAME": settings.pod_name,
        "INSTANCE_IP": settings.instance_ip,
    }


def build_arguments(settings: ProxySettings, bootstrap_file: str, override: str = "") -> list[str]:
    """Envoy's flags; ``override`` is the text of a user's bootstrap override, merged by Envoy itself."""
    arguments = [
        *("-c", bootstrap_file),
        *("--drain-time-s", str(max(1, round(settings.config.drain_s)))),
        *("--drain-strategy", "immediate"),
        *("--file-flush-interval-msec", str(round(settings.config.file_flush_interval_s * 1000))),
        "--disable-hot-restart",
        "--allow-unknown-static-fields",
        *("-l", settings.log_level),
        *("--log-format", _LOG_FORMAT),
    ]
    if settings.component_log_level:
        arguments += ["--component-log-level", settings.component_log_level]
    if settings.concurrency:
        arguments += ["--concurrency", str(settings.concurrency)]
    if settings.config.file_flush_min_size_kb:
        arguments += ["--file-flush-min-size-kb", str(settings.config.file_flush_min_size_kb)]
    if override:
        arguments += ["--config-yaml", override]
    return arguments


def _socket(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def _marked_bind(mark: int) -> dict[str, Any]:
    options = [mark_option(mark)]
    return {
        "source_address": {"address": "0.0.0.0", "port_value": 0},
        "socket_options": options,
        # An upstream with an IPv6 address needs a source of its own family.
        "extra_source_addresses": [
            {
                "address": {"address": "::", "port_value": 0},
                "socket_options": {"socket_options": options},
            }
        ],
    }


def _runtime(settings: ProxySettings) -> dict[str, Any]:
    # Istio's limit; the pattern comes from configuration that istiod has checked.
    values: dict[str, Any] = {"re2.max_program_size.error_level": "32768"}
    values.update(settings.config.runtime_values)
    return {
        "layers": [
            {"name": "global config", "static_layer": values},
            {"name": "admin", "admin_layer": {}},
        ]
    }


def _overload(settings: ProxySettings) -> dict[str, Any]:
    """Never run out of file descriptors silently; shed load before the container's memory limit kills."""
    monitors: list[dict[str, Any]] = [
        {
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": TYPE
                + "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": settings.config.downstream_connections
                or 2147483647,
            },
        }
    ]
    actions: list[dict[str, Any]] = []
    if settings.memory_limit_bytes:
        heap = {
            "@type": TYPE + "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
            # A tenth is left for the agent, stacks and binary pages.
            "max_heap_size_bytes": settings.memory_limit_bytes * 9 // 10,
        }
        monitors.append({"name": "envoy.resource_monitors.fixed_heap", "typed_config": heap})
        for action, threshold in (
            ("shrink_heap", 0.90),
            ("disable_http_keepalive", 0.95),
            ("stop_accepting_requests", 0.99),
        ):
            trigger = {
                "name": "envoy.resource_monitors.fixed_heap",
                "threshold": {"value": threshold},
            }
            actions.append({"name": f"envoy.overload_actions.{action}", "triggers": [trigger]})
    return {"refresh_interval": "0.25s", "resource_monitors": monitors, "actions": actions}


def _path_source(directory: str, file: str) -> dict[str, Any]:
    # Nothing but the path: Envoy shares one watch among equal sources, and ``envoy.tls`` names the roots so too.
    path = os.path.join(directory, file)  # noqa: PTH118 -- text for Envoy, not a file here
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def _xds_cluster(settings: ProxySettings, with_token: bool) -> dict[str, Any]:
    address = settings.mtls_address or settings.config.discovery_address
    host, port = split_address(address)
    filters: list[dict[str, Any]] = []
    plaintext = is_plaintext(settings, address)
    if with_token and not settings.mtls_address:
        filters.append(_token_filter(settings))
    filters.append(
        {
            "name": "envoy.filters.http.upstream_codec",
            "typed_config": {
                "@type": TYPE + "extensions.filters.http.upstream_codec.v3.UpstreamCodec"
            },
        }
    )
    options = {
        "@type": HTTP_OPTIONS,
        "explicit_http_config": {
            "http2_protocol_options": {
                # A dead istiod is noticed in well under a minute, although the stream is mostly silent.
                "connection_keepalive": {"interval": "30s", "timeout": "10s"}
            }
        },
        "http_filters": filters,
    }
    cluster: dict[str, Any] = {
        "name": XDS_CLUSTER,
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {HTTP_OPTIONS.rpartition("/")[2]: options},
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 30, "keepalive_interval": 10}
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "priority": priority,
                    "max_connections": 100000,
                    "max_pending_requests": 100000,
                    "max_requests": 100000,
                }
                for priority in ("DEFAULT", "HIGH")
            ]
        },
        "load_assignment": {
            "cluster_name": XDS_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(host, port)}}]}],
        },
    }
    if not _is_ip(host):
        cluster["cluster_type"] = _dns_cluster()
    if not plaintext:
        cluster["transport_socket"] = _xds_tls(settings)
    return cluster


def _dns_cluster() -> dict[str, Any]:
    """All addresses of the name; found within two seconds of its appearance, kept for a minute."""
    config = {
        "@type": TYPE + "extensions.clusters.dns.v3.DnsCluster",
        "dns_lookup_family": "V4_PREFERRED",
        "respect_dns_ttl": True,
        "dns_refresh_rate": "60s",
        "dns_failure_refresh_rate": {"base_interval": "0.2s", "max_interval": "2s"},
    }
    return {"name": "envoy.clusters.dns", "typed_config": config}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _token_filter(settings: ProxySettings) -> dict[str, Any]:
    generic = {
        "@type": TYPE + "extensions.http.injected_credentials.generic.v3.Generic",
        "credential": {
            "name": "xds-token",
            "sds_config": _path_source(settings.config_dir, secrets.XDS_TOKEN_FILE),
        },
        "header": "authorization",
        "header_value_prefix": "Bearer ",
    }
    return {
        "name": "envoy.filters.http.credential_injector",
        "typed_config": {
            "@type": TYPE + "extensions.filters.http.credential_injector.v3.CredentialInjector",
            "overwrite": True,
            "credential": {
                "name": "envoy.http.injected_credentials.generic",
                "typed_config": generic,
            },
        },
    }


def _xds_tls(settings: ProxySettings) -> dict[str, Any]:
    """Verify istiod by the roots that peers are verified by, which hold the mesh's, and by its name."""
    name = server_name(settings, settings.config.discovery_address)
    common: dict[str, Any] = {
        "alpn_protocols": ["h2"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}]
            },
            "validation_context_sds_secret_config": {
                "name": SDS_ROOTCA,
                "sds_config": _path_source(settings.credentials_dir, secrets.ROOTCA_FILE),
            },
        },
    }
    if settings.mtls_address:
        source = _path_source(settings.credentials_dir, secrets.DEFAULT_FILE)
        common["tls_certificate_sds_secret_configs"] = [{"name": SDS_DEFAULT, "sds_config": source}]
    context = {
        "@type": TYPE + "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": name,
        "common_tls_context": common,
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _admin_cluster(settings: ProxySettings) -> dict[str, Any]:
    address = _socket("127.0.0.1", settings.config.admin_port)
    return {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "load_assignment": {
            "cluster_name": ADMIN_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _listener(
    name: str, port: int, routes: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> dict[str, Any]:
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": TYPE + "extensions.filters.http.router.v3.Router"},
    }
    hcm = {
        "@type": TYPE
        + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "generate_request_id": False,
        "route_config": {
            "virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": routes}]
        },
        "http_filters": [*filters, router],
    }
    chain = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]
    }
    return {
        "name": name,
        "address": _socket("0.0.0.0", port),
        "ignore_global_conn_limit": True,
        "filter_chains": [chain],
    }


def _xds_listener(settings: ProxySettings) -> dict[str, Any]:
    """The agent's own way to istiod: Envoy adds TLS and the token. Only this container sees the socket."""
    route = {
        "match": {"prefix": "/"},
        "route": {"cluster": XDS_CLUSTER, "timeout": "0s", "idle_timeout": "0s"},
    }
    listener = _listener(XDS_LISTENER, 0, [route], [])
    listener["stat_prefix"] = XDS_LISTENER
    listener["address"] = {"pipe": {"path": settings.xds_socket, "mode": 0o600}}
    hcm = listener["filter_chains"][0]["filters"][0]["typed_config"]
    hcm.update(codec_type="HTTP2", stream_idle_timeout="0s")
    return listener


def _resolver(port: int) -> dict[str, Any]:
    config = {
        "@type": TYPE + "extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [_socket("127.0.0.1", port)],
    }
    return {"name": "envoy.network.dns_resolver.cares", "typed_config": config}


def _admin_route(path: str, target: str) -> dict[str, Any]:
    return {
        "match": {"path": path},
        "route": {"cluster": ADMIN_CLUSTER, "prefix_rewrite": target, "timeout": "15s"},
    }


def _prometheus_listener(settings: ProxySettings) -> dict[str, Any]:
    routes = [_admin_route("/stats/prometheus", "/stats/prometheus")]
    return _listener("prometheus", settings.prometheus_port, routes, [])


def _health_listener(settings: ProxySettings, probes: AppProbes) -> dict[str, Any]:
    """``/healthz/ready`` is Envoy's own ``/ready``: LIVE, initial configuration received, not draining."""
    routes = [_admin_route("/healthz/ready", "/ready"), *probes.routes]
    return _listener("agent", settings.health_port, routes, [*probes.filters])
