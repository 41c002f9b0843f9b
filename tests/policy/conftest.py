"""One guarded workload per test module."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from policy.guard import Guard
from policy.tokens import KeyServer


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    """A server behind a real Envoy, at an address of this process."""
    number = os.getpid()
    made = Guard(
        tmp_path_factory.mktemp("guard"), f"127.44.{number >> 8 & 0xFF}.{number % 254 + 1}"
    )
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def issuer_server() -> Iterator[KeyServer]:
    """One issuer on the network."""
    server = KeyServer()
    yield server
    server.close()
