"""What DestinationRules say about bytes: idle time, age, hashing, and tunnels through an HTTP proxy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meltemi.ir.route import HashPolicy
from meltemi.model.config import Config
from meltemi.model.service import Service
from meltemi.model.traffic import RouteDestination, VirtualService
from meltemi.translate.build import Build
from meltemi.translate.cluster_policy import hash_policy
from meltemi.translate.destinations import port_of, service_of
from meltemi.translate.rules import effective_policy, pool_of, rule_for


@dataclass(frozen=True, slots=True)
class TcpTuning:
    """Settings of a TCP proxy; durations in seconds. ``tunnel_host`` is ``host:port`` behind the HTTP proxy."""

    idle_timeout_s: float | None = None
    max_duration_s: float | None = None
    hashes: tuple[HashPolicy, ...] = ()
    tunnel_host: str = ""
    tunnel_post: bool = False


def service_tuning(build: Build, service: Service, port: int, subset: str = "") -> TcpTuning:
    """The settings of one destination."""
    rule = rule_for(build, service)
    subsets = rule.subsets if rule is not None else ()
    chosen = next((entry for entry, _, _ in subsets if entry.name == subset), None)
    policy = effective_policy(build, rule, port, chosen)
    tcp = pool_of(policy)[0]
    hashing = hash_policy(policy)
    tunnel = policy.tunnel
    host = ""
    if tunnel is not None and tunnel.target_host:
        name = tunnel.target_host
        host = f"[{name}]:{tunnel.target_port}" if ":" in name else f"{name}:{tunnel.target_port}"
    return TcpTuning(
        idle_timeout_s=tcp.idle_timeout,
        max_duration_s=tcp.max_connection_duration,
        hashes=(hashing,) if hashing is not None and hashing.kind == "source_ip" else (),
        tunnel_host=host,
        tunnel_post=tunnel is not None and tunnel.protocol == "POST",
    )


def route_tuning(
    build: Build,
    config: Config[VirtualService],
    targets: Iterable[RouteDestination],
    listen_port: int,
) -> TcpTuning:
    """The settings that hold for all destinations of a rule: those of the first, one proxy serves them all."""
    for target in targets:
        _, service = service_of(build, target.destination, config.meta.namespace)
        if service is not None:
            port = port_of(target.destination, service, listen_port)
            return service_tuning(build, service, port, target.destination.subset)
    return TcpTuning()
