"""Columns of everything that does not make pods. In and out: see `tables`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from localkube.apiserver.tables import (
    Cells,
    JsonObject,
    Printer,
    age,
    columns,
    dig,
    label_text,
    selector_text,
    since,
)

_ROLE_PREFIX = "node-role.kubernetes.io/"
_MAX_ENDPOINTS = 3


def _name(obj: JsonObject) -> str:
    return str(obj["metadata"].get("name", ""))


def _simple(names: str, *paths: str, wide: str = "") -> Printer:
    """Return a printer of plain fields between Name and Age; a missing one shows as ""."""

    def cells(obj: JsonObject, now: datetime) -> Cells:
        return [_name(obj), *(dig(obj, path, "") for path in paths), age(obj, now)]

    return columns(names, wide), cells


def _counting(names: str, path: str) -> Printer:
    def cells(obj: JsonObject, now: datetime) -> Cells:
        return [_name(obj), len(dig(obj, path, ())), age(obj, now)]

    return columns(names), cells


def _created(names: str) -> Printer:
    def cells(obj: JsonObject, _now: datetime) -> Cells:
        return [_name(obj), obj["metadata"].get("creationTimestamp", "")]

    return columns(names), cells


# -- network --------------------------------------------------------------------------------------


def _port_text(port: JsonObject) -> str:
    protocol = port.get("protocol", "TCP")
    if port.get("nodePort"):
        return f"{port.get('port')}:{port['nodePort']}/{protocol}"
    return f"{port.get('port')}/{protocol}"


def _external_ip(service: JsonObject) -> str:
    spec, kind = service.get("spec") or {}, dig(service, "spec.type", "ClusterIP")
    external = list(spec.get("externalIPs") or ())
    if kind == "ExternalName":
        return str(spec.get("externalName", ""))
    if kind == "LoadBalancer":
        ingress = dig(service, "status.loadBalancer.ingress", ())
        found = [one.get("ip") or one.get("hostname") or "" for one in ingress]
        return ",".join([*filter(None, found), *external]) or "<pending>"
    return ",".join(external) or "<none>"


def _service(obj: JsonObject, now: datetime) -> Cells:
    ports = ",".join(_port_text(port) for port in dig(obj, "spec.ports", ()))
    return [
        _name(obj),
        dig(obj, "spec.type", "ClusterIP"),
        dig(obj, "spec.clusterIP", "<none>") or "<none>",
        _external_ip(obj),
        ports or "<none>",
        age(obj, now),
        label_text(dig(obj, "spec.selector")),
    ]


def _limited(found: list[str], total: int) -> str:
    if not found:
        return "<none>"
    text = ",".join(found[:_MAX_ENDPOINTS])
    more = total - _MAX_ENDPOINTS
    return f"{text} + {more} more..." if more > 0 else text


def _endpoints(obj: JsonObject, now: datetime) -> Cells:
    found: list[str] = []
    for subset in obj.get("subsets") or ():
        addresses = [one.get("ip", "") for one in subset.get("addresses") or ()]
        ports = [port.get("port") for port in subset.get("ports") or ()]
        if ports:
            found.extend(f"{ip}:{port}" for port in ports for ip in addresses)
        else:
            found.extend(addresses)
    return [_name(obj), _limited(found, len(found)), age(obj, now)]


def _endpoint_slice(obj: JsonObject, now: datetime) -> Cells:
    ports = [str(port.get("port", "*")) for port in obj.get("ports") or ()]
    addresses = [
        address for one in obj.get("endpoints") or () for address in one.get("addresses") or ()
    ]
    return [
        _name(obj),
        obj.get("addressType", ""),
        _limited(ports, len(ports)) if ports else "<unset>",
        _limited(addresses, len(addresses)) if addresses else "<unset>",
        age(obj, now),
    ]


def _ingress(obj: JsonObject, now: datetime) -> Cells:
    hosts = [rule.get("host") for rule in dig(obj, "spec.rules", ()) if rule.get("host")]
    ingress = dig(obj, "status.loadBalancer.ingress", ())
    addresses = [one.get("ip") or one.get("hostname") or "" for one in ingress]
    return [
        _name(obj),
        dig(obj, "spec.ingressClassName", "<none>"),
        ",".join(hosts) or "*",
        ",".join(addresses),
        "80, 443" if dig(obj, "spec.tls") else "80",
        age(obj, now),
    ]


def _ingress_class(obj: JsonObject, now: datetime) -> Cells:
    parameters = dig(obj, "spec.parameters")
    shown = "<none>"
    if parameters:
        kind, group = parameters.get("kind", ""), parameters.get("apiGroup")
        shown = f"{kind}.{group}" if group else kind
        shown += f"/{parameters.get('name', '')}"
    return [_name(obj), dig(obj, "spec.controller", ""), shown, age(obj, now)]


def _network_policy(obj: JsonObject, now: datetime) -> Cells:
    return [_name(obj), selector_text(dig(obj, "spec.podSelector")), age(obj, now)]


# -- nodes and events -----------------------------------------------------------------------------


def _node_status(node: JsonObject) -> str:
    ready = next(
        (one for one in dig(node, "status.conditions", ()) if one.get("type") == "Ready"), None
    )
    if ready is None:
        status = "Unknown"
    else:
        status = "Ready" if ready.get("status") == "True" else "NotReady"
    return f"{status},SchedulingDisabled" if dig(node, "spec.unschedulable") else status


def _node(obj: JsonObject, now: datetime) -> Cells:
    labels = obj["metadata"].get("labels") or {}
    roles = sorted(
        key.removeprefix(_ROLE_PREFIX)
        for key in labels
        if key.startswith(_ROLE_PREFIX) and key != _ROLE_PREFIX
    )
    addresses = {one.get("type"): one.get("address") for one in dig(obj, "status.addresses", ())}
    info = dig(obj, "status.nodeInfo", {})
    return [
        _name(obj),
        _node_status(obj),
        ",".join(roles) or "<none>",
        age(obj, now),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", "<none>"),
        addresses.get("ExternalIP", "<none>"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def _event(obj: JsonObject, now: datetime) -> Cells:
    # Both Event groups are printed; each names the fields in its own way.
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    first = obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp")
    last = obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp")
    first = first or obj.get("eventTime") or obj["metadata"].get("creationTimestamp")
    count = obj.get("count") or obj.get("deprecatedCount") or dig(obj, "series.count") or 1
    last = dig(obj, "series.lastObservedTime") or last or first
    last_seen = since(last, now)
    if count > 1:
        last_seen = f"{last_seen} (x{count} over {since(first, now)})"
    component = source.get("component") or obj.get("reportingComponent") or ""
    component = component or obj.get("reportingController") or ""
    host = source.get("host") or obj.get("reportingInstance")
    return [
        last_seen,
        obj.get("type", ""),
        obj.get("reason", ""),
        f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}",
        str(obj.get("message") or obj.get("note") or "").strip(),
        about.get("fieldPath", ""),
        f"{component}, {host}" if host and component else component,
        since(first, now),
        count,
        _name(obj),
    ]


# -- configuration and access ---------------------------------------------------------------------


def _config_map(obj: JsonObject, now: datetime) -> Cells:
    count = len(obj.get("data") or ()) + len(obj.get("binaryData") or ())
    return [_name(obj), count, age(obj, now)]


def _secret(obj: JsonObject, now: datetime) -> Cells:
    return [_name(obj), obj.get("type", "Opaque"), len(obj.get("data") or ()), age(obj, now)]


def _binding(obj: JsonObject, now: datetime) -> Cells:
    subjects = obj.get("subjects") or ()

    def of_kind(kind: str, shown: Callable[[JsonObject], str]) -> str:
        return ", ".join(shown(one) for one in subjects if one.get("kind") == kind)

    def plain(one: JsonObject) -> str:
        return str(one.get("name", ""))

    def qualified(one: JsonObject) -> str:
        return f"{one.get('namespace', '')}/{one.get('name', '')}"

    return [
        _name(obj),
        f"{dig(obj, 'roleRef.kind', '')}/{dig(obj, 'roleRef.name', '')}",
        age(obj, now),
        of_kind("User", plain),
        of_kind("Group", plain),
        of_kind("ServiceAccount", qualified),
    ]


def _signing_request(obj: JsonObject, now: datetime) -> Cells:
    conditions = [one.get("type") for one in dig(obj, "status.conditions", ())]
    shown = [one for one in ("Approved", "Denied", "Failed") if one in conditions] or ["Pending"]
    if dig(obj, "status.certificate"):
        shown.append("Issued")
    duration = dig(obj, "spec.expirationSeconds")
    return [
        _name(obj),
        age(obj, now),
        dig(obj, "spec.signerName", "<none>"),
        dig(obj, "spec.username", ""),
        f"{duration}s" if duration is not None else "<none>",
        ",".join(shown),
    ]


def _api_service(obj: JsonObject, now: datetime) -> Cells:
    service = dig(obj, "spec.service")
    place = f"{service.get('namespace')}/{service.get('name')}" if service else "Local"
    available: JsonObject = next(
        (one for one in dig(obj, "status.conditions", ()) if one.get("type") == "Available"), {}
    )
    status = available.get("status", "Unknown")
    if status == "False":
        status = f"False ({available.get('reason', '')})"
    return [_name(obj), place, status, age(obj, now)]


# -- storage --------------------------------------------------------------------------------------

_ACCESS = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _access_modes(modes: Any) -> str:
    return ",".join(_ACCESS.get(mode, str(mode)) for mode in modes or ())


def _claim(obj: JsonObject, now: datetime) -> Cells:
    bound = bool(dig(obj, "spec.volumeName"))
    return [
        _name(obj),
        "Terminating" if obj["metadata"].get("deletionTimestamp") else dig(obj, "status.phase", ""),
        dig(obj, "spec.volumeName", ""),
        dig(obj, "status.capacity.storage", "") if bound else "",
        _access_modes(dig(obj, "status.accessModes")) if bound else "",
        dig(obj, "spec.storageClassName", ""),
        dig(obj, "spec.volumeAttributesClassName", "<unset>"),
        age(obj, now),
        dig(obj, "spec.volumeMode", ""),
    ]


def _volume(obj: JsonObject, now: datetime) -> Cells:
    claim = dig(obj, "spec.claimRef")
    return [
        _name(obj),
        dig(obj, "spec.capacity.storage", ""),
        _access_modes(dig(obj, "spec.accessModes")),
        dig(obj, "spec.persistentVolumeReclaimPolicy", ""),
        dig(obj, "status.phase", ""),
        f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "",
        dig(obj, "spec.storageClassName", ""),
        dig(obj, "spec.volumeAttributesClassName", "<unset>"),
        dig(obj, "status.reason", ""),
        age(obj, now),
        dig(obj, "spec.volumeMode", ""),
    ]


def _storage_class(obj: JsonObject, now: datetime) -> Cells:
    annotations = obj["metadata"].get("annotations") or {}
    name = _name(obj)
    if annotations.get("storageclass.kubernetes.io/is-default-class") == "true":
        name += " (default)"
    return [
        name,
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy", "Delete"),
        obj.get("volumeBindingMode", "Immediate"),
        bool(obj.get("allowVolumeExpansion", False)),
        age(obj, now),
    ]


def _priority_class(obj: JsonObject, now: datetime) -> Cells:
    return [
        _name(obj),
        obj.get("value", 0),
        bool(obj.get("globalDefault", False)),
        age(obj, now),
        obj.get("preemptionPolicy", "PreemptLowerPriority"),
    ]


_BINDING = (columns("Name|Role|Age", "Users|Groups|ServiceAccounts"), _binding)
_ADMISSION = "admissionregistration.k8s.io"
_RBAC = "rbac.authorization.k8s.io"
PRINTERS: dict[str, Printer] = {
    "services": (
        columns("Name|Type|Cluster-IP|External-IP|Port(s)|Age", "Selector"),
        _service,
    ),
    "endpoints": (columns("Name|Endpoints|Age"), _endpoints),
    "endpointslices.discovery.k8s.io": (
        columns("Name|AddressType|Ports|Endpoints|Age"),
        _endpoint_slice,
    ),
    "ingresses.networking.k8s.io": (columns("Name|Class|Hosts|Address|Ports|Age"), _ingress),
    "ingressclasses.networking.k8s.io": (
        columns("Name|Controller|Parameters|Age"),
        _ingress_class,
    ),
    "networkpolicies.networking.k8s.io": (columns("Name|Pod-Selector|Age"), _network_policy),
    "nodes": (
        columns(
            "Name|Status|Roles|Age|Version",
            "Internal-IP|External-IP|OS-Image|Kernel-Version|Container-Runtime",
        ),
        _node,
    ),
    "events": (
        columns("Last Seen|Type|Reason|Object|Message", "Subobject|Source|First Seen|#Count|Name"),
        _event,
    ),
    "namespaces": _simple("Name|Status|Age", "status.phase"),
    "configmaps": (columns("Name|#Data|Age"), _config_map),
    "secrets": (columns("Name|Type|#Data|Age"), _secret),
    "serviceaccounts": _counting("Name|#Secrets|Age", "secrets"),
    f"roles.{_RBAC}": _created("Name|Created At"),
    f"clusterroles.{_RBAC}": _created("Name|Created At"),
    f"rolebindings.{_RBAC}": _BINDING,
    f"clusterrolebindings.{_RBAC}": _BINDING,
    "customresourcedefinitions.apiextensions.k8s.io": _created("Name|Created At"),
    "resourcequotas": _simple("Name|Age"),
    "limitranges": _created("Name|Created At"),
    f"mutatingwebhookconfigurations.{_ADMISSION}": _counting("Name|#Webhooks|Age", "webhooks"),
    f"validatingwebhookconfigurations.{_ADMISSION}": _counting("Name|#Webhooks|Age", "webhooks"),
    f"validatingadmissionpolicies.{_ADMISSION}": _counting(
        "Name|#Validations|Age", "spec.validations"
    ),
    f"validatingadmissionpolicybindings.{_ADMISSION}": _simple(
        "Name|PolicyName|Age", "spec.policyName"
    ),
    "leases.coordination.k8s.io": _simple("Name|Holder|Age", "spec.holderIdentity"),
    "certificatesigningrequests.certificates.k8s.io": (
        columns("Name|Age|SignerName|Requestor|RequestedDuration|Condition"),
        _signing_request,
    ),
    "apiservices.apiregistration.k8s.io": (columns("Name|Service|Available|Age"), _api_service),
    "persistentvolumeclaims": (
        columns(
            "Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age",
            "VolumeMode",
        ),
        _claim,
    ),
    "persistentvolumes": (
        columns(
            "Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|"
            "VolumeAttributesClass|Reason|Age",
            "VolumeMode",
        ),
        _volume,
    ),
    "storageclasses.storage.k8s.io": (
        columns("Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age"),
        _storage_class,
    ),
    "priorityclasses.scheduling.k8s.io": (
        columns("Name|#Value|Global-Default|Age|PreemptionPolicy"),
        _priority_class,
    ),
    "runtimeclasses.node.k8s.io": _simple("Name|Handler|Age", "handler"),
}
