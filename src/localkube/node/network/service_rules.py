"""Which address and port of a Service leads to which pods, as values and as nftables changes.

In: Service and EndpointSlice objects. Out: ``ServicePort`` values and the batch that turns one set
of them into another. Pure.

Follows kube-proxy: only ready endpoints (or, if there are none, those that still serve while
terminating), a random one per connection, ClientIP affinity as a hash of the source, NodePorts on
the node address, and a refusal where no endpoint is left.
https://kubernetes.io/docs/reference/networking/virtual-ips/
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from localkube.node.network import nftables as nf

TABLE = "localkube"
_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_DESTINATION_NAT, _SOURCE_NAT = -100, 100  # the kernel's usual priorities

Backend = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of one Service: where it is reached, and who answers."""

    name: str
    protocol: str
    addresses: tuple[Backend, ...]
    backends: tuple[Backend, ...]
    client_affinity: bool


def derive_service_ports(
    services: Iterable[Mapping[str, Any]], slices: Iterable[Mapping[str, Any]], node_ip: str
) -> dict[str, ServicePort]:
    """Return all ports that have a virtual address, by chain name."""
    by_service: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for item in slices:
        meta = item["metadata"]
        owner = (meta.get("labels") or {}).get("kubernetes.io/service-name")
        if owner and item.get("addressType") == "IPv4":
            by_service.setdefault((meta["namespace"], owner), []).append(item)
    ports: dict[str, ServicePort] = {}
    for service in services:
        meta, spec = service["metadata"], service.get("spec") or {}
        cluster_ips = [
            ip
            for ip in (spec.get("clusterIPs") or [spec.get("clusterIP")])
            if ip and ip != "None" and ":" not in ip
        ]
        if not cluster_ips or spec.get("type") == "ExternalName":
            continue
        own_slices = by_service.get((meta["namespace"], meta["name"]), [])
        for port in spec.get("ports") or []:
            entry = _service_port(meta, spec, port, cluster_ips, own_slices, node_ip)
            ports[entry.name] = entry
    return ports


def _service_port(
    meta: Mapping[str, Any],
    spec: Mapping[str, Any],
    port: Mapping[str, Any],
    cluster_ips: list[str],
    slices: list[Mapping[str, Any]],
    node_ip: str,
) -> ServicePort:
    protocol = port.get("protocol") or "TCP"
    addresses = [(ip, int(port["port"])) for ip in cluster_ips]
    if port.get("nodePort"):
        addresses.append((node_ip, int(port["nodePort"])))
    return ServicePort(
        name=f"{meta['namespace']}/{meta['name']}:{port['port']}/{protocol}",
        protocol=protocol,
        addresses=tuple(addresses),
        backends=derive_backends(slices, port.get("name") or "", protocol),
        client_affinity=spec.get("sessionAffinity") == "ClientIP",
    )


def derive_backends(
    slices: Iterable[Mapping[str, Any]], port_name: str, protocol: str
) -> tuple[Backend, ...]:
    """Return the pods that answer a Service port, sorted."""
    ready: set[Backend] = set()
    terminating: set[Backend] = set()
    for item in slices:
        number = next(
            (
                p.get("port")
                for p in item.get("ports") or []
                if (p.get("name") or "") == port_name and (p.get("protocol") or "TCP") == protocol
            ),
            None,
        )
        if number is None:
            continue
        for endpoint in item.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            found = {(address, int(number)) for address in endpoint.get("addresses") or []}
            if conditions.get("ready") is not False:
                ready |= found
            elif conditions.get("serving") and conditions.get("terminating"):
                terminating |= found
    return tuple(sorted(ready or terminating))


def address_key(address: str, protocol: str, port: int) -> bytes:
    """Return the key of the map of all Service addresses."""
    return struct.pack(
        "!4sB3xH2x", ipaddress.IPv4Address(address).packed, _PROTOCOLS[protocol], port
    )


def build_table(service_cidr: str, dns_ip: str) -> nf.Batch:
    """Return the batch that (re)creates our table without any Service."""
    network = ipaddress.IPv4Network(service_cidr)
    batch = nf.Batch(TABLE)
    batch.add_table()  # so that deleting it cannot fail
    batch.delete_table()
    batch.add_table()
    batch.add_set("services", 12, (nf.TYPE_VERDICT, 16))
    batch.add_set("hairpin", 8)
    for name, hook in (("prerouting", nf.HOOK_PREROUTING), ("output", nf.HOOK_OUTPUT)):
        batch.add_base_chain(name, "nat", hook, _DESTINATION_NAT)
        batch.add_rule(
            name,
            nf.ip_destination(nf.REG32_00),
            nf.meta(nf.META_L4PROTO, nf.REG32_00 + 1),
            nf.destination_port(nf.REG32_00 + 2),
            nf.lookup("services", destination=nf.VERDICT),
        )
    batch.add_base_chain("postrouting", "nat", nf.HOOK_POSTROUTING, _SOURCE_NAT)
    # A pod that reaches itself through a Service must see another source, or it would drop
    # the packet as its own.
    batch.add_rule(
        "postrouting",
        nf.ip_source(nf.REG32_00),
        nf.ip_destination(nf.REG32_00 + 1),
        nf.lookup("hairpin"),
        nf.masquerade(),
    )
    batch.add_chain("refuse")
    batch.add_rule("refuse", nf.meta(nf.META_L4PROTO), nf.equal(b"\x06"), nf.reject_reset())
    batch.add_rule("refuse", nf.reject_unreachable())
    for name, hook in (("filter-forward", nf.HOOK_FORWARD), ("filter-output", nf.HOOK_OUTPUT)):
        batch.add_base_chain(name, "filter", hook, 0)
        dns = ipaddress.IPv4Address(dns_ip).packed
        batch.add_rule(name, nf.ip_destination(), nf.equal(dns), nf.verdict(nf.ACCEPT))
        # What still has a Service address here was not translated: nobody answers it.
        batch.add_rule(
            name,
            nf.ip_destination(),
            nf.mask(network.netmask.packed),
            nf.equal(network.network_address.packed),
            nf.verdict(nf.GOTO, "refuse"),
        )
    return batch


def build_changes(old: Mapping[str, ServicePort], new: Mapping[str, ServicePort]) -> nf.Batch:
    """Return the batch that turns the rules for ``old`` into those for ``new``."""
    batch = nf.Batch(TABLE)
    before, after = _reachable(old), _reachable(new)
    old_keys, new_keys = _keys(before), _keys(after)
    moved = [key for key, chain in old_keys.items() if new_keys.get(key) != chain]
    if moved:
        batch.delete_elements("services", moved)
    for name in before.keys() - after.keys():
        batch.flush_chain(name)
        batch.delete_chain(name)
    for name, entry in after.items():
        previous = before.get(name)
        if previous is None:
            batch.add_chain(name)
        elif (previous.backends, previous.client_affinity) == (
            entry.backends,
            entry.client_affinity,
        ):
            continue
        else:
            batch.flush_chain(name)
        _add_choice(batch, entry)
    added = [
        (key, nf.verdict_data(nf.GOTO, chain))
        for key, chain in new_keys.items()
        if old_keys.get(key) != chain
    ]
    if added:
        batch.add_elements("services", added)
    return batch


def _reachable(ports: Mapping[str, ServicePort]) -> dict[str, ServicePort]:
    return {name: port for name, port in ports.items() if port.backends}


def _keys(ports: Mapping[str, ServicePort]) -> dict[bytes, str]:
    """Return chain names by address; of two Services that claim one address the first keeps it."""
    keys: dict[bytes, str] = {}
    for name, port in sorted(ports.items()):
        for address, number in port.addresses:
            keys.setdefault(address_key(address, port.protocol, number), name)
    return keys


def _add_choice(batch: nf.Batch, entry: ServicePort) -> None:
    """Add the rule that picks a backend and rewrites the destination."""
    number = batch.add_set("__map%d", 4, (1, 8), anonymous=True)
    rows = [
        (
            struct.pack("=I", index),
            nf.value_data(struct.pack("!4sH2x", ipaddress.IPv4Address(ip).packed, port)),
        )
        for index, (ip, port) in enumerate(entry.backends)
    ]
    batch.add_elements("__map%d", rows, number)
    count = len(entry.backends)
    choice = (
        [nf.ip_source(), nf.hash_source(count)]
        if entry.client_affinity
        else [nf.random_below(count)]
    )
    batch.add_rule(
        entry.name,
        *choice,
        nf.lookup("__map%d", number, destination=nf.REG32_00),
        nf.dnat(nf.REG32_00, nf.REG32_00 + 1),
    )
