"""Check Services: type, addresses, ports, and what may change.

In: a Service whose types are right. Out: field errors in Kubernetes' words. Pure.
"""

from __future__ import annotations

from typing import Any

from localkube.apiserver import validation_errors as fe
from localkube.apiserver import validation_formats as formats
from localkube.apiserver.errors import FieldError
from localkube.apiserver.validation_meta import validate_labels

Object = dict[str, Any]
Errors = list[FieldError]

_SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_PROTOCOLS = ("TCP", "UDP", "SCTP")


def validate_service(obj: Object) -> Errors:
    """Errors in a Service."""
    errors: Errors = []
    spec = obj.get("spec") or {}
    kind = spec.get("type")
    if kind not in _SERVICE_TYPES:
        errors.append(fe.unsupported("spec.type", kind, _SERVICE_TYPES))
    if spec.get("sessionAffinity") not in (None, "ClientIP", "None"):
        errors.append(
            fe.unsupported("spec.sessionAffinity", spec["sessionAffinity"], ("ClientIP", "None"))
        )
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        if spec.get(field) not in (None, "Cluster", "Local"):
            errors.append(fe.unsupported(f"spec.{field}", spec[field], ("Cluster", "Local")))
    headless = spec.get("clusterIP") == "None"
    if kind == "ExternalName":
        name = str(spec.get("externalName") or "")
        if not name:
            errors.append(fe.required("spec.externalName"))
        elif problem := formats.check_dns_subdomain(name.lower().rstrip(".")):
            errors.append(fe.invalid("spec.externalName", name, problem))
    elif not spec.get("ports") and not headless:
        errors.append(fe.required("spec.ports"))
    if headless and kind in ("NodePort", "LoadBalancer"):
        errors.append(
            fe.invalid(
                "spec.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services"
            )
        )
    elif spec.get("clusterIP") and not headless:
        problem = formats.check_ip(str(spec["clusterIP"]))
        if problem:
            errors.append(fe.invalid("spec.clusterIPs[0]", spec["clusterIP"], problem))
    errors += validate_labels(spec.get("selector"), "spec.selector")
    _validate_service_ports(spec.get("ports") or [], errors)
    return errors


def _validate_service_ports(ports: list[Object], errors: Errors) -> None:
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        name = port.get("name") or ""
        if not name:
            if len(ports) > 1:
                errors.append(fe.required(f"{path}.name"))
        elif problem := formats.check_dns_label(name):
            errors.append(fe.invalid(f"{path}.name", name, problem))
        elif name in names:
            errors.append(fe.duplicate(f"{path}.name", name))
        names.add(name)
        if problem := formats.check_port(port.get("port")):
            errors.append(fe.invalid(f"{path}.port", port.get("port"), problem))
        protocol = port.get("protocol")
        if protocol not in _PROTOCOLS:
            errors.append(fe.unsupported(f"{path}.protocol", protocol, sorted(_PROTOCOLS)))
        target = port.get("targetPort")
        if isinstance(target, str):
            if problem := formats.check_port_name(target):
                errors.append(fe.invalid(f"{path}.targetPort", target, problem))
        elif target is not None and (problem := formats.check_port(target)):
            errors.append(fe.invalid(f"{path}.targetPort", target, problem))
        key = (str(protocol), int(port.get("port") or 0))
        if key in numbers:
            errors.append(fe.duplicate(path, {"port": key[1], "protocol": key[0]}))
        numbers.add(key)


def validate_service_update(new: Object, old: Object) -> Errors:
    """Errors in a change of a Service's spec: clusterIP stays while the type has one."""
    if "ExternalName" in (new.get("type"), old.get("type")):
        return []
    before, after = old.get("clusterIP"), new.get("clusterIP")
    if before and before != after:
        detail = "may not change once set"
        return [fe.invalid("spec.clusterIPs[0]", [after] if after else [], detail)]
    return []
