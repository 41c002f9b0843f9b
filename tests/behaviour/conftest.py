"""The services that behaviour tests talk about, and a short way to write rules for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from meltemi.testing.client import Client
from meltemi.testing.mesh import Mesh
from pki import Authority, make_authority

SERVICES = Path(__file__).parent / "services.yaml"
FRONT = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 8080, name: http, protocol: HTTP}, hosts: ["*"]}
  - {port: {number: 8081, name: http-other, protocol: HTTP}, hosts: ["*"]}
  - port: {number: 8443, name: https-a, protocol: HTTPS}
    hosts: ["a.example.com"]
    tls: {mode: SIMPLE, credentialName: a}
  - port: {number: 8443, name: https-b, protocol: HTTPS}
    hosts: ["b.example.com"]
    tls: {mode: SIMPLE, credentialName: a}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: front}
spec:
  hosts: ["*"]
  gateways: [front]
  http:
  - {name: front, route: [{destination: {host: reviews, port: {number: 9080}}}]}
"""


@pytest.fixture
def shop(mesh: Mesh) -> Mesh:
    """``caller`` and ``other`` call; ``reviews`` (v1, v2, v3) and ``details`` answer."""
    return mesh.apply(SERVICES)


@pytest.fixture
def caller(shop: Mesh) -> Client:
    """The usual client."""
    return shop.client("caller")


@pytest.fixture
def front(shop: Mesh) -> Client:
    """A gateway with two plaintext ports, and TLS for two names, that leads to ``reviews``."""
    shop.apply(FRONT, shop.tls_secret("a", "a.example.com", "b.example.com"))
    return shop.gateway()


Apply = Callable[[str], Mesh]


def indented(text: str, by: int) -> str:
    """Every line moved to the right."""
    return "\n".join(
        " " * by + line if line.strip() else line for line in text.strip("\n").split("\n")
    )


@pytest.fixture
def http(shop: Mesh) -> Apply:
    """Apply the ``http`` section of a VirtualService for host ``reviews``."""

    def apply(section: str) -> Mesh:
        return shop.apply(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: reviews}\n"
            f"spec:\n  hosts: [reviews]\n  http:\n{indented(section, 2)}\n"
        )

    return apply


@pytest.fixture
def policy(shop: Mesh) -> Apply:
    """Apply the ``trafficPolicy`` of a DestinationRule for host ``reviews`` (its subsets stay)."""

    def apply(section: str) -> Mesh:
        return shop.apply(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\n"
            f"spec:\n  host: reviews\n  trafficPolicy:\n{indented(section, 4)}\n"
            "  subsets:\n"
            "  - {name: v1, labels: {version: v1}}\n"
            "  - {name: v2, labels: {version: v2}}\n"
            "  - {name: v3, labels: {version: v3}}\n"
        )

    return apply


@pytest.fixture(scope="module")
def authority() -> Authority:
    """Signs for servers and clients outside the mesh."""
    return make_authority("outside")


@pytest.fixture
def fresh() -> str:
    """The name of a Secret that no proxy has had: Envoy keeps the last good one of a name."""
    return f"secret-{next(_NUMBERS)}"


_NUMBERS = itertools.count()
