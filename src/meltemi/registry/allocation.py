"""Automatic addresses for the hosts of ServiceEntries, so that clients can tell them apart by address.

In: all ServiceEntries, with the addresses that their status says they had before. Out: per host one of 240.240.0.0/16 and one of
2001:2::/48 (the ranges that Istio uses). Promises: what the status says stays; everything else depends on the set of entries
alone, so that every replica, every restart, and a compilation of the same files give the same addresses.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from meltemi.model.config import Config
from meltemi.model.topology import ServiceEntry
from meltemi.registry.index import ServiceKey

AUTO_ALLOCATE = "networking.istio.io/enable-autoallocate-ip"


@dataclass(frozen=True, slots=True)
class _Pool:
    """``size`` addresses of a network, in rows of 254 so that a last byte is never 0 or 255."""

    network: IPv4Network | IPv6Network
    size: int = 255 * 254

    def at(self, slot: int) -> str:
        return str(self.network[slot // 254 * 256 + slot % 254 + 1])

    def holds(self, text: str) -> bool:
        try:
            return ip_address(text) in self.network
        except ValueError:
            return False


_POOLS = (_Pool(IPv4Network("240.240.0.0/16")), _Pool(IPv6Network("2001:2::/48")))


def allocates(config: Config[ServiceEntry]) -> bool:
    """True when the hosts of an entry get automatic addresses: it lists none, resolves to something, and does not opt out."""
    spec = config.spec
    return (
        not spec.addresses
        and spec.resolution != "NONE"
        and config.meta.labels.get(AUTO_ALLOCATE, "true").lower() != "false"
    )


def _allocated_hosts(config: Config[ServiceEntry]) -> list[ServiceKey]:
    if not allocates(config):
        return []
    hosts = dict.fromkeys(host for host in config.spec.hosts if "*" not in host)
    return [ServiceKey(host, config.meta.namespace) for host in hosts]


def allocate(entries: Iterable[Config[ServiceEntry]]) -> dict[ServiceKey, tuple[str, ...]]:
    """The addresses of every host, IPv4 first: what its status says, else a hash of its name, moved on while taken.

    Older entries choose first, so that a new one moves none.
    """
    ordered = sorted(entries, key=lambda c: (c.meta.created, c.meta.namespace, c.meta.name))
    wanted = list(dict.fromkeys(key for config in ordered for key in _allocated_hosts(config)))
    found: dict[ServiceKey, tuple[str, ...]] = dict.fromkeys(wanted, ())
    for pool in _POOLS:
        given = _kept(pool, ordered, found)
        taken = set(given.values())
        for key in wanted:
            if key not in given and len(taken) < pool.size:
                given[key] = _free(pool, f"{key.namespace}/{key.hostname}", taken)
                taken.add(given[key])
        for key, address in given.items():
            found[key] = (*found[key], address)
    return found


def _kept(
    pool: _Pool, ordered: list[Config[ServiceEntry]], wanted: Mapping[ServiceKey, object]
) -> dict[ServiceKey, str]:
    """What statuses say already; of two hosts with one address the older entry's keeps it."""
    kept: dict[str, ServiceKey] = {}
    known: set[ServiceKey] = set()
    for config in ordered:
        for host, address in config.status.addresses:
            key = ServiceKey(host, config.meta.namespace)
            if key in wanted and key not in known and address not in kept and pool.holds(address):
                kept[address] = key
                known.add(key)
    return {key: address for address, key in kept.items()}


def _free(pool: _Pool, name: str, taken: set[str]) -> str:
    slot = zlib.crc32(name.encode()) % pool.size
    while pool.at(slot) in taken:
        slot = (slot + 1) % pool.size
    return pool.at(slot)


def status_addresses(
    config: Config[ServiceEntry], allocated: Mapping[ServiceKey, tuple[str, ...]]
) -> list[dict[str, str]]:
    """What an entry's ``status.addresses`` shall be."""
    return [
        {"value": address, "host": key.hostname}
        for key in _allocated_hosts(config)
        for address in allocated.get(key, ())
    ]
