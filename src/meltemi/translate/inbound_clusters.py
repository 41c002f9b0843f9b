"""The way from a sidecar to its own workload: one cluster per inbound port.

Connection limits are those of a Sidecar (its listener's own, else ``inboundConnectionPool``), else those that the
service's DestinationRule gives to clients: the receiving side must not be narrower than what they may send.
"""

from __future__ import annotations

from dataclasses import replace

from meltemi.ir.cluster import (
    Balancer,
    Balancing,
    Cluster,
    ClusterType,
    HttpOptions,
    HttpVersion,
    StaticEndpoint,
)
from meltemi.ir.value import Origins
from meltemi.model.destination_rule import ConnectionPoolSettings, TrafficPolicy
from meltemi.model.names import inbound_cluster
from meltemi.model.service import Port
from meltemi.model.topology import IstioIngressListener
from meltemi.push.classes import ServiceTarget
from meltemi.translate import cluster_policy as tuning
from meltemi.translate.build import Build
from meltemi.translate.clusters import INBOUND_BIND
from meltemi.translate.rules import effective_policy, pool_of, rule_for
from meltemi.translate.stat_names import stat_name
from meltemi.translate.tcp_tuning import TcpTuning

LOOPBACK = "127.0.0.1"


def inbound_tuning(build: Build, listener: IstioIngressListener | None) -> TcpTuning:
    """What a Sidecar says about bytes to the workload. Clients themselves keep to what a DestinationRule says."""
    tcp = pool_of(TrafficPolicy(connection_pool=_own_pool(build, listener)))[0]
    return TcpTuning(idle_timeout_s=tcp.idle_timeout, max_duration_s=tcp.max_connection_duration)


def _own_pool(build: Build, listener: IstioIngressListener | None) -> ConnectionPoolSettings | None:
    """Of the listener, else of the workload's Sidecar."""
    pool = listener.connection_pool if listener is not None else None
    sidecar = build.scope.sidecar
    return sidecar.spec.inbound_connection_pool if pool is None and sidecar is not None else pool


def _policy(
    build: Build, target: ServiceTarget, listener: IstioIngressListener | None
) -> TrafficPolicy:
    pool = _own_pool(build, listener)
    if pool is not None:
        return TrafficPolicy(connection_pool=pool)
    service = build.scope.by_host.get(target.hostname)
    if service is None:
        return TrafficPolicy()
    policy = effective_policy(build, rule_for(build, service, outbound=False), target.port, None)
    return TrafficPolicy(connection_pool=policy.connection_pool)


def _http(build: Build, target: ServiceTarget, policy: TrafficPolicy) -> HttpOptions:
    """HTTP to the application: what the port declares; h2UpgradePolicy is between proxies only."""
    port = Port(target.port_name, target.port, target.protocol)
    found = tuning.http_options(policy, build.context.mesh, port)
    version = found.version
    if version is HttpVersion.HTTP2 and not target.protocol.is_http2:
        version = HttpVersion.DOWNSTREAM if target.protocol.is_unknown else HttpVersion.NONE
    if target.protocol.is_unknown:
        version = HttpVersion.DOWNSTREAM
    return replace(found, version=version)


def _endpoint(build: Build, text: str, number: int) -> StaticEndpoint | int | None:
    """Where the application is: a fixed place, another port of the address that was called, or that very address."""
    if text.startswith("unix://"):
        return StaticEndpoint("", 0, path=text.removeprefix("unix://"))
    if text:
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        if host in ("0.0.0.0", "::"):
            return int(port)
        return StaticEndpoint(host, int(port))
    if build.context.mesh.inbound_traffic_policy.mode == "LOCALHOST":
        return StaticEndpoint(LOOPBACK, number)
    return None


def inbound_service_cluster(
    build: Build,
    target: ServiceTarget,
    listener: IstioIngressListener | None = None,
    *,
    captured: bool = True,
    origins: Origins = (),
) -> Cluster:
    """The cluster of one inbound port. Without capture there is no original address, so it is the loopback."""
    policy = _policy(build, target, listener)
    mesh = build.context.mesh
    number = target.target_port
    where = _endpoint(build, listener.default_endpoint if listener is not None else "", number)
    if not captured and not isinstance(where, StaticEndpoint):
        where = StaticEndpoint(LOOPBACK, where or number)
    static = isinstance(where, StaticEndpoint)
    tcp = pool_of(policy)[0]
    service = (target.hostname, target.service_name, target.namespace)
    pattern = mesh.inbound_cluster_stat_name if target.hostname else ""
    return Cluster(
        name=inbound_cluster(number),
        stat_name=stat_name(pattern, service, target.port, target.port_name, number, ""),
        type=ClusterType.STATIC if static else ClusterType.ORIGINAL_DST,
        endpoints=(where,) if isinstance(where, StaticEndpoint) else (),
        original_dst_port=where if isinstance(where, int) else 0,
        balancer=Balancer(policy=Balancing.ROUND_ROBIN if static else Balancing.CLUSTER_PROVIDED),
        connect_timeout_s=tcp.connect_timeout or mesh.connect_timeout,
        thresholds=tuning.thresholds(policy),
        http=_http(build, target, policy),
        keepalive=tuning.keepalive(policy, mesh) if policy.connection_pool else None,
        tcp_idle_timeout_s=tcp.idle_timeout,
        bind_address="" if static else INBOUND_BIND,
        socket_mark=0 if static else build.proxy.mark,
        service=service if target.hostname else None,
        origins=origins,
    )
