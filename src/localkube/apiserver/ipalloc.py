"""ClusterIPs and node ports of Services.

In: a Service that is about to be stored, and the Services that are. Out: the Service with its
addresses set. Promises that no two stored Services share an address or port: what is taken is
read from the store each time, and nothing is awaited between choosing and storing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from localkube.apiserver.errors import ApiError, FieldError, invalid

JsonObject = dict[str, Any]

# Addresses below are for well-known Services (kubernetes 1, DNS 10); as in Kubernetes, the
# dynamic range begins after a static band of min(max(16, size/16), 256) addresses.
_STATIC_BAND = 256


@dataclass(slots=True)
class ServiceAllocator:
    """Chooses addresses from one Service CIDR and one range of node ports."""

    service_cidr: str
    node_ports: tuple[int, int]
    _next_ip: int = _STATIC_BAND
    _next_port: int = 0

    def allocate(
        self, service: JsonObject, old: JsonObject | None, stored: Iterable[JsonObject]
    ) -> None:
        """Set spec.clusterIP(s) and nodePorts in place. Raises ApiError 422 for what is taken.

        `stored` are all Services; the one being updated is left out by its uid.
        """
        spec = service.get("spec")
        if not isinstance(spec, dict):
            return
        uid = service["metadata"].get("uid")
        others = [one for one in stored if one["metadata"].get("uid") != uid]
        self._keep_old(spec, (old or {}).get("spec") or {})
        self._allocate_ip(service, spec, others)
        self._allocate_ports(service, spec, others)

    @staticmethod
    def _keep_old(spec: JsonObject, before: JsonObject) -> None:
        """An update that omits what was allocated keeps it, as `kubectl replace` relies on."""
        if spec.get("type") == "ExternalName":
            for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(name, None)
            return
        if before.get("type") == "ExternalName":
            return
        for name in ("clusterIP", "clusterIPs"):
            if before.get(name) and not spec.get(name):
                spec[name] = before[name]
        if not _wants_node_ports(spec):
            if _wants_node_ports(before):
                _drop_old_ports(spec, before)
            return
        known = {(p.get("port"), p.get("protocol", "TCP")): p for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            same = known.get((port.get("port"), port.get("protocol", "TCP")))
            if same and same.get("nodePort") and not port.get("nodePort"):
                port["nodePort"] = same["nodePort"]

    def _allocate_ip(self, service: JsonObject, spec: JsonObject, others: list[JsonObject]) -> None:
        if spec.get("type") == "ExternalName":
            return
        wanted = spec.get("clusterIP") or next(iter(spec.get("clusterIPs") or ()), "")
        if wanted != "None":
            taken = {(one.get("spec") or {}).get("clusterIP") for one in others}
            wanted = self._check_ip(service, wanted, taken) if wanted else self._free_ip(taken)
        spec["clusterIP"] = wanted
        spec["clusterIPs"] = [wanted]
        spec.setdefault("ipFamilies", ["IPv4"])
        spec.setdefault("ipFamilyPolicy", "SingleStack")

    def _check_ip(self, service: JsonObject, wanted: Any, taken: set[Any]) -> str:
        try:
            inside = ipaddress.ip_address(wanted) in ipaddress.ip_network(self.service_cidr)
        except ValueError:
            why = "must be an IPv4 address or None"
            raise _refuse(service, "spec.clusterIPs[0]", wanted, why) from None
        if not inside:
            why = (
                "failed to allocate IP: the provided IP is not in the valid range. The range of "
                f"valid IPs is {self.service_cidr}"
            )
            raise _refuse(service, "spec.clusterIPs", wanted, why)
        if wanted in taken:
            why = "failed to allocate IP: provided IP is already allocated"
            raise _refuse(service, "spec.clusterIPs", wanted, why)
        return str(wanted)

    def _free_ip(self, taken: set[Any]) -> str:
        network = ipaddress.ip_network(self.service_cidr)
        band = min(_STATIC_BAND, max(16, network.num_addresses // 16))
        start = max(self._next_ip, band)
        size = network.num_addresses - 1
        for offset in _around(start, band, size):
            address = str(network[offset])
            if address not in taken:
                self._next_ip = offset + 1
                return address
        raise _exhausted(f"no free ClusterIP is left in {self.service_cidr}")

    def _allocate_ports(
        self, service: JsonObject, spec: JsonObject, others: list[JsonObject]
    ) -> None:
        if not _wants_node_ports(spec):
            return
        taken = {
            (port.get("nodePort"), port.get("protocol", "TCP"))
            for one in others
            for port in (one.get("spec") or {}).get("ports") or ()
        }
        low, high = self.node_ports
        for index, port in enumerate(spec.get("ports") or ()):
            protocol, wanted = port.get("protocol", "TCP"), port.get("nodePort")
            field = f"spec.ports[{index}].nodePort"
            if wanted:
                if not isinstance(wanted, int) or not low <= wanted <= high:
                    why = f"provided port is not in the valid range. The range of valid ports is {low}-{high}"
                    raise _refuse(service, field, wanted, why)
                if (wanted, protocol) in taken:
                    raise _refuse(service, field, wanted, "provided port is already allocated")
            else:
                port["nodePort"] = wanted = self._free_port(taken, protocol)
            taken.add((wanted, protocol))

    def _free_port(self, taken: set[tuple[Any, Any]], protocol: str) -> int:
        low, high = self.node_ports
        for port in _around(max(self._next_port, low), low, high + 1):
            if (port, protocol) not in taken:
                self._next_port = port + 1
                return port
        raise _exhausted(f"no free node port is left in {low}-{high}")


def _around(start: int, low: int, end: int) -> Iterator[int]:
    yield from range(start, end)
    yield from range(low, min(start, end))


def _wants_node_ports(spec: JsonObject) -> bool:
    if spec.get("type") == "LoadBalancer":
        return spec.get("allocateLoadBalancerNodePorts") is not False
    return spec.get("type") == "NodePort"


def _drop_old_ports(spec: JsonObject, before: JsonObject) -> None:
    old = {port.get("nodePort") for port in before.get("ports") or ()}
    for port in spec.get("ports") or ():
        if port.get("nodePort") in old:
            port.pop("nodePort", None)


def _refuse(service: JsonObject, field: str, value: Any, why: str) -> ApiError:
    shown = value if isinstance(value, int) else f'"{value}"'
    cause = FieldError(field, "FieldValueInvalid", f"Invalid value: {shown}: {why}")
    return invalid("Service", service["metadata"].get("name", ""), [cause])


def _exhausted(why: str) -> ApiError:
    return ApiError(500, "InternalError", f"Internal error occurred: {why}")
