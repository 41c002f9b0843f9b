"""Pod addresses. In: the node's pod CIDR. Out: unique addresses. Pure.

An address is handed out again as late as possible, so that a late packet or a stale client does
not reach a stranger.
"""

from __future__ import annotations

import ipaddress


class AddressPool:
    """Hands out the host addresses of one network in turn."""

    def __init__(self, cidr: str) -> None:
        self._network = ipaddress.IPv4Network(cidr)
        self._taken: set[str] = set()
        self._next = 1

    def take(self) -> str:
        """Return a free address; raise RuntimeError if there is none."""
        size = self._network.num_addresses
        for _ in range(size):
            # The first (network), second (by habit the gateway) and last addresses stay unused.
            self._next = self._next + 1 if self._next + 1 < size - 1 else 2
            address = str(self._network.network_address + self._next)
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise RuntimeError(f"no free pod address in {self._network}: {len(self._taken)} are in use")

    def give_back(self, address: str) -> None:
        """Make ``address`` free again."""
        self._taken.discard(address)
