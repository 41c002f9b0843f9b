"""Every golden case is accepted by a real Envoy, listeners, routes, clusters and secrets alike."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from envoy_rig import Envoy, fetch, free_port, wait_for
from meltemi.push.secrets import SecretData
from mesh_world import build_world
from pki import make_authority, write_identity

pytestmark = pytest.mark.envoy

CASES = sorted((Path(__file__).parents[1] / "golden" / "translate").glob("*.in.yaml"))


def _header(text: str, name: str) -> str:
    found = re.search(rf"^# {name}: (.*)$", text, re.MULTILINE)
    return found[1] if found else ""


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_accepted(case: Path, tmp_path: Path) -> None:
    """No NACK, and all clusters and listeners are active in the end."""
    text = case.read_text()
    world = build_world(text, mesh=_header(text, "mesh"), source=case.name)
    name = _header(text, "proxy")
    # The cases' Secrets hold no real keys; Envoy wants some.
    chain, key = make_authority().issue("shop.example")
    real = {place: SecretData(chain, key) for place in world.context.secrets}
    world.context = replace(world.context, secrets=real, memo={})
    ir = world.ir(name)
    places = {entry.name: [("127.0.0.1", free_port())] for entry in ir.listeners}
    envoy = Envoy(tmp_path, places)
    try:
        write_identity(envoy.certificates, make_authority(), "spiffe://cluster.local/ns/d/sa/c")
        envoy.load(world.resources(name), world.endpoints(name))
        envoy.start()
        wanted = {entry.name for entry in ir.listeners}

        def active() -> bool:
            assert not envoy.ads.nacks, envoy.ads.nacks
            lines = fetch(envoy.admin, "/listeners").body.decode().splitlines()
            return {line.split("::")[0] for line in lines} >= wanted

        wait_for("all listeners", active)
        clusters = fetch(envoy.admin, "/clusters").body.decode()
        assert {cluster.name for cluster in ir.clusters} <= {
            line.split("::")[0] for line in clusters.splitlines()
        }
    finally:
        envoy.close()
