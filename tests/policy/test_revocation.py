"""Revoked certificates on real Envoys: a sidecar and a gateway refuse them, and only them, without a restart."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from envoy_rig import Envoy, fetch, free_port, wait_for
from mesh_world import build_world, pod
from pki import Authority, make_authority, trust, write_identity
from policy.guard import PLAIN, Caller, Guard

pytestmark = pytest.mark.envoy
GOOD, BAD = Caller("shop/good"), Caller("shop/bad")


def status(guard: Guard, caller: Caller) -> int:
    """0 when the connection is refused."""
    try:
        return guard.send(caller).status
    except OSError:
        return 0


def certificate(guard: Guard, caller: Caller) -> bytes:
    """The caller's certificate, which it then goes on using."""
    guard.send(caller)
    context = guard._contexts[(caller.spiffe, ("istio-http/1.1", "istio"))]
    index = list(guard._contexts.values()).index(context)
    return (guard.folder / f"caller-{index}.pem").read_bytes()


def test_a_sidecar_refuses_revoked_certificates(guard: Guard) -> None:
    """From the list's arrival until it is taken back; all others, and what is no mTLS, go on."""
    guard.apply()
    revoked = guard.authority.revoke(certificate(guard, BAD)).decode()
    trust(guard.envoy.certificates, guard.authority, guard.authority.revoke().decode())
    assert status(guard, GOOD) == status(guard, BAD) == 200
    trust(guard.envoy.certificates, guard.authority, revoked)
    wait_for("the refusal", lambda: status(guard, BAD) == 0)
    assert status(guard, GOOD) == 200
    assert status(guard, PLAIN) == 200
    trust(guard.envoy.certificates, guard.authority)
    wait_for("the return", lambda: status(guard, BAD) == 200)


MUTUAL = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: eastwestgateway}
  servers:
  - port: {number: 443, name: tls, protocol: HTTPS}
    hosts: ["x.example"]
    tls: {mode: ISTIO_MUTUAL}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: ["x.example"]
  gateways: [web]
  http: [{directResponse: {status: 204}}]
"""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[tuple[Envoy, int, Authority]]:
    """A gateway that takes the mesh's certificates, and only these."""
    port, authority = free_port(), make_authority()
    envoy = Envoy(tmp_path / "gateway", {"0.0.0.0_443": [("127.0.0.1", port)]})
    write_identity(envoy.certificates, authority, "spiffe://cluster.local/ns/istio-system/sa/gw")
    labels = {"istio": "eastwestgateway"}
    world = build_world(pod("gw", "10.1.0.9", namespace="istio-system", labels=labels) + MUTUAL)
    assert not world.findings
    envoy.load(world.resources("gw.istio-system"), world.endpoints("gw.istio-system"))
    envoy.start()
    try:
        yield envoy, port, authority
    finally:
        envoy.close()


def visit(folder: Path, port: int, authority: Authority, who: str, chain: bytes = b"") -> int:
    """The status that a mesh member hears at the gateway; 0 when the connection is refused."""
    context = ssl.create_default_context(cadata=authority.root.decode())
    context.check_hostname = False
    context.load_cert_chain(folder / who)
    try:
        return fetch(port, host="x.example", tls=context).status
    except OSError:
        return 0


def test_a_gateway_refuses_revoked_certificates(
    gateway: tuple[Envoy, int, Authority], tmp_path: Path
) -> None:
    """The same at a server with ISTIO_MUTUAL."""
    envoy, port, authority = gateway
    issued = {
        name: authority.issue(f"spiffe://cluster.local/ns/a/sa/{name}") for name in ("good", "bad")
    }
    for name, (chain, key) in issued.items():
        (tmp_path / name).write_bytes(chain + key)
    wait_for("the gateway", lambda: visit(tmp_path, port, authority, "bad") == 204)
    trust(envoy.certificates, authority, authority.revoke(issued["bad"][0]).decode())
    wait_for("the refusal", lambda: visit(tmp_path, port, authority, "bad") == 0)
    assert visit(tmp_path, port, authority, "good") == 204
