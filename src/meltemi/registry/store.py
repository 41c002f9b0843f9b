"""Keeps what the platforms say, and turns one event into the exact set of things that it changed.

In: decoded Kubernetes structs, ServiceEntry and WorkloadEntry configs, one at a time. Out: ``Changes``, a frozen ``Registry`` on demand,
and an ``EndpointIndex`` that is always up to date. No I/O and no clock: whoever watches calls ``put`` and ``drop``.

    store = RegistryStore(RegistrySettings(trust_domain="cluster.local"))
    changes = store.put(decode_endpoint_slice(raw))       # -> Changes(endpoints={ServiceKey(...)}): EDS only
    changes = store.put(decode_service(raw))              # -> Changes(services={hostname}): a full push
    changes = store.put_config(config)                    # ServiceEntry or WorkloadEntry (put_configs: a first list)
    registry = store.snapshot()                           # the same object until a service or workload changes

Order does not matter: a slice that arrives before its pods waits for them. Storing an equal value changes nothing.
Not thread-safe: it belongs to one event loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from meltemi.model import kubernetes as k8s
from meltemi.model.config import Config, Key
from meltemi.model.frozen import FrozenMap
from meltemi.model.names import kube_hostname
from meltemi.model.service import Service, Workload
from meltemi.model.topology import ServiceEntry, WorkloadEntry
from meltemi.registry import allocation
from meltemi.registry import from_kubernetes as kube
from meltemi.registry import from_service_entry as entries
from meltemi.registry.from_kubernetes import RegistrySettings
from meltemi.registry.index import WORKLOAD_ENTRY, EndpointIndex, Registry, ServiceKey

_Name = tuple[str, str]  # (namespace, name)


@dataclass(frozen=True, slots=True)
class Changes:
    """What one event changed.

    ``services``: host names whose Service differs (clusters, listeners, routes). ``endpoints``: services of which only endpoints
    differ (EDS). ``workloads``: (namespace, name) of workloads whose labels, ports or addresses differ (what a proxy serves itself,
    which policies select it). Empty: nothing to do.
    """

    services: frozenset[str] = frozenset()
    endpoints: frozenset[ServiceKey] = frozenset()
    workloads: frozenset[tuple[str, str]] = frozenset()

    def __bool__(self) -> bool:
        """True when anything changed."""
        return bool(self.services or self.endpoints or self.workloads)

    def __or__(self, other: Changes) -> Changes:
        """Both together."""
        return Changes(
            self.services | other.services,
            self.endpoints | other.endpoints,
            self.workloads | other.workloads,
        )


_NOTHING = Changes()


class RegistryStore:
    """See the module."""

    def __init__(self, settings: RegistrySettings) -> None:
        self.settings = settings
        self.endpoints = EndpointIndex()
        self._services: dict[_Name, Service] = {}
        self._slices: dict[_Name, k8s.EndpointSlice] = {}
        self._slices_of: dict[_Name, set[_Name]] = {}  # service -> slices
        self._slices_on: dict[_Name, set[_Name]] = {}  # pod -> slices that name it
        self._pods: dict[_Name, k8s.Pod] = {}
        self._workloads: dict[_Name, Workload] = {}
        self._entry_workloads: dict[_Name, Workload] = {}
        self._nodes: dict[str, k8s.Node] = {}
        self._pods_on: dict[str, set[_Name]] = {}
        self._entries: dict[_Name, Config[ServiceEntry]] = {}
        self._entry_services: dict[_Name, tuple[Service, ...]] = {}
        self._entries_of: dict[ServiceKey, set[_Name]] = {}
        self._selecting: dict[str, set[_Name]] = {}  # namespace -> entries with a selector
        self._allocated: dict[ServiceKey, tuple[str, ...]] = {}
        self._pending: dict[_Name, frozenset[_Name]] = {}  # slice -> pods it waits for
        self._snapshot: Registry | None = None

    @property
    def pending_pods(self) -> frozenset[tuple[str, str]]:
        """Pods that endpoints wait for (metric ``pilot_k8s_endpoints_pending_pod``)."""
        return frozenset().union(*self._pending.values())

    def accounts_beside(self, namespace: str, name: str) -> frozenset[tuple[str, str]]:
        """(namespace, service account) of every pod on the node of this pod; empty for an unknown pod."""
        pod = self._pods.get((namespace, name))
        if pod is None or not pod.spec.node_name:
            return frozenset()
        beside = (self._pods[where] for where in self._pods_on.get(pod.spec.node_name, ()))
        return frozenset(
            (other.metadata.namespace, other.spec.service_account_name or "default")
            for other in beside
        )

    # --- Kubernetes ----------------------------------------------------------------------------------

    def put(self, value: k8s.K8s) -> Changes:
        """A Service, EndpointSlice, Pod or Node was added or changed; other kinds change nothing."""
        if isinstance(value, k8s.EndpointSlice):
            return self._put_slice(value)
        if isinstance(value, k8s.Pod):
            return self._put_pod(value)
        if isinstance(value, k8s.Service):
            return self._put_service(value)
        if isinstance(value, k8s.Node):
            return self._put_node(value)
        return _NOTHING

    def drop(self, kind: str, namespace: str, name: str) -> Changes:
        """A Kubernetes object is gone; unknown ones change nothing."""
        where = (namespace, name)
        if kind == "EndpointSlice":
            return self._drop_slice(where)
        if kind == "Pod":
            return self._drop_pod(where)
        if kind == "Service":
            gone = self._services.pop(where, None)
            if gone is None:
                return _NOTHING
            changes = self._service_changed(gone.hostname)
            changes |= self._on_workload_entries(where, None)
            return changes | self._reslice(self._slices_of.get(where, ()))
        if kind == "Node":
            self._nodes.pop(name, None)
            return self._repod(self._pods_on.get(name, ()))
        return _NOTHING

    def _put_service(self, source: k8s.Service) -> Changes:
        service = kube.service_from(source, self.settings)
        where = (service.meta.namespace, service.meta.name)
        before = self._services.get(where)
        if before is not None and _same(before, service):
            return _NOTHING
        self._services[where] = service
        changes = self._service_changed(service.hostname)
        changes |= self._on_workload_entries(where, service)
        if before is None or before.publish_not_ready != service.publish_not_ready:
            changes |= self._reslice(self._slices_of.get(where, ()))
        return changes

    def _on_workload_entries(self, where: _Name, service: Service | None) -> Changes:
        """Endpoints of a Service on WorkloadEntries, which no EndpointSlice knows. None: the Service is gone."""
        key, shard = self._kube_key(*where), f"WorkloadEntry/{where[0]}/{where[1]}"
        if service is None or not service.selector_labels:
            changed = self.endpoints.remove(key, shard)
        else:
            chosen = [
                workload
                for (namespace, _), workload in sorted(self._entry_workloads.items())
                if namespace == where[0] and _holds(service.selector_labels, workload)
            ]
            found = entries.endpoints_of_workload_entries(service, chosen, self.settings)
            changed = self.endpoints.set(key, shard, found)
        return Changes(endpoints=frozenset((key,))) if changed else _NOTHING

    def _service_changed(self, *hostnames: str) -> Changes:
        self._snapshot = None
        return Changes(services=frozenset(hostnames))

    def _put_slice(self, source: k8s.EndpointSlice) -> Changes:
        where = (source.metadata.namespace, source.metadata.name)
        if not kube.slice_service(source):
            return self._drop_slice(where)
        before = self._slices.get(where)
        changes = _NOTHING
        if before is not None and kube.slice_service(before) != kube.slice_service(source):
            changes = self._drop_slice(where)
        self._slices[where] = source
        self._slices_of.setdefault((where[0], kube.slice_service(source)), set()).add(where)
        for pod in _pods_of(before) - _pods_of(source):
            self._slices_on.get(pod, set()).discard(where)
        for pod in _pods_of(source):
            self._slices_on.setdefault(pod, set()).add(where)
        return changes | self._reslice((where,))

    def _drop_slice(self, where: _Name) -> Changes:
        source = self._slices.pop(where, None)
        if source is None:
            return _NOTHING
        name = kube.slice_service(source)
        self._slices_of.get((where[0], name), set()).discard(where)
        self._pending.pop(where, None)
        for pod in _pods_of(source):
            self._slices_on.get(pod, set()).discard(where)
        key = self._kube_key(where[0], name)
        changed = self.endpoints.remove(key, _shard(self.settings, where))
        return Changes(endpoints=frozenset((key,))) if changed else _NOTHING

    def _kube_key(self, namespace: str, name: str) -> ServiceKey:
        return ServiceKey(kube_hostname(name, namespace, self.settings.domain), namespace)

    def _reslice(self, slices: Iterable[_Name]) -> Changes:
        """Compute slices again; report the services whose endpoints differ."""
        changed: set[ServiceKey] = set()
        for where in tuple(slices):
            source = self._slices.get(where)
            if source is None:
                continue
            name = kube.slice_service(source)
            service = self._services.get((where[0], name))
            found, missing = kube.endpoints_from(
                source,
                lambda namespace, pod: self._workloads.get((namespace, pod)),
                self.settings,
                service is not None and service.publish_not_ready,
            )
            if missing:
                self._pending[where] = missing
            else:
                self._pending.pop(where, None)
            key = self._kube_key(where[0], name)
            if self.endpoints.set(key, _shard(self.settings, where), found):
                changed.add(key)
        return Changes(endpoints=frozenset(changed)) if changed else _NOTHING

    def _put_pod(self, pod: k8s.Pod) -> Changes:
        where = (pod.metadata.namespace, pod.metadata.name)
        if not kube.runs(pod):
            return self._drop_pod(where)
        before = self._pods.get(where)
        if before is not None and before.spec.node_name != pod.spec.node_name:
            self._pods_on.get(before.spec.node_name, set()).discard(where)
        self._pods[where] = pod
        self._pods_on.setdefault(pod.spec.node_name, set()).add(where)
        return self._repod((where,))

    def _repod(self, pods: Iterable[_Name]) -> Changes:
        changes = _NOTHING
        for where in tuple(pods):
            pod = self._pods[where]
            node = self._nodes.get(pod.spec.node_name)
            workload = kube.workload_from(pod, node, self.settings)
            if not workload.addresses:
                continue
            before = self._workloads.get(where)
            if before == workload:
                continue
            self._workloads[where] = workload
            changes |= self._workload_changed(where, before, workload)
            changes |= self._reslice(self._slices_on.get(where, ()))
        return changes

    def _drop_pod(self, where: _Name) -> Changes:
        pod = self._pods.pop(where, None)
        if pod is not None:
            self._pods_on.get(pod.spec.node_name, set()).discard(where)
        before = self._workloads.pop(where, None)
        if before is None:
            return _NOTHING
        # Endpoints stay until their slice says otherwise: the slice is what counts, and it knows about draining.
        return self._workload_changed(where, before, None)

    def _workload_changed(
        self, where: _Name, before: Workload | None, after: Workload | None
    ) -> Changes:
        """A pod or WorkloadEntry differs: who it is to proxies, and which ServiceEntries select it."""
        self._snapshot = None
        changed: set[ServiceKey] = set()
        for name in self._selecting.get(where[0], ()):
            config = self._entries[name]
            if _chosen(config, before) or _chosen(config, after):
                changed |= self._entry_endpoints(config)
        changes = Changes(endpoints=frozenset(changed), workloads=frozenset((where,)))
        if any(w is not None and w.workload_kind == WORKLOAD_ENTRY for w in (before, after)):
            for name, service in self._services.items():
                if name[0] == where[0] and any(
                    _holds(service.selector_labels, w) for w in (before, after)
                ):
                    changes |= self._on_workload_entries(name, service)
        return changes

    def _put_node(self, node: k8s.Node) -> Changes:
        name = node.metadata.name
        before = self._nodes.get(name)
        self._nodes[name] = node
        if before is not None and kube.node_locality(before) == kube.node_locality(node):
            return _NOTHING
        return self._repod(self._pods_on.get(name, ()))

    # --- ServiceEntry and WorkloadEntry --------------------------------------------------------------

    def put_config(self, config: Config[Any]) -> Changes:
        """A ServiceEntry or WorkloadEntry was added or changed; other kinds change nothing."""
        return self.put_configs((config,))

    def put_configs(self, configs: Iterable[Config[Any]]) -> Changes:
        """Several at once: what a first list calls, so that addresses are allocated once."""
        changes, touched = _NOTHING, set()
        for config in configs:
            where = (config.meta.namespace, config.meta.name)
            if isinstance(config.spec, ServiceEntry):
                self._entries[where] = config
                self._index_selector(where, config.spec.workload_selector is not None)
                touched.add(where)
            elif isinstance(config.spec, WorkloadEntry):
                workload = entries.workload_from_entry(config, self.settings)
                before = self._entry_workloads.get(where)
                if before != workload:
                    self._entry_workloads[where] = workload
                    changes |= self._workload_changed(where, before, workload)
        return changes | self._entries_changed(touched)

    def drop_config(self, key: Key) -> Changes:
        """A ServiceEntry or WorkloadEntry is gone; others change nothing."""
        where = (key.namespace, key.name)
        if key.kind == "ServiceEntry" and where in self._entries:
            del self._entries[where]
            self._index_selector(where, False)
            return self._entries_changed({where})
        if key.kind == "WorkloadEntry" and where in self._entry_workloads:
            before = self._entry_workloads.pop(where)
            return self._workload_changed(where, before, None)
        return _NOTHING

    def _index_selector(self, where: _Name, selects: bool) -> None:
        names = self._selecting.setdefault(where[0], set())
        if selects:
            names.add(where)
        else:
            names.discard(where)

    def _entries_changed(self, touched: set[_Name]) -> Changes:
        """Some entries differ: their services and endpoints, and those of entries whose automatic address moved."""
        allocated = self._allocated
        if any(
            where not in self._entries or allocation.allocates(self._entries[where])
            for where in touched
        ):
            allocated = allocation.allocate(self._entries.values())
        moved = {
            where
            for key in self._allocated.keys() | allocated.keys()
            if self._allocated.get(key) != allocated.get(key)
            for where in self._entries_of.get(key, ())
        }
        self._allocated = allocated
        hostnames: set[str] = set()
        changed: set[ServiceKey] = set()
        for where in touched | moved:
            config = self._entries.get(where)
            before = self._entry_services.pop(where, ())
            after = entries.services_from_entry(config, allocated) if config else ()
            if config is not None:
                self._entry_services[where] = after
            if len(before) != len(after) or not all(map(_same, before, after)):
                hostnames |= {service.hostname for service in (*before, *after)}
            keys = {ServiceKey(service.hostname, where[0]) for service in after}
            for key in {ServiceKey(service.hostname, where[0]) for service in before} - keys:
                self._entries_of.get(key, set()).discard(where)
                if self.endpoints.remove(key, _entry_shard(where)):
                    changed.add(key)
            for key in keys:
                self._entries_of.setdefault(key, set()).add(where)
            if config is not None:
                changed |= self._entry_endpoints(config)
        if not hostnames and not changed:
            return _NOTHING
        self._snapshot = None
        return Changes(services=frozenset(hostnames), endpoints=frozenset(changed))

    def _entry_endpoints(self, config: Config[ServiceEntry]) -> set[ServiceKey]:
        namespace, changed = config.meta.namespace, set()
        workloads = (
            [
                workload
                for (space, _), workload in sorted(
                    (*self._workloads.items(), *self._entry_workloads.items())
                )
                if space == namespace and _chosen(config, workload)
            ]
            if config.spec.workload_selector is not None
            else []
        )
        for host in config.spec.hosts:
            key = ServiceKey(host, namespace)
            found = entries.endpoints_from_entry(config, host, workloads, self.settings)
            if self.endpoints.set(key, _entry_shard((namespace, config.meta.name)), found):
                changed.add(key)
        return changed

    # --- what comes out ------------------------------------------------------------------------------

    def workload(self, namespace: str, name: str) -> Workload | None:
        """A pod or WorkloadEntry by name."""
        where = (namespace, name)
        return self._workloads.get(where) or self._entry_workloads.get(where)

    def status_addresses(self, config: Config[ServiceEntry]) -> list[dict[str, str]]:
        """What ``status.addresses`` of a ServiceEntry shall say."""
        return allocation.status_addresses(config, self._allocated)

    def snapshot(self) -> Registry:
        """Services and workloads as they are now; the same object while nothing changed."""
        if self._snapshot is not None:
            return self._snapshot
        services: dict[str, list[Service]] = {}
        found = [*self._services.values()]
        found += [service for group in self._entry_services.values() for service in group]
        found.sort(
            key=lambda s: (s.registry != "Kubernetes", s.meta.created, s.namespace, s.meta.name)
        )
        for service in found:
            services.setdefault(service.hostname, []).append(service)
        workloads: dict[str, list[Workload]] = {}
        for workload in (*self._workloads.values(), *self._entry_workloads.values()):
            for address in workload.addresses:
                workloads.setdefault(address, []).append(workload)
        self._snapshot = Registry(
            FrozenMap((host, entries.merge_entries(group)) for host, group in services.items()),
            FrozenMap((address, tuple(group)) for address, group in workloads.items()),
            FrozenMap(
                (ServiceKey(host, config.meta.namespace), entries.entry_addresses(config))
                for config in self._entries.values()
                if config.spec.endpoints
                for host in config.spec.hosts
            ),
        )
        return self._snapshot


def _same(before: Service, after: Service) -> bool:
    """Equal in everything but the resource version, which every status update changes."""
    if before == after:
        return True
    old, new = before.meta, after.meta
    return (
        old.resource_version != new.resource_version
        and (old.labels, old.annotations, old.created) == (new.labels, new.annotations, new.created)
        and _bare(before) == _bare(after)
    )


def _bare(service: Service) -> tuple[Any, ...]:
    return tuple(
        getattr(service, name) for name in service.__slots__ if name not in ("meta", "origin")
    )


def _pods_of(source: k8s.EndpointSlice | None) -> set[_Name]:
    """Pods that a slice names."""
    return {
        (entry.target_ref.namespace or source.metadata.namespace, entry.target_ref.name)
        for entry in (source.endpoints or () if source else ())
        if source and entry.target_ref is not None and entry.target_ref.kind == "Pod"
    }


def _chosen(config: Config[ServiceEntry], workload: Workload | None) -> bool:
    """True when an entry's selector selects a workload of its namespace."""
    selector = config.spec.workload_selector
    return selector is not None and _holds(selector.labels, workload)


def _holds(selector: Mapping[str, str], workload: Workload | None) -> bool:
    """True when a workload has all labels of a selector."""
    return workload is not None and all(
        workload.labels.get(key) == value for key, value in selector.items()
    )


def _shard(settings: RegistrySettings, where: _Name) -> str:
    return f"{settings.cluster_id}/{where[0]}/{where[1]}"


def _entry_shard(where: _Name) -> str:
    return f"ServiceEntry/{where[0]}/{where[1]}"
