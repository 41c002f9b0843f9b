"""DestinationRules: which one applies to a host, and what it says for a port and a subset.

Precedence: rules of the client's namespace, then of the service's, then of the root namespace; in each the most
specific host; equal hosts of one namespace are merged, the oldest's traffic policy wins, subsets add up.
Rules that select the client (``workloadSelector``) hold alone: nothing of the general ones is merged into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from meltemi.model.config import Config
from meltemi.model.destination_rule import (
    ConnectionPoolSettings,
    DestinationRule,
    HTTPSettings,
    LoadBalancerSettings,
    PortTrafficPolicy,
    Subset,
    TCPSettings,
    TrafficPolicy,
)
from meltemi.model.names import resolve_short_name
from meltemi.model.service import Service
from meltemi.push.context import PushContext
from meltemi.translate.build import Build
from meltemi.translate.visibility import covers, is_visible, specificity


@dataclass(frozen=True, eq=False)
class Rule:
    """The DestinationRules of one host as one. ``configs`` are all that contributed, oldest first."""

    policy: TrafficPolicy | None
    subsets: tuple[tuple[Subset, Config[DestinationRule], int], ...]
    configs: tuple[Config[DestinationRule], ...]

    @property
    def selects_clients(self) -> bool:
        """Whether it is for chosen workloads of its own namespace only."""
        return self.configs[0].spec.workload_selector is not None

    @property
    def path(self) -> str:
        """API path of the rule, for telemetry metadata."""
        meta = self.configs[0].meta
        return (
            f"/apis/networking.istio.io/v1/namespaces/{meta.namespace}/destination-rule/{meta.name}"
        )


def _by_namespace(context: PushContext) -> Mapping[str, Sequence[Config[DestinationRule]]]:
    """All rules, oldest first; without this every service would look at every rule."""
    known = context.memo.get("rules by namespace")
    if known is None:
        known = {}
        for config in context.destination_rules:
            known.setdefault(config.meta.namespace, []).append(config)
        context.memo["rules by namespace"] = known
    found: Mapping[str, Sequence[Config[DestinationRule]]] = known
    return found


def _candidates(
    build: Build, namespace: str, host: str, *, outbound: bool
) -> list[Config[DestinationRule]]:
    """Visible rules of one namespace for a host: those with the most specific pattern, oldest first.

    A namespace's own clients see its rules whatever the mesh's default says, but not those whose own ``exportTo``
    leaves them out. Selectors choose clients only.
    """
    context, proxy = build.context, build.proxy
    defaults = context.mesh.default_destination_rule_export_to
    best: list[Config[DestinationRule]] = []
    best_rank: tuple[int, int] | None = None
    for config in _by_namespace(context).get(namespace, ()):
        pattern = resolve_short_name(config.spec.host, namespace, proxy.dns_domain)
        if not covers(pattern, host):
            continue
        wanted = config.spec.workload_selector
        # A rule with a selector is its namespace's own (below), whatever it exports.
        exported = config.spec.export_to if wanted is None else ()
        if (namespace != proxy.namespace or exported) and not is_visible(
            exported, defaults, namespace, proxy.namespace
        ):
            continue
        if wanted is not None and not (
            outbound and namespace == proxy.namespace and proxy.matches(wanted.match_labels)
        ):
            continue
        rank = specificity(pattern)
        if best_rank is None or rank < best_rank:
            best, best_rank = [config], rank
        elif rank == best_rank:
            best.append(config)
    return [config for config in best if config.spec.workload_selector is not None] or best


def _merge(configs: list[Config[DestinationRule]]) -> Rule:
    policy = next((c.spec.traffic_policy for c in configs if c.spec.traffic_policy), None)
    subsets: dict[str, tuple[Subset, Config[DestinationRule], int]] = {}
    for config in configs:
        for index, subset in enumerate(config.spec.subsets):
            subsets.setdefault(subset.name, (subset, config, index))
    return Rule(policy, tuple(subsets.values()), tuple(configs))


def rule_for(build: Build, service: Service, *, outbound: bool = True) -> Rule | None:
    """The rule that applies to a service for this class as its client (else as its server), or None."""
    key = (
        "rule",
        build.proxy.namespace,
        build.proxy.selectors,
        service.hostname,
        service.namespace,
        outbound,
    )
    memo = build.context.memo
    if key in memo:
        found = memo[key]
        return found if isinstance(found, Rule) else None
    made = None
    namespaces = [build.proxy.namespace, service.namespace, build.context.root_namespace]
    for namespace in dict.fromkeys(namespaces):
        configs = _candidates(build, namespace, service.hostname, outbound=outbound)
        if configs:
            made = _merge(configs)
            break
    memo[key] = made
    return made


def _on_port(policy: TrafficPolicy | None, port: int) -> TrafficPolicy | None:
    """The policy at one port: port-level settings replace the four fields, they do not merge."""
    if policy is None:
        return None
    level: PortTrafficPolicy | None = next(
        (s for s in policy.port_level_settings if s.port is not None and s.port.number == port),
        None,
    )
    if level is None:
        return msgspec.structs.replace(policy, port_level_settings=())
    return msgspec.structs.replace(
        policy,
        load_balancer=level.load_balancer,
        connection_pool=level.connection_pool,
        outlier_detection=level.outlier_detection,
        tls=level.tls,
        port_level_settings=(),
    )


def _overlay(base: TrafficPolicy, top: TrafficPolicy) -> TrafficPolicy:
    """A subset's policy over the rule's: field by field."""
    names = [name for name in TrafficPolicy.__struct_fields__ if name != "port_level_settings"]
    changes = {name: getattr(top, name) for name in names if getattr(top, name) is not None}
    return msgspec.structs.replace(
        base, port_level_settings=top.port_level_settings or base.port_level_settings, **changes
    )


def effective_policy(
    build: Build, rule: Rule | None, port: int, subset: Subset | None
) -> TrafficPolicy:
    """What holds for one port of a service and one subset (None for all endpoints)."""
    policy = rule.policy if rule is not None else None
    if subset is not None and subset.traffic_policy is not None:
        # A subset's port-level settings win over the rule's, and both over the general ones.
        top = _on_port(subset.traffic_policy, port)
        base = _on_port(policy, port)
        policy = _overlay(base, top) if base is not None and top is not None else top
    else:
        policy = _on_port(policy, port)
    return _with_defaults(build, policy or TrafficPolicy())


def _with_defaults(build: Build, policy: TrafficPolicy) -> TrafficPolicy:
    defaults = build.context.mesh.default_traffic_policy
    if defaults is None:
        return policy
    return msgspec.structs.replace(
        policy,
        connection_pool=policy.connection_pool or defaults.connection_pool,
        outlier_detection=policy.outlier_detection or defaults.outlier_detection,
    )


def pool_of(policy: TrafficPolicy) -> tuple[TCPSettings, HTTPSettings]:
    """The connection pool's two halves, empty when not set."""
    pool = policy.connection_pool or ConnectionPoolSettings()
    return pool.tcp or TCPSettings(), pool.http or HTTPSettings()


def balancer_of(policy: TrafficPolicy) -> LoadBalancerSettings:
    """The load balancer settings, empty when not set."""
    return policy.load_balancer or LoadBalancerSettings()
