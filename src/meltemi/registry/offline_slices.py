"""EndpointSlices of files, as a cluster's controller would write them.

In: Kubernetes objects by key. Out: a slice for every Service that selects pods and has none among the objects.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from meltemi.model import kubernetes as k8s
from meltemi.model.config import Key
from meltemi.registry.from_kubernetes import SERVICE_NAME


def holds(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """True when the labels have all of a selector."""
    return all(labels.get(name) == value for name, value in selector.items())


def container_ports(spec: k8s.PodSpec) -> tuple[tuple[str, int], ...]:
    """(name, number) of the ports that a pod declares."""
    return tuple(
        (port.name, port.container_port)
        for container in (*(spec.init_containers or ()), *(spec.containers or ()))
        for port in container.ports or ()
        if port.protocol == "TCP"
    )


def add_slices(natives: dict[Key, k8s.K8s]) -> None:
    """What the EndpointSlice controller would write, for Services that have no slice among the objects."""
    sliced = {
        (key.namespace, (value.metadata.labels or {}).get(SERVICE_NAME, ""))
        for key, value in natives.items()
        if isinstance(value, k8s.EndpointSlice)
    }
    by_namespace: dict[str, list[k8s.Pod]] = {}
    by_label: dict[tuple[str, str, str], list[k8s.Pod]] = {}
    for pod in [v for v in natives.values() if isinstance(v, k8s.Pod)]:
        by_namespace.setdefault(pod.metadata.namespace, []).append(pod)
        for name, value in (pod.metadata.labels or {}).items():
            by_label.setdefault((pod.metadata.namespace, name, value), []).append(pod)
    for service in [v for v in natives.values() if isinstance(v, k8s.Service)]:
        space, name = service.metadata.namespace, service.metadata.name
        selector = service.spec.selector
        if not selector or (space, name) in sliced:
            continue
        first = next(iter(selector.items()))
        chosen = [
            pod
            for pod in by_label.get((space, *first), ())
            if holds(selector, pod.metadata.labels or {})
        ]
        for index, piece in enumerate(_slices(service, chosen), 1):
            key = Key("EndpointSlice", space, f"{name}-{index}")
            natives[key] = msgspec.structs.replace(
                piece, metadata=msgspec.structs.replace(piece.metadata, name=key.name)
            )


def _slices(service: k8s.Service, pods: list[k8s.Pod]) -> list[k8s.EndpointSlice]:
    """One slice per set of port numbers: a named target port may differ from pod to pod."""
    groups: dict[tuple[k8s.EndpointPort, ...], list[k8s.SliceEndpoint]] = {}
    for pod in pods:
        ports = tuple(
            k8s.EndpointPort(port.name, port.protocol, number, port.app_protocol)
            for port in service.spec.ports or ()
            if (number := _target(port, pod))
        )
        named = pod.spec.hostname if pod.spec.hostname and service.spec.cluster_ip == "None" else ""
        groups.setdefault(ports, []).append(
            k8s.SliceEndpoint(
                addresses=(pod.status.pod_ip,),
                conditions=k8s.EndpointConditions(ready=True),
                hostname=named or None,
                target_ref=k8s.ObjectReference("Pod", pod.metadata.name, pod.metadata.namespace),
                node_name=pod.spec.node_name or None,
            )
        )
    metadata = k8s.ObjectMeta(
        namespace=service.metadata.namespace, labels={SERVICE_NAME: service.metadata.name}
    )
    return [
        k8s.EndpointSlice(metadata, endpoints=tuple(members), ports=ports)
        for ports, members in groups.items()
    ]


def _target(port: k8s.ServicePort, pod: k8s.Pod) -> int:
    """The pod's port for a Service port; 0 when the pod does not have the named one."""
    wanted = port.target_port
    if wanted is None or wanted in (0, ""):
        return port.port
    if isinstance(wanted, int):
        return wanted
    if wanted.isdecimal():
        return int(wanted)
    return next((number for name, number in container_ports(pod.spec) if name == wanted), 0)
