"""A container's environment variables and the pod fields they can take. Pure.

In: pod, container, the values of referenced ConfigMaps and Secrets, Services. Out: a dict, or
``MissingReference`` that says which object or key is not there.
Rules: https://kubernetes.io/docs/tasks/inject-data-application/ and the field paths of the
downward API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import Any

Pod = Mapping[str, Any]
Lookup = Callable[[str, str], Mapping[str, str] | None]
"""(``ConfigMap`` or ``Secret``, name) -> its text data, None if it does not exist."""

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]$")
_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12),
    "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
    "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


class MissingReference(Exception):
    """A required ConfigMap, Secret or key does not exist, or a field path is not known."""


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What the node has: the answer where a container sets no limit."""

    cpu: Decimal
    memory: Decimal
    ephemeral_storage: Decimal = Decimal(0)


def parse_quantity(text: str | int | float) -> Decimal:
    """Return the number of a Kubernetes quantity such as ``500m`` or ``64Mi``."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)", str(text))
    if not match or match[2] not in _SUFFIXES:
        raise ValueError(f"{text!r} is not a quantity")
    return Decimal(match[1]) * _SUFFIXES[match[2]]


def resolve_field(pod: Pod, path: str) -> str:
    """Return the value of a downward API field path."""
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    subscript = _SUBSCRIPT.match(path)
    if subscript:
        return str((meta.get(subscript[1]) or {}).get(subscript[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        items = sorted((meta.get(path[9:]) or {}).items())
        return "\n".join(f"{key}={_quote(value)}" for key, value in items)
    if path in ("metadata.name", "metadata.namespace", "metadata.uid"):
        return str(meta.get(path[9:], ""))
    if path in ("spec.nodeName", "spec.serviceAccountName"):
        return str(spec.get(path[5:], ""))
    if path in ("status.hostIP", "status.podIP"):
        return str(status.get(path[7:], ""))
    if path in ("status.podIPs", "status.hostIPs"):
        return ",".join(str(item.get("ip")) for item in status.get(path[7:]) or [])
    raise MissingReference(f"field path {path!r} is not one of the downward API's")


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def resolve_resource(
    container: Mapping[str, Any], reference: Mapping[str, Any], node: NodeResources
) -> str:
    """Return a resourceFieldRef's value: the limit (or request), divided and rounded up."""
    path = str(reference.get("resource", ""))
    kind, _, name = path.partition(".")
    resources = container.get("resources") or {}
    value = (resources.get(kind) or {}).get(name)
    if value is None and kind == "requests":
        value = (resources.get("limits") or {}).get(name)
    if value is not None:
        amount = parse_quantity(value)
    elif kind == "limits":
        amount = getattr(node, name.replace("-", "_"), Decimal(0))
    else:
        amount = Decimal(0)
    divisor = parse_quantity(reference.get("divisor") or "1") or Decimal(1)
    return str((amount / divisor).to_integral_value(ROUND_CEILING))


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by its value; unknown names stay, ``$$`` is one dollar sign."""

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return values.get(match[1], match[0])

    return _REFERENCE.sub(replace, text)


def build_environment(
    pod: Pod,
    container: Mapping[str, Any],
    lookup: Lookup,
    node: NodeResources,
    services: Mapping[str, str],
) -> dict[str, str]:
    """Return all variables of ``container`` in the order of precedence of Kubernetes."""
    values: dict[str, str] = dict(services)
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix") or ""
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            reference = source.get(key)
            if reference:
                data = _required(lookup, kind, reference)
                values.update({prefix + name: value for name, value in (data or {}).items()})
    for variable in container.get("env") or []:
        value = _variable(pod, container, variable, lookup, node, values)
        if value is not None:
            values[variable["name"]] = value
    return values


def _required(lookup: Lookup, kind: str, reference: Mapping[str, Any]) -> Mapping[str, str] | None:
    data = lookup(kind, reference["name"])
    if data is None and not reference.get("optional"):
        raise MissingReference(f'{kind.lower()} "{reference["name"]}" not found')
    return data


def _variable(
    pod: Pod,
    container: Mapping[str, Any],
    variable: Mapping[str, Any],
    lookup: Lookup,
    node: NodeResources,
    values: Mapping[str, str],
) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return expand(variable.get("value") or "", values)
    if source.get("fieldRef"):
        return resolve_field(pod, source["fieldRef"]["fieldPath"])
    if source.get("resourceFieldRef"):
        return resolve_resource(container, source["resourceFieldRef"], node)
    for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
        reference = source.get(field)
        if not reference:
            continue
        data = _required(lookup, kind, reference)
        if data is not None and reference["key"] in data:
            return data[reference["key"]]
        if not reference.get("optional"):
            raise MissingReference(
                f"couldn't find key {reference['key']} in {kind} "
                f"{pod['metadata']['namespace']}/{reference['name']}"
            )
        return None
    raise MissingReference(f"env {variable['name']}: valueFrom has no source that is known")


def build_service_variables(
    services: Iterable[Mapping[str, Any]], namespace: str, links: bool
) -> dict[str, str]:
    """Return the variables for Services: always the API server's, with ``links`` the namespace's."""
    values: dict[str, str] = {}
    for service in services:
        meta, spec = service["metadata"], service.get("spec") or {}
        api = meta["namespace"] == "default" and meta["name"] == "kubernetes"
        if not api and not (links and meta["namespace"] == namespace):
            continue
        address, ports = spec.get("clusterIP"), spec.get("ports") or []
        if not address or address == "None" or not ports:
            continue
        values.update(_service_links(meta["name"], address, ports))
    return values


def _service_links(name: str, address: str, ports: list[Mapping[str, Any]]) -> dict[str, str]:
    prefix = name.upper().replace("-", "_").replace(".", "_")
    first = ports[0]
    values = {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": str(first["port"]),
        f"{prefix}_PORT": f"{(first.get('protocol') or 'TCP').lower()}://{address}:{first['port']}",
    }
    for port in ports:
        protocol = port.get("protocol") or "TCP"
        number = port["port"]
        if port.get("name"):
            label = port["name"].upper().replace("-", "_")
            values[f"{prefix}_SERVICE_PORT_{label}"] = str(number)
        stem = f"{prefix}_PORT_{number}_{protocol}"
        values[stem] = f"{protocol.lower()}://{address}:{number}"
        values[f"{stem}_PROTO"] = protocol.lower()
        values[f"{stem}_PORT"] = str(number)
        values[f"{stem}_ADDR"] = address
    return values
