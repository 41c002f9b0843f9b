"""Gauges of the mesh's state, counted whenever somebody looks: it changes too often to be counted at each change.

In: the pipeline. Out: values of Istio's gauges. Names and meanings are Istio's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from meltemi.adapters.metrics import Metrics
from meltemi.adapters.pipeline import Pipeline
from meltemi.model.names import resolve_short_name
from meltemi.model.proxy import NodeType
from meltemi.model.service import Endpoint, Health, Resolution
from meltemi.push import PushContext

_DNS = (Resolution.DNS_LB, Resolution.DNS_ROUND_ROBIN_LB)
# Findings of translation: two services on one port of one workload, and on one address and port of its clients.
_INBOUND_CONFLICT, _OUTBOUND_CONFLICT = "MLT0102", "MLT0101"


def follow(metrics: Metrics, pipeline: Pipeline) -> None:
    """Have the gauges tell of this pipeline."""
    registry = pipeline.world.registry
    state = _State(pipeline)
    for gauge, count in (
        (metrics.pending_pods, lambda: len(registry.pending_pods)),
        (metrics.no_instances, lambda: state.without_endpoints(Resolution.CLIENT_SIDE_LB)),
        (metrics.dns_without_endpoints, lambda: state.without_endpoints(*_DNS)),
        (metrics.not_ready, state.not_ready),
        (metrics.dup_domains, state.dup_domains),
        (metrics.dup_subsets, state.dup_subsets),
        (metrics.unknown_pods, state.unknown_pods),
        (metrics.no_targets, state.no_targets),
        (metrics.inbound_conflicts, lambda: state.conflicts(_INBOUND_CONFLICT)),
        (metrics.outbound_conflicts, lambda: state.conflicts(_OUTBOUND_CONFLICT)),
        (metrics.cache_size, lambda: len(pipeline.cache)),
    ):
        gauge.set_function(count)


class _State:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def _endpoints(self, *resolutions: Resolution) -> Iterable[tuple[Endpoint, ...]]:
        context = self._pipeline.context
        index = self._pipeline.world.registry.endpoints
        return (
            index.endpoints(service.hostname, service.namespace)
            for service in (context.services if context is not None else ())
            if service.resolution in resolutions
        )

    def without_endpoints(self, *resolutions: Resolution) -> int:
        """Services that are found in this way, and have none."""
        return sum(not found for found in self._endpoints(*resolutions))

    def not_ready(self) -> int:
        """Endpoints that get no traffic."""
        found = self._endpoints(Resolution.CLIENT_SIDE_LB)
        return sum(one.health is Health.UNHEALTHY for group in found for one in group)

    def dup_domains(self) -> int:
        """Hosts that a second VirtualService of the mesh claims."""
        return _repeated(_mesh_hosts(self._pipeline.context))

    def dup_subsets(self) -> int:
        """Subsets that a second DestinationRule of the same host names."""
        context = self._pipeline.context
        rules = context.destination_rules if context is not None else ()
        return _repeated(
            (
                rule.meta.namespace,
                resolve_short_name(rule.spec.host, rule.meta.namespace),
                subset.name,
            )
            for rule in rules
            for subset in rule.spec.subsets
        )

    def unknown_pods(self) -> int:
        """Connected proxies whose pod or WorkloadEntry nobody knows."""
        registry = self._pipeline.world.registry.snapshot()
        return sum(
            not any(registry.workload(address) for address in connection.proxy.addresses)
            for connection in self._pipeline.connections
        )

    def no_targets(self) -> int:
        """Connected sidecars that serve no port of any Service."""
        views = map(self._pipeline.view_of, self._pipeline.connections)
        classes = [view.proxy_class for view in views if view is not None]
        return sum(one.type is NodeType.SIDECAR and not one.targets for one in classes)

    def conflicts(self, code: str) -> int:
        """Places that lost a conflict of this kind, over all classes of proxies."""
        views = list(self._pipeline.views.values())
        return len({f.origin for view in views for f in view.ir.findings if f.code == code})


def _mesh_hosts(context: PushContext | None) -> Iterable[str]:
    for config in context.virtual_services if context is not None else ():
        if not config.spec.gateways or "mesh" in config.spec.gateways:
            for host in config.spec.hosts:
                yield resolve_short_name(host, config.meta.namespace)


def _repeated(entries: Iterable[object]) -> int:
    return sum(count - 1 for count in Counter(entries).values())
