"""Destinations that are resolved by the name a request asks for: the DNS cache that cluster and filters share."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2
from envoy.extensions.common.dynamic_forward_proxy.v3 import dns_cache_pb2
from envoy.extensions.filters.http.dynamic_forward_proxy.v3 import dynamic_forward_proxy_pb2
from envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3 import (
    sni_dynamic_forward_proxy_pb2,
)

MAX_NAMES = 1024  # Envoy's own default, stated because it bounds what clients can make us remember


@lru_cache(maxsize=1)
def dns_cache() -> Any:
    """The one cache. Envoy demands that all users of a name configure it alike."""
    made = dns_cache_pb2.DnsCacheConfig(
        name="meltemi", dns_lookup_family=cluster_pb2.Cluster.V4_PREFERRED
    )
    made.max_hosts.value = MAX_NAMES
    return made


def by_name_filter() -> Any:
    """The HTTP filter: resolves the authority of requests whose route leads to such a cluster."""
    return dynamic_forward_proxy_pb2.FilterConfig(dns_cache_config=dns_cache())


def by_sni_filter(port: int) -> Any:
    """The network filter: resolves the SNI, and connects to that host's ``port``."""
    return sni_dynamic_forward_proxy_pb2.FilterConfig(dns_cache_config=dns_cache(), port_value=port)
