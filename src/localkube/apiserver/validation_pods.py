"""Check pods: containers, ports, volumes, probes, resources, and what may change in a running pod.

In: a pod spec whose types are right. Out: field errors in Kubernetes' words. Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from localkube.apiserver import validation_errors as fe
from localkube.apiserver import validation_formats as formats
from localkube.apiserver.errors import FieldError

Object = dict[str, Any]

_RESTART_POLICIES = ("Always", "Never", "OnFailure")
_DNS_POLICIES = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
PROTOCOLS = ("SCTP", "TCP", "UDP")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = ("exec", "grpc", "httpGet", "tcpSocket")
_UPDATE_TEXT = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)


def validate_pod_spec(spec: Object, path: str) -> list[FieldError]:
    """Errors in a pod's spec."""
    errors: list[FieldError] = []
    volumes = _validate_volumes(spec.get("volumes") or (), f"{path}.volumes", errors)
    containers = spec.get("containers") or ()
    if not containers:
        errors.append(fe.required(f"{path}.containers"))
    names: set[str] = set()
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(spec.get(field) or ()):
            here = f"{path}.{field}[{index}]"
            errors += _validate_container(container, here, volumes, names, init=field[0] == "i")
    _check_one_of(spec, "restartPolicy", _RESTART_POLICIES, path, errors)
    _check_one_of(spec, "dnsPolicy", _DNS_POLICIES, path, errors)
    grace = spec.get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < 0:
        errors.append(
            fe.invalid(
                f"{path}.terminationGracePeriodSeconds",
                grace,
                "must be greater than or equal to 0",
            )
        )
    for field in ("serviceAccountName", "hostname", "subdomain", "nodeName"):
        value = spec.get(field)
        check = (
            formats.check_dns_label
            if field in ("hostname", "subdomain")
            else (formats.check_dns_subdomain)
        )
        problem = check(value) if value else None
        if problem:
            errors.append(fe.invalid(f"{path}.{field}", value, problem))
    _validate_host_aliases(spec, path, errors)
    if spec.get("hostNetwork"):
        _validate_host_network(containers, path, errors)
    return errors


def _check_one_of(
    spec: Object, field: str, allowed: tuple[str, ...], path: str, errors: list[FieldError]
) -> None:
    value = spec.get(field)
    if value is not None and value not in allowed:
        errors.append(fe.unsupported(f"{path}.{field}", value, allowed))


def _validate_host_aliases(spec: Object, path: str, errors: list[FieldError]) -> None:
    for index, alias in enumerate(spec.get("hostAliases") or ()):
        problem = formats.check_ip(str(alias.get("ip", "")))
        if problem:
            errors.append(
                fe.invalid(f"{path}.hostAliases[{index}].ip", alias.get("ip", ""), problem)
            )


def _validate_host_network(
    containers: Iterable[Object], path: str, errors: list[FieldError]
) -> None:
    for index, container in enumerate(containers):
        for number, port in enumerate(container.get("ports") or ()):
            if port.get("hostPort") not in (None, 0, port.get("containerPort")):
                errors.append(
                    fe.invalid(
                        f"{path}.containers[{index}].ports[{number}].containerPort",
                        port.get("containerPort"),
                        "must match `hostPort` when `hostNetwork` is true",
                    )
                )


def _validate_volumes(volumes: Iterable[Object], path: str, errors: list[FieldError]) -> set[str]:
    names: set[str] = set()
    for index, volume in enumerate(volumes):
        here = f"{path}[{index}]"
        name = volume.get("name") or ""
        if not name:
            errors.append(fe.required(f"{here}.name"))
        elif problem := formats.check_dns_label(name):
            errors.append(fe.invalid(f"{here}.name", name, problem))
        if name in names:
            errors.append(fe.duplicate(f"{here}.name", name))
        names.add(name)
        sources = [key for key in volume if key != "name"]
        if not sources:
            errors.append(fe.required(here, "must specify a volume type"))
        for extra in sources[1:]:
            errors.append(
                fe.forbidden(f"{here}.{extra}", "may not specify more than 1 volume type")
            )
        _validate_volume_source(volume, here, errors)
    return names


def _validate_volume_source(volume: Object, path: str, errors: list[FieldError]) -> None:
    for kind, field in (("secret", "secretName"), ("configMap", "name")):
        source = volume.get(kind)
        if isinstance(source, dict) and not source.get(field):
            errors.append(fe.required(f"{path}.{kind}.{field}"))
    claim = volume.get("persistentVolumeClaim")
    if isinstance(claim, dict) and not claim.get("claimName"):
        errors.append(fe.required(f"{path}.persistentVolumeClaim.claimName"))
    for index, source in enumerate((volume.get("projected") or {}).get("sources") or ()):
        token = source.get("serviceAccountToken")
        if not isinstance(token, dict):
            continue
        here = f"{path}.projected.sources[{index}].serviceAccountToken"
        life_s = token.get("expirationSeconds")
        if isinstance(life_s, int) and life_s < 600:
            errors.append(
                fe.invalid(
                    f"{here}.expirationSeconds",
                    life_s,
                    "may not specify a duration less than 10 minutes",
                )
            )
        if not token.get("path"):
            errors.append(fe.required(f"{here}.path"))


def _validate_container(
    container: Object, path: str, volumes: set[str], names: set[str], *, init: bool
) -> list[FieldError]:
    errors: list[FieldError] = []
    name = container.get("name") or ""
    if not name:
        errors.append(fe.required(f"{path}.name"))
    elif problem := formats.check_dns_label(name):
        errors.append(fe.invalid(f"{path}.name", name, problem))
    elif name in names:
        errors.append(fe.duplicate(f"{path}.name", name))
    names.add(name)
    image = container.get("image") or ""
    if not image:
        errors.append(fe.required(f"{path}.image"))
    elif image.strip() != image:
        errors.append(
            fe.invalid(f"{path}.image", image, "must not have leading or trailing whitespace")
        )
    _check_one_of(container, "imagePullPolicy", _PULL_POLICIES, path, errors)
    _validate_ports(container.get("ports") or (), f"{path}.ports", errors)
    _validate_environment(container, path, errors)
    _validate_mounts(container.get("volumeMounts") or (), f"{path}.volumeMounts", volumes, errors)
    _validate_resources(container.get("resources") or {}, f"{path}.resources", errors)
    restartable = container.get("restartPolicy") == "Always"
    for probe_name in _PROBES:
        probe = container.get(probe_name)
        if not isinstance(probe, dict):
            continue
        here = f"{path}.{probe_name}"
        if init and not restartable:
            errors.append(
                fe.forbidden(
                    here, "may not be set for init containers without restartPolicy=Always"
                )
            )
        _validate_probe(probe, probe_name, here, errors)
    return errors


def _validate_ports(ports: Iterable[Object], path: str, errors: list[FieldError]) -> None:
    names: set[str] = set()
    for index, port in enumerate(ports):
        here = f"{path}[{index}]"
        name = port.get("name")
        if name:
            problem = formats.check_port_name(name)
            if problem:
                errors.append(fe.invalid(f"{here}.name", name, problem))
            if name in names:
                errors.append(fe.duplicate(f"{here}.name", name))
            names.add(name)
        number = port.get("containerPort")
        if not number:
            errors.append(fe.required(f"{here}.containerPort"))
        elif problem := formats.check_port(number):
            errors.append(fe.invalid(f"{here}.containerPort", number, problem))
        host_port = port.get("hostPort")
        if host_port and (problem := formats.check_port(host_port)):
            errors.append(fe.invalid(f"{here}.hostPort", host_port, problem))
        _check_one_of(port, "protocol", PROTOCOLS, here, errors)


def _validate_environment(container: Object, path: str, errors: list[FieldError]) -> None:
    for index, variable in enumerate(container.get("env") or ()):
        here = f"{path}.env[{index}]"
        name = variable.get("name") or ""
        if not name:
            errors.append(fe.required(f"{here}.name"))
        elif problem := formats.check_environment_name(name):
            errors.append(fe.invalid(f"{here}.name", name, problem))
        source = variable.get("valueFrom")
        if not isinstance(source, dict):
            continue
        if variable.get("value"):
            errors.append(
                fe.invalid(
                    f"{here}.valueFrom", "", "may not be specified when `value` is not empty"
                )
            )
        if len(source) == 0:
            detail = (
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or "
                "`secretKeyRef`"
            )
            errors.append(fe.invalid(f"{here}.valueFrom", "", detail))
        elif len(source) > 1:
            detail = "may not have more than one field specified at a time"
            errors.append(fe.invalid(f"{here}.valueFrom", "", detail))


def _validate_mounts(
    mounts: Iterable[Object], path: str, volumes: set[str], errors: list[FieldError]
) -> None:
    places: set[str] = set()
    for index, mount in enumerate(mounts):
        here = f"{path}[{index}]"
        name, place = mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            errors.append(fe.required(f"{here}.name"))
        elif name not in volumes:
            errors.append(fe.not_found(f"{here}.name", name))
        if not place:
            errors.append(fe.required(f"{here}.mountPath"))
        elif place in places:
            errors.append(fe.invalid(f"{here}.mountPath", place, "must be unique"))
        places.add(place)
        sub_path = mount.get("subPath") or ""
        if sub_path.startswith("/"):
            errors.append(fe.invalid(f"{here}.subPath", sub_path, "must be a relative path"))
        elif ".." in sub_path.split("/"):
            errors.append(fe.invalid(f"{here}.subPath", sub_path, "must not contain '..'"))


def _validate_resources(resources: Object, path: str, errors: list[FieldError]) -> None:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for field, quantities in (("limits", limits), ("requests", requests)):
        for name, value in quantities.items():
            here = f"{path}.{field}[{name}]"
            number = formats.parse_quantity(value)
            if number is None:
                errors.append(fe.invalid(here, value, formats.QUANTITY_PROBLEM))
            elif number < 0:
                errors.append(fe.invalid(here, value, "must be greater than or equal to 0"))
    for name, value in requests.items():
        wanted = formats.parse_quantity(value)
        most = formats.parse_quantity(limits[name]) if name in limits else None
        if wanted is not None and most is not None and wanted > most:
            detail = f"must be less than or equal to {name} limit of {limits[name]}"
            errors.append(fe.invalid(f"{path}.requests", value, detail))


def _validate_probe(probe: Object, name: str, path: str, errors: list[FieldError]) -> None:
    handlers = [handler for handler in _HANDLERS if handler in probe]
    if not handlers:
        errors.append(fe.required(path, "must specify a handler type"))
    for extra in handlers[1:]:
        errors.append(fe.forbidden(f"{path}.{extra}", "may not specify more than 1 handler type"))
    for handler in ("httpGet", "tcpSocket", "grpc"):
        target = probe.get(handler)
        if not isinstance(target, dict):
            continue
        port = target.get("port")
        problem = (
            formats.check_port_name(port) if isinstance(port, str) else formats.check_port(port)
        )
        if problem:
            errors.append(fe.invalid(f"{path}.{handler}.port", port, problem))
    if isinstance(probe.get("exec"), dict) and not probe["exec"].get("command"):
        errors.append(fe.required(f"{path}.exec.command"))
    for field in (
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ):
        value = probe.get(field)
        if isinstance(value, int) and value < 0:
            errors.append(
                fe.invalid(f"{path}.{field}", value, "must be greater than or equal to 0")
            )
    if name != "readinessProbe" and probe.get("successThreshold", 1) != 1:
        errors.append(
            fe.invalid(f"{path}.successThreshold", probe["successThreshold"], "must be 1")
        )


def validate_pod_update(new: Object, old: Object) -> list[FieldError]:
    """Errors in a change of a pod's spec; ephemeral containers have a subresource of their own."""
    before, after = old.get("spec") or {}, new.get("spec") or {}
    errors: list[FieldError] = []
    if len(before.get("containers") or ()) != len(after.get("containers") or ()):
        errors.append(
            fe.forbidden("spec.containers", "pod updates may not add or remove containers")
        )
        return errors
    if not before.get("nodeName") and after.get("nodeName"):
        # A binding gives the pod its node, once.
        before = {**before, "nodeName": after["nodeName"]}
    if _without_mutable(before) != _without_mutable(after):
        errors.append(fe.forbidden("spec", _UPDATE_TEXT))
    return errors


def _without_mutable(spec: Object) -> Object:
    """The pod's spec less what may change: images, deadlines, tolerations, node assignment."""
    rest = copy.deepcopy(spec)
    for field in (
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "ephemeralContainers",
        "schedulingGates",
    ):
        rest.pop(field, None)
    for field in ("containers", "initContainers"):
        for container in rest.get(field) or ():
            for mutable in ("image", "resources", "resizePolicy"):
                container.pop(mutable, None)
    return rest
