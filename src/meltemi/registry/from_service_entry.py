"""ServiceEntries and WorkloadEntries -> services, endpoints and workloads.

Pure functions; ``registry.store`` keeps the objects and calls them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from meltemi.model.config import Config
from meltemi.model.frozen import FrozenMap
from meltemi.model.names import spiffe_id
from meltemi.model.service import Endpoint, Health, Port, Resolution, Service, Workload
from meltemi.model.topology import ServiceEntry, WorkloadEntry
from meltemi.registry.from_kubernetes import TLS_MODE, RegistrySettings
from meltemi.registry.index import WORKLOAD_ENTRY, ServiceKey, target_port
from meltemi.registry.protocol import parse_protocol

HEALTH_CHECKS = "proxy.istio.io/health-checks-enabled"
_RESOLUTION = {
    "NONE": Resolution.PASSTHROUGH,
    "STATIC": Resolution.CLIENT_SIDE_LB,
    "DNS": Resolution.DNS_LB,
    "DNS_ROUND_ROBIN": Resolution.DNS_ROUND_ROBIN_LB,
    "DYNAMIC_DNS": Resolution.DYNAMIC_DNS,
}


def services_from_entry(
    config: Config[ServiceEntry], allocated: Mapping[ServiceKey, tuple[str, ...]]
) -> tuple[Service, ...]:
    """One service per host."""
    spec = config.spec
    ports = tuple(
        Port(
            port.name,
            port.number,
            parse_protocol(port.protocol or port.name.partition("-")[0]),
            port.target_port or port.number,
        )
        for port in spec.ports
    )
    found = []
    for index, host in enumerate(dict.fromkeys(spec.hosts)):
        key = ServiceKey(host, config.meta.namespace)
        found.append(
            Service(
                hostname=host,
                meta=config.meta,
                ports=ports,
                addresses=spec.addresses,
                auto_allocated=() if spec.addresses else allocated.get(key, ()),
                resolution=_RESOLUTION[spec.resolution],
                mesh_external=spec.location == "MESH_EXTERNAL",
                registry="External",
                export_to=frozenset(spec.export_to),
                selector_labels=spec.workload_selector.labels
                if spec.workload_selector
                else FrozenMap(),
                subject_alt_names=spec.subject_alt_names,
                origin=config.origin(f"spec.hosts[{index}]"),
            )
        )
    return tuple(found)


def merge_entries(services: Iterable[Service]) -> tuple[Service, ...]:
    """Services of one host, oldest first, with the ports that several ServiceEntries of a namespace add up to.

    Entries add up when they are found in the same way and seen by the same namespaces; a port number or name that an older
    entry has stays its own. Others are kept apart, and the older one holds.
    """
    merged: list[Service] = []
    for service in services:
        for index, known in enumerate(merged):
            if _adds_up(known, service):
                names = {port.name for port in known.ports}
                numbers = {port.number for port in known.ports}
                more = tuple(
                    port
                    for port in service.ports
                    if port.name not in names and port.number not in numbers
                )
                merged[index] = replace(known, ports=known.ports + more)
                break
        else:
            merged.append(service)
    return tuple(merged)


def _adds_up(one: Service, two: Service) -> bool:
    def how(service: Service) -> tuple[object, ...]:
        return (
            service.registry,
            service.namespace,
            service.resolution,
            service.mesh_external,
            service.export_to,
            service.addresses,
        )

    return one.registry == "External" and how(one) == how(two)


def entry_ports(spec: ServiceEntry, endpoint: WorkloadEntry) -> Mapping[str, int]:
    """Port name -> the endpoint's own number (0 on a Unix socket)."""
    if endpoint.address.startswith("unix://"):
        return FrozenMap((port.name, 0) for port in spec.ports)
    return FrozenMap(
        (port.name, endpoint.ports.get(port.name) or port.target_port or port.number)
        for port in spec.ports
    )


def entry_tls_mode(entry: WorkloadEntry) -> str:
    """A label decides; otherwise a workload with an identity speaks mTLS."""
    return entry.labels.get(TLS_MODE) or ("istio" if entry.service_account else "disabled")


def entry_addresses(config: Config[ServiceEntry]) -> Mapping[str, Mapping[str, int]]:
    """Addresses that the entry lists -> port name -> number."""
    return FrozenMap(
        (endpoint.address, entry_ports(config.spec, endpoint)) for endpoint in config.spec.endpoints
    )


def endpoints_from_entry(
    config: Config[ServiceEntry],
    host: str,
    workloads: Iterable[Workload],
    settings: RegistrySettings,
) -> tuple[Endpoint, ...]:
    """Endpoints of one host of an entry.

    ``workloads`` are those that its selector chose (pods and WorkloadEntries). An entry with DNS resolution and no endpoints is its
    own endpoint: the host name is what gets resolved.
    """
    spec, namespace = config.spec, config.meta.namespace
    found: list[Endpoint] = []
    if spec.workload_selector is not None:
        for workload in workloads:
            for port in spec.ports:
                found.extend(_selected(workload, port.name, config, settings))
        return tuple(found)
    for endpoint in spec.endpoints:
        for name, number in entry_ports(spec, endpoint).items():
            found.append(_endpoint(endpoint, number, name, namespace, settings))
    if not spec.endpoints and spec.resolution in ("DNS", "DNS_ROUND_ROBIN") and "*" not in host:
        for port in spec.ports:
            number = port.target_port or port.number
            found.append(Endpoint(host, number, port.name, namespace=namespace))
    return tuple(found)


def _endpoint(
    entry: WorkloadEntry, port: int, name: str, namespace: str, settings: RegistrySettings
) -> Endpoint:
    account = entry.service_account
    return Endpoint(
        address=entry.address,
        port=port,
        service_port=name,
        labels=entry.labels,
        service_account=spiffe_id(settings.trust_domain, namespace, account) if account else "",
        namespace=namespace,
        network=entry.network or entry.labels.get("topology.istio.io/network", ""),
        cluster=entry.labels.get("topology.istio.io/cluster", settings.cluster_id),
        locality=entry.locality,
        weight=entry.weight,
        tls_mode=entry_tls_mode(entry),
    )


def _selected(
    workload: Workload, port_name: str, config: Config[ServiceEntry], settings: RegistrySettings
) -> Iterable[Endpoint]:
    """Endpoints of a selected workload for one port of an entry, one per address."""
    port = next(p for p in config.spec.ports if p.name == port_name)
    default = Port(port.name, port.number, parse_protocol(port.protocol), port.target_port)
    return _workload_endpoints(workload, default, settings)


def endpoints_of_workload_entries(
    service: Service, workloads: Iterable[Workload], settings: RegistrySettings
) -> tuple[Endpoint, ...]:
    """Endpoints of a Kubernetes Service on the WorkloadEntries that its selector chose."""
    return tuple(
        endpoint
        for workload in workloads
        for port in service.ports
        for endpoint in _workload_endpoints(workload, port, settings)
    )


def _workload_endpoints(
    workload: Workload, port: Port, settings: RegistrySettings
) -> Iterable[Endpoint]:
    """One per address. A WorkloadEntry with an identity speaks mTLS unless its label says otherwise; a pod's label says it."""
    account = workload.service_account
    secure = account and workload.workload_kind == WORKLOAD_ENTRY
    tls_mode = workload.labels.get(TLS_MODE) or ("istio" if secure else "disabled")
    number = target_port(port, workload)
    # A machine of another network may have no address here: it is reached through that network's gateway.
    for address in workload.addresses or (("",) if workload.network else ()):
        yield Endpoint(
            address=address,
            port=0 if address.startswith("unix://") else number,
            service_port=port.name,
            labels=workload.labels,
            service_account=spiffe_id(settings.trust_domain, workload.namespace, account)
            if account
            else "",
            workload=workload.workload_name,
            namespace=workload.namespace,
            network=workload.network,
            cluster=workload.cluster,
            locality=workload.locality,
            weight=workload.weight,
            tls_mode=tls_mode,
            health=Health.HEALTHY if workload.ready else Health.UNHEALTHY,
            node_name=workload.node_name,
        )


def entry_labels(config: Config[WorkloadEntry]) -> Mapping[str, str]:
    """Labels of a WorkloadEntry: its spec's, and those of the object itself, which win."""
    return FrozenMap({**config.spec.labels, **config.meta.labels})


def workload_from_entry(config: Config[WorkloadEntry], settings: RegistrySettings) -> Workload:
    """A WorkloadEntry as a workload. Where its agent checks its health, it is ready when that was reported."""
    spec = config.spec
    checked = config.meta.annotations.get(HEALTH_CHECKS) == "true"
    labels = entry_labels(config)
    return Workload(
        name=config.meta.name,
        namespace=config.meta.namespace,
        addresses=(spec.address,) if spec.address else (),
        labels=labels,
        service_account=spec.service_account,
        workload_name=config.meta.name,
        workload_kind=WORKLOAD_ENTRY,
        locality=spec.locality,
        network=spec.network or labels.get("topology.istio.io/network", ""),
        cluster=labels.get("topology.istio.io/cluster", settings.cluster_id),
        ports=tuple(spec.ports.items()),
        ready=config.status.healthy is True or (not checked and config.status.healthy is None),
        weight=spec.weight,
        annotations=config.meta.annotations,
    )
