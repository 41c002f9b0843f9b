"""Which statistics Envoy keeps, and how its histograms are cut.

In: ``ProxySettings``. Out: the ``stats_config`` of the bootstrap. The inclusion list is the biggest lever on
a sidecar's memory and start-up time (1,000 clusters: 114 MB -> 84 MB), so it is always there; users widen it
with ``proxyStatsMatcher`` or the annotations of Istio.
"""

from __future__ import annotations

import re
from typing import Any

from meltemi.agent.settings import ProxySettings

# Istio's default inclusion list, and our own scope "istio." of the request metrics.
PREFIXES = (
    *("istio.", "cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "wasm"),
    "control_plane.",
)
# The health check filter reads the membership of the clusters behind TCP and gRPC probes from statistics.
PROBE_PREFIX = "cluster.app-probe-"
SUFFIXES = (
    "rbac.allowed",
    "rbac.denied",
    "shadow_allowed",
    "shadow_denied",
    "downstream_cx_active",
    "downstream_rq_active",
)
# Bounds of Istio's dashboards, in milliseconds or bytes.
BUCKETS = (
    *(0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000),
    *(300000, 600000, 1800000, 3600000),
)
_ANNOTATION = "sidecar.istio.io/statsInclusion"
# Istio's labels of what authorization decided, and of what policies under dry run would have.
_POLICY_TAGS = (
    {"tag_name": "authz_enforce_result", "regex": r"rbac(\.(allowed|denied))$"},
    {"tag_name": "authz_dry_run_action", "regex": r"(\.istio_dry_run_(allow|deny)_)"},
    {"tag_name": "authz_dry_run_result", "regex": r"(\.shadow_(allowed|denied))$"},
)


def build_stats_config(settings: ProxySettings) -> dict[str, Any]:
    """The ``stats_config``; tags of names are extracted where there are any: policies', and what the user asked for."""
    config, notes = settings.config, settings.annotations
    prefixes = (*config.stats_prefixes, *_split(notes.get(_ANNOTATION + "Prefixes", "")))
    suffixes = (*config.stats_suffixes, *_split(notes.get(_ANNOTATION + "Suffixes", "")))
    regexps = (*config.stats_regexps, *_split(notes.get(_ANNOTATION + "Regexps", "")))
    needed = (*PREFIXES, PROBE_PREFIX) if settings.app_probers else PREFIXES
    if "*" in prefixes:
        matcher: dict[str, Any] = {"reject_all": False}
    else:
        patterns: list[dict[str, Any]] = [
            {"prefix": p} for p in dict.fromkeys((*needed, *prefixes))
        ]
        patterns += [{"suffix": s} for s in dict.fromkeys((*SUFFIXES, *suffixes))]
        patterns += [{"safe_regex": {"regex": r}} for r in dict.fromkeys(regexps)]
        matcher = {"inclusion_list": {"patterns": patterns}}
    widened = bool(prefixes or suffixes or regexps)
    return {
        "use_all_default_tags": False,
        "stats_tags": [*_POLICY_TAGS, *(_tags(settings.dns_domain) if widened else ())],
        "stats_matcher": matcher,
        "histogram_bucket_settings": _histograms(settings),
    }


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _histograms(settings: ProxySettings) -> list[dict[str, Any]]:
    custom = [
        {"match": {"prefix": "istio" if prefix == "istiocustom" else prefix}, "buckets": [*bounds]}
        for prefix, bounds in settings.histogram_buckets.items()
    ]
    return [*custom, {"match": {"prefix": "istio."}, "buckets": [*BUCKETS]}]


def _tags(domain: str) -> list[dict[str, Any]]:
    """Tags of the statistics that users add: by cluster, listener and response code class.

    A cluster name holds dots, so its end is known only by the cluster's domain.
    """
    suffix = re.escape(".".join(domain.split(".")[1:]))
    return [
        {
            "tag_name": "cluster_name",
            "regex": rf"^cluster\.((?:[a-z]+\|[0-9]+\|[^|]*\|[^|]*?{suffix}|[^.]+)\.)",
        },
        {
            "tag_name": "http_conn_manager_prefix",
            "regex": r"^http\.(((?:[_.[:digit:]]*|[_\[\]aAbBcCdDeEfF[:digit:]]*)|[^.]+)\.)",
        },
        {
            "tag_name": "listener_address",
            "regex": r"^listener\.((.*?)\.)(?:downstream|http|ssl|worker|no_filter|server_ssl)",
        },
        {"tag_name": "response_code_class", "regex": r"_rq(_(\dxx))$"},
        {"tag_name": "response_code", "regex": r"_rq(_(\d{3}))$"},
    ]
