"""Kubernetes Services, EndpointSlices, Pods and Nodes -> services, endpoints and workloads.

Pure functions over decoded structs; ``registry.store`` keeps the objects and calls them. The names of labels and
annotations are Istio's and Kubernetes' own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from meltemi.model import kubernetes as k8s
from meltemi.model.config import Meta
from meltemi.model.frozen import FrozenMap
from meltemi.model.names import kube_hostname, spiffe_id
from meltemi.model.origin import Origin
from meltemi.model.places import REGION_LABEL, SUBZONE_LABEL, ZONE_LABEL, labelled_locality
from meltemi.model.service import Endpoint, Health, Port, Resolution, Service, Workload
from meltemi.registry.protocol import port_protocol

EXPORT_TO = "networking.istio.io/exportTo"
TRAFFIC_DISTRIBUTION = "networking.istio.io/traffic-distribution"
TLS_MODE = "security.istio.io/tlsMode"
NETWORK = "topology.istio.io/network"
REGION = (REGION_LABEL, "failure-domain.beta.kubernetes.io/region")
ZONE = (ZONE_LABEL, "failure-domain.beta.kubernetes.io/zone")
SERVICE_NAME = "kubernetes.io/service-name"
WORKLOAD_NAME = "service.istio.io/workload-name"
_SERVICE_ACCOUNTS = "alpha.istio.io/kubernetes-serviceaccounts"
_CRON_JOB = re.compile(r"(.+)-\d{8,10}$")
_AFFINITY_S = 10800  # Kubernetes' default for ClientIP affinity


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """What the registry has to know about the mesh and this cluster."""

    domain: str = "cluster.local"
    trust_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    network: str = ""


def timestamp(text: str | None) -> float:
    """RFC 3339 -> seconds since the epoch; 0.0 when unknown."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except (ValueError, OverflowError):
        return 0.0


def meta_from(metadata: k8s.ObjectMeta) -> Meta:
    """Metadata of any object, hashable."""
    return Meta(
        name=metadata.name,
        namespace=metadata.namespace,
        labels=k8s.labels_of(metadata),
        annotations=k8s.annotations_of(metadata),
        created=timestamp(metadata.creation_timestamp),
        generation=metadata.generation,
        resource_version=metadata.resource_version,
        uid=metadata.uid,
    )


def services_from(
    services: Iterable[k8s.Service], settings: RegistrySettings
) -> tuple[Service, ...]:
    """Every Service, in the order given."""
    return tuple(service_from(service, settings) for service in services)


def service_from(source: k8s.Service, settings: RegistrySettings) -> Service:
    """One Service. Ports without a number (malformed) are left out."""
    spec, annotations = source.spec, k8s.annotations_of(source.metadata)
    headless = spec.cluster_ip == "None"
    alias = spec.type == "ExternalName"
    addresses = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    resolution = Resolution.CLIENT_SIDE_LB
    if alias:
        resolution = Resolution.ALIAS
    elif headless:
        resolution = Resolution.PASSTHROUGH
    affinity = 0
    if spec.session_affinity == "ClientIP":
        client_ip = spec.session_affinity_config and spec.session_affinity_config.client_ip
        affinity = (client_ip and client_ip.timeout_seconds) or _AFFINITY_S
    accounts = annotations.get(_SERVICE_ACCOUNTS, "")
    meta = meta_from(source.metadata)
    return Service(
        hostname=kube_hostname(meta.name, meta.namespace, settings.domain),
        meta=meta,
        ports=tuple(_port(port) for port in spec.ports or () if port.port > 0),
        addresses=() if headless or alias else tuple(a for a in addresses if a and a != "None"),
        external_addresses=_external(source),
        resolution=resolution,
        mesh_external=alias,
        export_to=frozenset(
            filter(None, map(str.strip, annotations.get(EXPORT_TO, "").split(",")))
        ),
        selector_labels=FrozenMap(spec.selector or {}),
        subject_alt_names=tuple(
            spiffe_id(settings.trust_domain, meta.namespace, account.strip())
            for account in accounts.split(",")
            if account.strip()
        ),
        external_name=spec.external_name if alias else "",
        headless=headless,
        internal_traffic_local=spec.internal_traffic_policy == "Local",
        publish_not_ready=spec.publish_not_ready_addresses,
        traffic_distribution=annotations.get(TRAFFIC_DISTRIBUTION, spec.traffic_distribution or ""),
        session_affinity_s=affinity,
        origin=Origin("Service", meta.namespace, meta.name, resource_version=meta.resource_version),
    )


def _external(source: k8s.Service) -> tuple[str, ...]:
    """Addresses at which a load balancer offers a Service, IPs only: proxies do not resolve gateways' names."""
    entries = source.status.load_balancer.ingress or ()
    return tuple(entry.ip for entry in entries if entry.ip)


def _port(port: k8s.ServicePort) -> Port:
    target = port.target_port
    name = ""
    number = port.port
    if isinstance(target, int) and target > 0:
        number = target
    elif isinstance(target, str) and target:
        name, number = ("", int(target)) if target.isdecimal() else (target, 0)
    protocol = port_protocol(port.port, port.name, port.protocol, port.app_protocol)
    return Port(port.name, port.port, protocol, number, name)


def controller_of(metadata: k8s.ObjectMeta) -> tuple[str, str]:
    """(name, kind) of what a person deployed: the Deployment behind a pod's ReplicaSet, the CronJob behind its Job."""
    owner = next((ref for ref in metadata.owner_references or () if ref.controller), None)
    if owner is None:
        return metadata.name, "Pod"
    labels = metadata.labels or {}
    if owner.kind == "ReplicaSet":
        suffix = "-" + labels.get("pod-template-hash", "")
        if len(suffix) > 1 and owner.name.endswith(suffix):
            return owner.name.removesuffix(suffix), "Deployment"
    if owner.kind == "Job":
        found = _CRON_JOB.match(owner.name)
        if found:
            return found[1], "CronJob"
    if owner.kind == "ReplicationController" and "deploymentconfig" in labels:
        return labels["deploymentconfig"], "DeploymentConfig"
    return owner.name, owner.kind


def node_locality(node: k8s.Node | None) -> str:
    """``region/zone/subzone`` of a node; '' when it has no region."""
    labels = (node.metadata.labels if node else None) or {}
    region = next((labels[key] for key in REGION if key in labels), "")
    zone = next((labels[key] for key in ZONE if key in labels), "")
    return _locality(region, zone, labels.get(SUBZONE_LABEL, ""))


def _locality(region: str, zone: str, subzone: str) -> str:
    return "/".join((region, zone, subzone)).rstrip("/")


def workload_from(pod: k8s.Pod, node: k8s.Node | None, settings: RegistrySettings) -> Workload:
    """One pod as a workload. Addresses are empty until it has some."""
    labels = k8s.labels_of(pod.metadata)
    name, kind = controller_of(pod.metadata)
    addresses = tuple(ip.ip for ip in pod.status.pod_ips or () if ip.ip)
    if not addresses and pod.status.pod_ip:
        addresses = (pod.status.pod_ip,)
    containers = (*(pod.spec.init_containers or ()), *(pod.spec.containers or ()))
    ready = any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or ())
    return Workload(
        name=pod.metadata.name,
        namespace=pod.metadata.namespace,
        addresses=addresses,
        labels=labels,
        service_account=pod.spec.service_account_name or "default",
        workload_name=labels.get(WORKLOAD_NAME, name),
        workload_kind=kind,
        node_name=pod.spec.node_name,
        locality=labelled_locality(labels) or node_locality(node),
        network=labels.get(NETWORK, settings.network),
        cluster=settings.cluster_id,
        ports=tuple(
            (port.name, port.container_port)
            for container in containers
            for port in container.ports or ()
            if port.protocol == "TCP"
        ),
        ready=ready,
        annotations=k8s.annotations_of(pod.metadata),
    )


def workloads_from(
    pods: Iterable[k8s.Pod], nodes: Mapping[str, k8s.Node], settings: RegistrySettings
) -> tuple[Workload, ...]:
    """All pods that may receive traffic: not finished, with an address."""
    return tuple(
        workload
        for pod in pods
        if runs(pod)
        for workload in (workload_from(pod, nodes.get(pod.spec.node_name), settings),)
        if workload.addresses
    )


def runs(pod: k8s.Pod) -> bool:
    """False for pods that ended."""
    return pod.status.phase not in ("Succeeded", "Failed")


def slice_service(source: k8s.EndpointSlice) -> str:
    """Name of the Service that a slice belongs to, or ''."""
    return (source.metadata.labels or {}).get(SERVICE_NAME, "")


def endpoints_from(
    source: k8s.EndpointSlice,
    workload_of: Callable[[str, str], Workload | None],
    settings: RegistrySettings,
    publish_not_ready: bool = False,
) -> tuple[tuple[Endpoint, ...], frozenset[tuple[str, str]]]:
    """Endpoints of one slice, and the pods (namespace, name) it waits for.

    An endpoint whose pod is not known yet is left out: without the pod's identity and labels it could only be
    reached in plaintext and would match no subset.
    """
    if source.address_type == "FQDN":
        return (), frozenset()
    ports = [(p.name or "", p.port) for p in source.ports or () if p.port]
    found: list[Endpoint] = []
    missing: set[tuple[str, str]] = set()
    for entry in source.endpoints or ():
        workload: Workload | None = None
        if entry.target_ref is not None and entry.target_ref.kind == "Pod":
            pod = (entry.target_ref.namespace or source.metadata.namespace, entry.target_ref.name)
            workload = workload_of(*pod)
            if workload is None:
                missing.add(pod)
                continue
        health = health_of(entry.conditions, publish_not_ready)
        for address in entry.addresses or ():
            for name, number in ports:
                found.append(
                    _endpoint(source, entry, workload, address, name, number, health, settings)
                )
    return tuple(found), frozenset(missing)


def _endpoint(
    source: k8s.EndpointSlice,
    entry: k8s.SliceEndpoint,
    workload: Workload | None,
    address: str,
    port_name: str,
    port: int,
    health: Health,
    settings: RegistrySettings,
) -> Endpoint:
    hostname = entry.hostname or ""
    if workload is None:  # an address that somebody wrote into the slice by hand
        return Endpoint(
            address,
            port,
            port_name,
            namespace=source.metadata.namespace,
            network=settings.network,
            cluster=settings.cluster_id,
            locality=f"/{entry.zone}" if entry.zone else "",
            health=health,
            node_name=entry.node_name or "",
            hostname=hostname,
        )
    return Endpoint(
        address,
        port,
        port_name,
        labels=workload.labels,
        service_account=spiffe_id(
            settings.trust_domain, workload.namespace, workload.service_account
        ),
        workload=workload.workload_name,
        namespace=workload.namespace,
        network=workload.network,
        cluster=workload.cluster,
        locality=workload.locality,
        tls_mode=workload.labels.get(TLS_MODE, "disabled"),
        health=health,
        node_name=entry.node_name or workload.node_name,
        hostname=hostname,
        subdomain=slice_service(source) if hostname else "",
    )


def health_of(conditions: k8s.EndpointConditions, publish_not_ready: bool = False) -> Health:
    """Health as EndpointSlices say it: absent ``ready`` means ready, absent ``serving`` means as ready."""
    if conditions.ready is None or conditions.ready:
        return Health.HEALTHY
    if conditions.terminating:
        return Health.DRAINING if conditions.serving else Health.TERMINATING
    return Health.HEALTHY if publish_not_ready else Health.UNHEALTHY
