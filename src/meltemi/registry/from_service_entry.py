"""ServiceEntries and WorkloadEntries -> services, endpoints and workloads.

Pure functions; ``registry.store`` keeps the objects and calls them. Automatic addresses come from 240.240.0.0/16 and depend only on
the set of entries: every replica, and every restart, gives the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

from meltemi.model.config import Config
from meltemi.model.frozen import FrozenMap
from meltemi.model.names import spiffe_id
from meltemi.model.service import Endpoint, Health, Port, Resolution, Service, Workload
from meltemi.model.topology import ServiceEntry, WorkloadEntry
from meltemi.registry.from_kubernetes import TLS_MODE, RegistrySettings
from meltemi.registry.index import ServiceKey, target_port
from meltemi.registry.protocol import parse_protocol

AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip"
_RESOLUTION = {
    "NONE": Resolution.PASSTHROUGH,
    "STATIC": Resolution.CLIENT_SIDE_LB,
    "DNS": Resolution.DNS_LB,
    "DNS_ROUND_ROBIN": Resolution.DNS_ROUND_ROBIN_LB,
    "DYNAMIC_DNS": Resolution.DYNAMIC_DNS,
}
_POOL = 255 * 254  # 240.240.<0..254>.<1..254>: the last byte is never 0 or 255


def allocates(config: Config[ServiceEntry]) -> bool:
    """True when the hosts of an entry get automatic addresses: it lists none, resolves to something, and does not opt out."""
    spec = config.spec
    return (
        not spec.addresses
        and spec.resolution != "NONE"
        and config.meta.labels.get(AUTO_ALLOCATE, "true").lower() != "false"
    )


def allocate(entries: Iterable[Config[ServiceEntry]]) -> dict[ServiceKey, str]:
    """An address per host: a hash of its name, moved on while taken. Older entries choose first, so a new one moves none."""
    given: dict[ServiceKey, str] = {}
    taken: set[int] = set()
    ordered = sorted(entries, key=lambda c: (c.meta.created, c.meta.namespace, c.meta.name))
    for config in ordered:
        if not allocates(config):
            continue
        for host in config.spec.hosts:
            key = ServiceKey(host, config.meta.namespace)
            if "*" in host or key in given:
                continue
            if len(taken) == _POOL:
                return given
            slot = zlib.crc32(f"{key.namespace}/{host}".encode()) % _POOL
            while slot in taken:
                slot = (slot + 1) % _POOL
            taken.add(slot)
            given[key] = f"240.240.{slot // 254}.{slot % 254 + 1}"
    return given


def services_from_entry(
    config: Config[ServiceEntry], allocated: Mapping[ServiceKey, str]
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
        auto = allocated.get(ServiceKey(host, config.meta.namespace), "")
        found.append(
            Service(
                hostname=host,
                meta=config.meta,
                ports=ports,
                addresses=spec.addresses,
                auto_allocated=(auto,) if auto else (),
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
    """Endpoints of a selected workload for one port, one per address."""
    port = next(p for p in config.spec.ports if p.name == port_name)
    own = dict(workload.ports)
    if workload.workload_kind == "WorkloadEntry":
        number = own.get(port_name) or port.target_port or port.number
        tls_mode = workload.labels.get(TLS_MODE) or (
            "istio" if workload.service_account else "disabled"
        )
    else:
        default = Port(port.name, port.number, parse_protocol(port.protocol), port.target_port)
        number = target_port(default, workload)
        tls_mode = workload.labels.get(TLS_MODE, "disabled")
    account = workload.service_account
    for address in workload.addresses:
        yield Endpoint(
            address=address,
            port=0 if address.startswith("unix://") else number,
            service_port=port_name,
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


def workload_from_entry(config: Config[WorkloadEntry], settings: RegistrySettings) -> Workload:
    """A WorkloadEntry as a workload."""
    spec = config.spec
    return Workload(
        name=config.meta.name,
        namespace=config.meta.namespace,
        addresses=(spec.address,) if spec.address else (),
        labels=spec.labels,
        service_account=spec.service_account,
        workload_name=config.meta.name,
        workload_kind="WorkloadEntry",
        locality=spec.locality,
        network=spec.network or spec.labels.get("topology.istio.io/network", ""),
        cluster=settings.cluster_id,
        ports=tuple(spec.ports.items()),
        ready=True,
        weight=spec.weight,
        annotations=config.meta.annotations,
    )
