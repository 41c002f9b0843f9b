"""All services, workloads and endpoints of the mesh, whatever platform they came from.

``Registry`` is a frozen snapshot of services and workloads: part of the PushContext. ``EndpointIndex`` is what changes all the
time: it is mutable, lives at the edge of the rim, and bypasses the snapshot. An update tells exactly which services changed, so
that only their ClusterLoadAssignments are encoded again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from meltemi.model.frozen import EMPTY_MAP, FrozenMap
from meltemi.model.service import Endpoint, Port, Service, Workload

WORKLOAD_ENTRY = "WorkloadEntry"  # kind of a workload that no pod stands for


class ServiceKey(NamedTuple):
    """Identity of a service: two namespaces may define the same host."""

    hostname: str
    namespace: str


class ServiceTarget(NamedTuple):
    """A service port that a workload serves, and the workload's own port for it."""

    service: Service
    port: Port
    target_port: int


@dataclass(frozen=True)
class Registry:
    """Services by host name and workloads by address, at one moment.

    ``services`` maps a host name to its definitions, ordered: Kubernetes' own first, then oldest first (so element 0
    wins where no namespace decides). ``workloads`` maps an address to what runs there; pods on the host network share one.
    ``entry_addresses`` holds the addresses that ServiceEntries list themselves: (hostname, namespace) -> address -> port name
    -> number.
    """

    services: Mapping[str, tuple[Service, ...]] = field(default_factory=lambda: EMPTY_MAP)
    workloads: Mapping[str, tuple[Workload, ...]] = field(default_factory=lambda: EMPTY_MAP)
    entry_addresses: Mapping[ServiceKey, Mapping[str, Mapping[str, int]]] = field(
        default_factory=lambda: EMPTY_MAP
    )

    @cached_property
    def by_namespace(self) -> Mapping[str, tuple[Service, ...]]:
        """Services by the namespace that defines them."""
        found: dict[str, list[Service]] = {}
        for group in self.services.values():
            for service in group:
                found.setdefault(service.namespace, []).append(service)
        return FrozenMap((name, tuple(group)) for name, group in found.items())

    @cached_property
    def all_services(self) -> tuple[Service, ...]:
        """Every service, by host name, then namespace."""
        ordered = (service for group in self.services.values() for service in group)
        return tuple(sorted(ordered, key=lambda service: (service.hostname, service.namespace)))

    @cached_property
    def by_address(self) -> Mapping[str, tuple[Service, ...]]:
        """Services by virtual IP."""
        found: dict[str, list[Service]] = {}
        for service in self.all_services:
            for address in (*service.addresses, *service.auto_allocated):
                found.setdefault(address, []).append(service)
        return FrozenMap((name, tuple(group)) for name, group in found.items())

    @cached_property
    def _selecting(self) -> Mapping[tuple[str, str, str], list[Service]]:
        """(namespace, label, value) -> services whose selector has it; each service under one of its labels only."""
        found: dict[tuple[str, str, str], list[Service]] = {}
        for service in self.all_services:
            # Any label would do: one that does not match already rules the service out.
            for key, value in sorted(service.selector_labels.items())[-1:]:
                found.setdefault((service.namespace, key, value), []).append(service)
        return found

    @cached_property
    def _listing(self) -> Mapping[str, list[tuple[ServiceKey, Mapping[str, int]]]]:
        """``entry_addresses`` by address."""
        found: dict[str, list[tuple[ServiceKey, Mapping[str, int]]]] = {}
        for key, addresses in self.entry_addresses.items():
            for address, ports in addresses.items():
                found.setdefault(address, []).append((key, ports))
        return found

    def service(self, hostname: str, namespace: str = "") -> Service | None:
        """The service of that host, defined in ``namespace`` if there is one, else the first."""
        group = self.services.get(hostname, ())
        for candidate in group:
            if candidate.namespace == namespace:
                return candidate
        return group[0] if group else None

    def workload(self, address: str, namespace: str = "", name: str = "") -> Workload | None:
        """What runs at an address; ``namespace`` and ``name`` choose among pods on the host network."""
        group = self.workloads.get(address, ())
        for candidate in group:
            if (not namespace or candidate.namespace == namespace) and (
                not name or candidate.name == name
            ):
                return candidate
        return None

    def service_targets(self, workload: Workload) -> tuple[ServiceTarget, ...]:
        """What a workload itself serves, ordered by service age, then port.

        A Service or ServiceEntry selects it by labels in its own namespace; a ServiceEntry may also list its address. A port
        whose name the workload does not declare is left out. UDP is not proxied and is left out too.
        """
        found: list[ServiceTarget] = []
        candidates = (
            service
            for label in workload.labels.items()
            for service in self._selecting.get((workload.namespace, *label), ())
        )
        for service in candidates:
            chosen = service.selector_labels
            if all(workload.labels.get(key) == value for key, value in chosen.items()):
                for port in service.ports:
                    number = target_port(port, workload)
                    if number:
                        found.append(ServiceTarget(service, port, number))
        listed = {pair for address in workload.addresses for pair in self._listing.get(address, ())}
        for key, ports in sorted(listed, key=lambda pair: pair[0]):
            found.extend(self._listed(key, ports))
        found = [target for target in found if target.port.protocol.value != "UDP"]
        found.sort(key=lambda t: (t.service.meta.created, t.service.hostname, t.port.number))
        return tuple(found)

    def _listed(self, key: ServiceKey, ports: Mapping[str, int]) -> Iterable[ServiceTarget]:
        service = self.service(key.hostname, key.namespace)
        for port in service.ports if service else ():
            if service and ports.get(port.name):
                yield ServiceTarget(service, port, ports[port.name])


def target_port(port: Port, workload: Workload) -> int:
    """The workload's own port for a service port; 0 when it declares no port of that name.

    A WorkloadEntry gives its ports by the name of the service's port; a pod's are named for themselves.
    """
    if workload.workload_kind == WORKLOAD_ENTRY:
        own = dict(workload.ports)
        return own.get(port.name) or own.get(port.target_name) or port.target_port or port.number
    if port.target_name:
        return next((number for name, number in workload.ports if name == port.target_name), 0)
    return port.target_port or port.number


class EndpointIndex:
    """Endpoints per service, in shards: one per EndpointSlice, ServiceEntry or remote cluster.

    An update costs what the service holds, whatever the size of the mesh; reading is a look-up.
    ``version`` of a service grows with every real change, so that whoever cached an encoding knows when it is stale.
    Not thread-safe: it belongs to one event loop.
    """

    def __init__(self) -> None:
        self._shards: dict[ServiceKey, dict[str, tuple[Endpoint, ...]]] = {}
        self._joined: dict[ServiceKey, tuple[Endpoint, ...]] = {}
        self._versions: dict[ServiceKey, int] = {}
        self._serial = 0

    def set(self, key: ServiceKey, shard: str, endpoints: Iterable[Endpoint]) -> bool:
        """Replace one shard; True when that changed the service's endpoints. Storing an equal value does nothing."""
        fresh = tuple(endpoints)
        shards = self._shards.get(key, {})
        if shards.get(shard, ()) == fresh:
            return False
        return self._replace(key, {**shards, shard: fresh})

    def remove(self, key: ServiceKey, shard: str) -> bool:
        """Forget one shard; True when that changed the service's endpoints."""
        shards = self._shards.get(key, {})
        if shard not in shards:
            return False
        return self._replace(key, {name: held for name, held in shards.items() if name != shard})

    def _replace(self, key: ServiceKey, shards: dict[str, tuple[Endpoint, ...]]) -> bool:
        before = self.endpoints(*key)
        kept = {name: held for name, held in shards.items() if held}
        if kept:
            self._shards[key] = kept
        else:
            self._shards.pop(key, None)
        del self._joined[key]
        # Slices may overlap while an address moves between them: then nothing changed for the proxies.
        if self.endpoints(*key) == before:
            return False
        self._serial += 1
        self._versions[key] = self._serial
        return True

    def endpoints(self, hostname: str, namespace: str) -> tuple[Endpoint, ...]:
        """All endpoints of a service, every port; ordered by shard name, then as the platform lists them."""
        key = ServiceKey(hostname, namespace)
        joined = self._joined.get(key)
        if joined is None:
            shards = self._shards.get(key, {})
            merged = (endpoint for name in sorted(shards) for endpoint in shards[name])
            # Kubernetes may list one address in two slices while it moves between them.
            joined = tuple(dict.fromkeys(merged))
            self._joined[key] = joined
        return joined

    def version(self, hostname: str, namespace: str) -> int:
        """Grows whenever the service's endpoints change; 0 before the first."""
        return self._versions.get(ServiceKey(hostname, namespace), 0)

    def shards(self) -> Mapping[ServiceKey, Mapping[str, tuple[Endpoint, ...]]]:
        """A copy of everything, for debug output."""
        return {key: dict(shards) for key, shards in self._shards.items()}
