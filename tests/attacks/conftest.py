"""A sidecar and a gateway on real Envoys, with applications that keep every byte they get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from attacks.raw import RawApp
from policy.guard import Guard
from policy.test_gateway import Edge


@dataclass
class Site:
    """What is attacked: ``inner`` from a plaintext client's place, ``edge`` from the internet's."""

    inner: Guard
    edge: Edge
    inner_app: RawApp
    edge_app: RawApp

    def target(self, where: str) -> tuple[str, int, RawApp]:
        """(address, port, application behind it)."""
        if where == "edge":
            return "127.0.0.1", self.edge.web, self.edge_app
        return self.inner.ip, self.inner.http.port, self.inner_app


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One of each for all attacks of a module."""
    number = os.getpid()
    inner = Guard(tmp_path_factory.mktemp("in"), f"127.45.{number >> 8 & 0xFF}.{number % 254 + 1}")
    edge = Edge(tmp_path_factory.mktemp("edge"))
    inner.http.close()
    edge.app.close()
    made = Site(inner, edge, RawApp(inner.http.port), RawApp(edge.app.port))
    try:
        yield made
    finally:
        for part in (inner.envoy, inner.auto, inner.tcp, made.inner_app, made.edge_app):
            part.close()
        for part in (edge.envoy, edge.beta, edge.tcp):
            part.close()
