"""Loopback addresses for the workloads of one test session.

In: names. Out: addresses of 127.0.0.0/8, which need no set-up and no privilege on Linux. Promises: sessions that run at
the same time (pytest-xdist, two checkouts) never share an address: each holds a block 127.B.0.0/16, claimed by a bound
socket that the kernel frees with the process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

# Blocks from here on, below what recipes and resolvers use (127.0.x.x, 127.0.0.53).
_FIRST_BLOCK, _LAST_BLOCK = 16, 239
_CLAIM_PORT = 15999
_SPARE = 61_000  # ports that cannot be bound move here, above the ephemeral ports


class NoAddresses(RuntimeError):
    """This machine cannot give loopback addresses; the text says why."""


class Block:
    """The addresses of one session."""

    def __init__(self) -> None:
        self._claim, self.number = _claim()
        self._given: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}
        self._ports: dict[int, int] = {0: 0}
        self._logical: dict[int, int] = {}
        # For tests of this very rule, on machines where every port may be bound.
        self._lowest = int(os.environ.get("MELTEMI_TESTING_LOWEST_PORT") or 0)

    def address(self, kind: str, name: str) -> str:
        """The address of ``name``, always the same. Kinds: proxy, app, outside, bind."""
        key = (kind, name)
        known = self._given.get(key)
        if known is None:
            count = self._counts.get(kind, 0) + 1
            self._counts[kind] = count
            third = _KINDS[kind] + count // 250
            if third >= _KINDS[kind] + 60:
                raise NoAddresses(f"more than {60 * 250} addresses of kind {kind}")
            known = f"127.{self.number}.{third}.{count % 250 + 1}"
            self._given[key] = known
        return known

    def owns(self, address: str) -> bool:
        """True for addresses of this block."""
        return address.startswith(f"127.{self.number}.")

    def port(self, number: int) -> int:
        """The port to bind instead of ``number``: another one only where this process cannot bind it.

        That is so for ports below 1024 (for most users), and for ports that a program of this machine has taken on
        all addresses.
        """
        known = self._ports.get(number)
        if known is None:
            known = number
            if not self._can_bind(number):
                free = (p for p in range(_SPARE, 65_536) if p not in self._logical)
                known = next(p for p in free if self._can_bind(p))
            self._ports[number] = known
            self._logical[known] = number
        return known

    def logical_port(self, number: int) -> int:
        """What ``port`` was called with."""
        return self._logical.get(number, number)

    def _can_bind(self, number: int) -> bool:
        if 0 < number < self._lowest:
            return False
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((f"127.{self.number}.0.1", number))
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Let others have the block."""
        self._claim.close()


_KINDS = {"proxy": 0, "app": 64, "outside": 128, "bind": 192}


def _blocks() -> Iterator[int]:
    """Every block once, starting at one that differs from process to process."""
    span = _LAST_BLOCK - _FIRST_BLOCK + 1
    start = os.getpid() % span
    for step in range(span):
        yield _FIRST_BLOCK + (start + step) % span


def _claim() -> tuple[socket.socket, int]:
    for number in _blocks():
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind((f"127.{number}.0.1", _CLAIM_PORT))
        except OSError as error:
            claim.close()
            last = error
            continue
        return claim, number
    raise NoAddresses(
        f"no free block of loopback addresses ({last}); meltemi.testing needs Linux, where all of 127.0.0.0/8 "
        "is local"
    )
