"""Addresses of LoadBalancer Services: each gets its own 127.x.y.z, and keeps it.

In: a Service and the addresses of the others. Out: status.loadBalancer.ingress. The node opens the
ports there; see `localkube.node`.
"""

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

from localkube.client.resources import SERVICES
from localkube.controllers.actions import Executor, Note, Patch, Plan
from localkube.controllers.cache import Cache
from localkube.controllers.loop import Controller
from localkube.controllers.pods import is_terminating

Object = dict[str, Any]
COMPONENT: Final = "service-controller"
_LOOPBACK: Final = ipaddress.ip_network("127.0.0.0/8")


def addresses_of(service: Object) -> list[str]:
    """The addresses in a Service's status."""
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return [entry["ip"] for entry in ingress if entry.get("ip")]


def choose_address(network: str, wanted: str | None, taken: Iterable[str]) -> str | None:
    """The address asked for if it is a free loopback one, else the first free of `network`
    ("127.x.y"); None if neither is to be had."""
    used = set(taken)
    if wanted:
        try:
            inside = ipaddress.ip_address(wanted) in _LOOPBACK
        except ValueError:
            inside = False
        return wanted if inside and wanted not in used else None
    for number in range(1, 255):
        address = f"{network}.{number}"
        if address not in used:
            return address
    return None


def plan_service(service: Object, others: Iterable[Object], network: str) -> Plan | None:
    """Decide about one Service."""
    current = addresses_of(service)
    balanced = service["spec"].get("type") == "LoadBalancer"
    if service["spec"].get("loadBalancerClass") or is_terminating(service):
        return None  # another controller's, or on its way out
    if not balanced:
        if not current:
            return None
        cleared = {"status": {"loadBalancer": {"ingress": None}}}
        return Plan([Patch(SERVICES, service, cleared, subresource="status")])
    wanted = service["spec"].get("loadBalancerIP") or None
    if current and (wanted is None or wanted == current[0]):
        return None
    taken = [address for other in others if other is not service for address in addresses_of(other)]
    address = choose_address(network, wanted, taken)
    if address is None:
        text = (
            f"spec.loadBalancerIP {wanted} is not a free address of 127.0.0.0/8; leave it out "
            "to get one"
            if wanted
            else f"all addresses of {network}.0/24 are taken by other LoadBalancer Services"
        )
        return Plan([Note(service, "Warning", "SyncLoadBalancerFailed", text, COMPONENT)], 30.0)
    status = {"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}}
    text = f"This Service answers on {address} of this machine"
    return Plan(
        [
            Patch(SERVICES, service, status, subresource="status"),
            Note(service, "Normal", "EnsuredLoadBalancer", text, COMPONENT),
        ]
    )


class LoadBalancerController(Controller):
    """Gives LoadBalancer Services their addresses, one after the other."""

    name = "loadbalancer"
    resource = SERVICES
    workers = 1  # so that two Services cannot choose the same address

    def __init__(self, cache: Cache, executor: Executor, network: str) -> None:
        self._network = network
        super().__init__(cache, executor)

    def plan(self, key: str) -> Plan | None:
        """Decide about one Service."""
        services = self.cache.of(SERVICES)
        service = services.by_key(key)
        if service is None:
            return None
        return plan_service(service, services.items(), self._network)
