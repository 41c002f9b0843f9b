"""What a cluster needs of its endpoints, with everything about the asking proxy already resolved."""

from __future__ import annotations

from meltemi.ir.value import Pairs, value


@value
class LocalityPolicy:
    """How endpoints are ranked for one proxy.

    ``distribute`` holds (locality prefix, weight) of the rule that matches the proxy's locality.
    ``failover`` is (from region, to region). ``priority_labels`` are (label, the proxy's value), most
    important first. Without outlier detection Envoy cannot fail over, so ``enabled`` is False then. ``node``:
    endpoints of this node come before all others. ``by_region``: only regions are ranked, below the labels; what
    is between zones is left to Envoy's zone-aware routing, to which subzones are nothing.
    """

    enabled: bool = False
    distribute: tuple[tuple[str, int], ...] = ()
    failover: tuple[tuple[str, str], ...] = ()
    priority_labels: Pairs = ()
    node: str = ""
    by_region: bool = False


@value
class EndpointNeed:
    """The endpoints of one EDS cluster, as one class of proxies sees them."""

    cluster: str
    hostname: str
    namespace: str
    port_name: str
    port: int
    subset: Pairs = ()
    locality: str = ""  # of the proxy
    # Endpoints of other networks are reached through their gateways: (network, ((address, port), ...)).
    network: str = ""
    gateways: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    ranges: tuple[tuple[str, str], ...] = ()  # (CIDR, network) of endpoints that name none
    clusters: tuple[tuple[str, str], ...] = ()  # (cluster, network)
    local_only: bool = False  # a gateway between networks hands over to its own network only
    policy: LocalityPolicy = LocalityPolicy()
    # (labels, port) of workloads whose policy refuses mTLS; port 0 is every port, no labels every workload.
    plaintext: tuple[tuple[Pairs, int], ...] = ()
    node: str = ""  # internalTrafficPolicy: Local keeps to this node
    draining: bool = False  # keep serving persistent sessions on draining endpoints
    region: str = ""  # endpoints of this region only
    workload: str = ""  # endpoints of this workload only
    only_cluster: str = ""  # endpoints of this cluster only
