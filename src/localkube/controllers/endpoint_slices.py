"""EndpointSlices and Endpoints of a Service: which pods can be called, where, and in which state.

In: a Service, the pods of its namespace, the existing slices. Out: the slices as they shall be.
Pure. Promises: a pod that is being deleted is never `ready`, from the moment its deletionTimestamp
is set; endpoints stay in their slice, so a change touches as few slices as possible.
Sources: the Kubernetes documentation "EndpointSlices" (conditions, at most 100 endpoints a slice).
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from localkube.client.resources import SERVICES
from localkube.controllers.labels import map_matches
from localkube.controllers.pods import (
    is_finished,
    is_ready,
    is_terminating,
    labels_of,
    owner_reference,
)

Object = dict[str, Any]
MAX_ENDPOINTS: Final = 100
SERVICE_NAME: Final = "kubernetes.io/service-name"
MANAGED_BY: Final = "endpointslice.kubernetes.io/managed-by"
MANAGER: Final = "endpointslice-controller.k8s.io"
HEADLESS: Final = "service.kubernetes.io/headless"
ZONE_LABEL: Final = "topology.kubernetes.io/zone"
ENDPOINTS_MANAGED_BY: Final = "endpoints.kubernetes.io/managed-by"
ENDPOINTS_MANAGER: Final = "endpoint-controller"

Ports = tuple[tuple[str, str, int, str], ...]
"""(name, protocol, port, appProtocol) of each port; pods of one Service may differ in them."""


def selected_pods(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The pods that belong to the Service and can have an endpoint."""
    selector = service["spec"].get("selector")
    return [
        pod
        for pod in pods
        if map_matches(selector, labels_of(pod))
        and (pod.get("status") or {}).get("podIP")
        and not is_finished(pod)
    ]


def container_port(pod: Object, target: int | str, protocol: str) -> int | None:
    """A Service's targetPort in this pod: a number, or the container port of that name."""
    if isinstance(target, int):
        return target
    spec = pod["spec"]
    sidecars = [c for c in spec.get("initContainers") or [] if c.get("restartPolicy") == "Always"]
    for container in [*(spec.get("containers") or []), *sidecars]:
        for port in container.get("ports") or []:
            if port.get("name") == target and (port.get("protocol") or "TCP") == protocol:
                return int(port["containerPort"])
    return int(target) if target.isdigit() else None


def ports_of(service: Object, pod: Object) -> Ports:
    """The Service's ports as this pod serves them; a named port that it lacks is left out."""
    found = []
    for port in service["spec"].get("ports") or []:
        protocol = port.get("protocol") or "TCP"
        target = port.get("targetPort") or port["port"]
        number = container_port(pod, target, protocol)
        if number is not None:
            found.append((port.get("name") or "", protocol, number, port.get("appProtocol") or ""))
    return tuple(found)


def endpoint_of(service: Object, pod: Object, nodes: Mapping[str, Object]) -> Object:
    """One endpoint of a slice."""
    meta, spec = pod["metadata"], pod["spec"]
    terminating = is_terminating(pod)
    serving = is_ready(pod)
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    endpoint: Object = {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": publish or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "targetRef": {
            "kind": "Pod",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        },
    }
    node = spec.get("nodeName")
    if node:
        endpoint["nodeName"] = node
        zone = labels_of(nodes[node]).get(ZONE_LABEL) if node in nodes else None
        if zone:
            endpoint["zone"] = zone
    if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
        endpoint["hostname"] = spec["hostname"]
    return endpoint


def desired_endpoints(
    service: Object, pods: Iterable[Object], nodes: Mapping[str, Object]
) -> dict[Ports, list[Object]]:
    """All endpoints of the Service, grouped by their ports; in the order of their addresses."""
    groups: dict[Ports, list[Object]] = {}
    for pod in selected_pods(service, pods):
        groups.setdefault(ports_of(service, pod), []).append(endpoint_of(service, pod, nodes))
    for endpoints in groups.values():
        endpoints.sort(key=lambda endpoint: endpoint["addresses"])
    return groups


def slices_to_write(
    service: Object,
    pods: Iterable[Object],
    nodes: Mapping[str, Object],
    existing: Sequence[Object],
) -> tuple[list[Object], list[Object], list[Object]]:
    """(to create, to update, to delete)."""
    groups = desired_endpoints(service, pods, nodes)
    if not groups:
        # An empty slice says "no endpoints" to those who would wait for a slice otherwise.
        groups = {_declared_ports(service): []}
    create: list[Object] = []
    update: list[Object] = []
    unused = {s["metadata"]["name"]: s for s in existing}
    for ports, endpoints in groups.items():
        mine = [s for s in existing if _ports_in(s) == ports]
        for old, content in _distribute(mine, endpoints):
            if old is None:
                create.append(_new_slice(service, ports, content))
                continue
            unused.pop(old["metadata"]["name"], None)
            changed = _changed_slice(service, old, content)
            if changed is not None:
                update.append(changed)
    # A slice of other ports is turned into one that would be created: one write instead of two,
    # and never a moment without any.
    spare = list(unused.values())
    while create and spare:
        reused, fresh = spare.pop(), create.pop()
        update.append({**reused, **{k: fresh[k] for k in ("endpoints", "ports")}})
        unused.pop(reused["metadata"]["name"])
    return create, update, list(unused.values())


def _declared_ports(service: Object) -> Ports:
    found = []
    for port in service["spec"].get("ports") or []:
        target = port.get("targetPort") or port["port"]
        if isinstance(target, int):
            protocol = port.get("protocol") or "TCP"
            app = port.get("appProtocol") or ""
            found.append((port.get("name") or "", protocol, target, app))
    return tuple(found)


def _distribute(
    slices: Sequence[Object], endpoints: list[Object]
) -> list[tuple[Object | None, list[Object]]]:
    """Endpoints into slices: each stays where it is, new ones fill gaps, then new slices."""
    wanted = {_identity(endpoint): endpoint for endpoint in endpoints}
    result: list[tuple[Object | None, list[Object]]] = []
    for old in slices:
        kept = []
        for endpoint in old.get("endpoints") or []:
            current = wanted.pop(_identity(endpoint), None)
            if current is not None:
                kept.append(current)
        result.append((old, kept))
    rest = list(wanted.values())
    for _, content in result:
        room = MAX_ENDPOINTS - len(content)
        content.extend(rest[:room])
        rest = rest[room:]
    while rest:
        result.append((None, rest[:MAX_ENDPOINTS]))
        rest = rest[MAX_ENDPOINTS:]
    filled = [entry for entry in result if entry[1]]
    if filled:
        return filled
    return result[:1] or [(None, [])]


def _identity(endpoint: Object) -> tuple[str, str]:
    return endpoint["addresses"][0], str((endpoint.get("targetRef") or {}).get("uid"))


def _ports_in(obj: Object) -> Ports:
    return tuple(
        (p.get("name") or "", p.get("protocol") or "TCP", p.get("port"), p.get("appProtocol") or "")
        for p in obj.get("ports") or []
    )


def _port_objects(ports: Ports) -> list[Object]:
    result = []
    for name, protocol, number, app in ports:
        port: Object = {"name": name, "protocol": protocol, "port": number}
        if app:
            port["appProtocol"] = app
        result.append(port)
    return result


def _labels(service: Object) -> dict[str, str]:
    labels = dict(labels_of(service))
    labels.pop(HEADLESS, None)
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    labels[SERVICE_NAME] = service["metadata"]["name"]
    labels[MANAGED_BY] = MANAGER
    return labels


def _new_slice(service: Object, ports: Ports, endpoints: list[Object]) -> Object:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": f"{service['metadata']['name']}-",
            "namespace": service["metadata"]["namespace"],
            "labels": _labels(service),
            "ownerReferences": [owner_reference(SERVICES, service)],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": _port_objects(ports),
    }


def _changed_slice(service: Object, old: Object, endpoints: list[Object]) -> Object | None:
    labels = _labels(service)
    if (old.get("endpoints") or []) == endpoints and labels_of(old) == labels:
        return None
    changed = copy.copy(old)
    changed["metadata"] = {**old["metadata"], "labels": labels}
    changed["endpoints"] = endpoints
    return changed


# -- the older Endpoints resource ------------------------------------------------------------


def endpoints_subsets(service: Object, pods: Iterable[Object]) -> list[Object]:
    """The subsets of the Endpoints object: ready and not ready addresses, grouped by ports."""
    publish = bool(service["spec"].get("publishNotReadyAddresses"))
    groups: dict[Ports, tuple[list[Object], list[Object]]] = {}
    for pod in selected_pods(service, pods):
        if is_terminating(pod) and not publish:
            continue
        meta, spec = pod["metadata"], pod["spec"]
        address: Object = {
            "ip": pod["status"]["podIP"],
            "targetRef": {
                "kind": "Pod",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
            },
        }
        if spec.get("nodeName"):
            address["nodeName"] = spec["nodeName"]
        if spec.get("hostname") and spec.get("subdomain") == service["metadata"]["name"]:
            address["hostname"] = spec["hostname"]
        ready, waiting = groups.setdefault(ports_of(service, pod), ([], []))
        (ready if publish or is_ready(pod) else waiting).append(address)
    subsets = []
    for ports, (ready, waiting) in sorted(groups.items()):
        subset: Object = {}
        if ready:
            subset["addresses"] = sorted(ready, key=lambda a: a["ip"])
        if waiting:
            subset["notReadyAddresses"] = sorted(waiting, key=lambda a: a["ip"])
        if ports:
            subset["ports"] = [
                {k: v for k, v in port.items() if v != ""} for port in _port_objects(ports)
            ]
        subsets.append(subset)
    return subsets


def endpoints_object(service: Object, pods: Iterable[Object], old: Object | None) -> Object | None:
    """The Endpoints object to write, or None if the old one is right."""
    subsets = endpoints_subsets(service, pods)
    labels = dict(labels_of(service))
    labels.pop(HEADLESS, None)
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS] = ""
    labels[ENDPOINTS_MANAGED_BY] = ENDPOINTS_MANAGER
    if old is not None:
        if (old.get("subsets") or []) == subsets and labels_of(old) == labels:
            return None
        return {**old, "metadata": {**old["metadata"], "labels": labels}, "subsets": subsets}
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": service["metadata"]["name"],
            "namespace": service["metadata"]["namespace"],
            "labels": labels,
        },
        "subsets": subsets,
    }
