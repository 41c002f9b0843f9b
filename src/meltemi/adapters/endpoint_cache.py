"""The endpoints that proxies have: one encoded ClusterLoadAssignment per need, made when it is asked for or in advance.

In: the world's endpoint index, which counts versions by service. Out: mappings from clusters to encoded resources, shared by all
classes that need the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from meltemi.adapters.metrics import Metrics
from meltemi.adapters.world import World
from meltemi.envoy import encode_endpoints
from meltemi.ir.endpoint import EndpointNeed
from meltemi.model.resource import Resource
from meltemi.model.service import Endpoint
from meltemi.registry.index import ServiceKey


@dataclass(frozen=True, slots=True)
class FrozenEndpoints:
    """The endpoint index at one moment, for the worker thread."""

    held: Mapping[ServiceKey, tuple[Endpoint, ...]]

    def endpoints(self, hostname: str, namespace: str) -> tuple[Endpoint, ...]:
        """All endpoints of a service."""
        return self.held.get(ServiceKey(hostname, namespace), ())


class EndpointView(Mapping[str, Resource]):
    """The ClusterLoadAssignments of one class, encoded when asked for and remembered until they change."""

    def __init__(self, needs: Mapping[str, EndpointNeed], cache: EndpointCache) -> None:
        self.needs = needs
        self._cache = cache
        by_service: dict[ServiceKey, list[str]] = {}
        for need in needs.values():
            key = ServiceKey(need.hostname, need.namespace)
            by_service.setdefault(key, []).append(need.cluster)
        self.by_service = by_service

    def __getitem__(self, cluster: str) -> Resource:
        return self._cache.resource(self.needs[cluster])

    def __iter__(self) -> Iterator[str]:
        return iter(self.needs)

    def __len__(self) -> int:
        return len(self.needs)


class EndpointCache:
    """Encoded ClusterLoadAssignments of all classes, by need and by version of the service's endpoints."""

    def __init__(self, world: World, metrics: Metrics) -> None:
        self._world = world
        self._hits, self._misses = (metrics.cache_reads.labels(kind) for kind in ("hit", "miss"))
        self._made: dict[EndpointNeed, tuple[int, Resource]] = {}

    def __len__(self) -> int:
        return len(self._made)

    def resource(self, need: EndpointNeed) -> Resource:
        """The assignment as it is now."""
        index = self._world.registry.endpoints
        version = index.version(need.hostname, need.namespace)
        known = self._made.get(need)
        if known is not None and known[0] == version:
            self._hits.inc()
            return known[1]
        self._misses.inc()
        made = encode_endpoints(need, index.endpoints(need.hostname, need.namespace))
        self._made[need] = (version, made)
        return made

    def retain(self, needs: set[EndpointNeed]) -> None:
        """Forget what no class needs any more."""
        for need in [need for need in list(self._made) if need not in needs]:
            self._made.pop(need, None)

    def warm(
        self,
        needs: Iterable[EndpointNeed],
        frozen: FrozenEndpoints,
        versions: Mapping[ServiceKey, int],
    ) -> None:
        """Encode in advance, in the worker thread."""
        for need in needs:
            version = versions.get(ServiceKey(need.hostname, need.namespace), 0)
            known = self._made.get(need)
            if known is None or known[0] != version:
                found = frozen.endpoints(need.hostname, need.namespace)
                self._made[need] = (version, encode_endpoints(need, found))
