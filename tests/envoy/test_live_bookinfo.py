"""Bookinfo's own manifests: every networking sample is accepted by real Envoys, for sidecars and the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from envoy_rig import Envoy, fetch, free_port, wait_for
from mesh_world import World, build_world, pod, service
from pki import make_authority, write_identity

pytestmark = pytest.mark.envoy

SAMPLES = Path(__file__).parents[2] / "samples" / "bookinfo"
NETWORKING = sorted((SAMPLES / "networking").glob("*.yaml"))


def _pods(documents: list[Any]) -> str:
    """A pod for every Deployment of the manifest."""
    found = ""
    for number, entry in enumerate(d for d in documents if d and d["kind"] == "Deployment"):
        template = entry["spec"]["template"]
        found += pod(
            entry["metadata"]["name"],
            f"10.2.0.{number + 1}",
            labels=template["metadata"]["labels"],
            account=template["spec"].get("serviceAccountName", "default"),
        )
    return found


def bookinfo(*files: Path) -> World:
    """Bookinfo with a gateway and some of its networking samples."""
    text = (SAMPLES / "platform" / "kube" / "bookinfo.yaml").read_text()
    text += "\n---\n" + _pods(list(yaml.safe_load_all(text)))
    text += service("istio-ingressgateway", ("http2", 80, 8080), ("https", 443, 8443), app="gw")
    text += pod("gw", "10.2.1.1", labels={"istio": "ingressgateway"})
    for file in files:
        text += f"\n---\n{file.read_text()}"
    return build_world(text)


@pytest.fixture(scope="module")
def envoys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Envoy]]:
    """One Envoy per kind of proxy, reused for all samples."""
    made: dict[str, Envoy] = {}
    world = bookinfo()
    try:
        for name in ("productpage-v1", "reviews-v3", "gw"):
            ports = {
                "0.0.0.0_9080": [("127.0.0.1", free_port())],
                "0.0.0.0_8080": [("127.0.0.1", free_port())],
            }
            inbound = {"virtualInbound": [("127.0.0.1", free_port())]}
            outbound = {"virtualOutbound": [("127.0.0.1", free_port())]}
            envoy = Envoy(tmp_path_factory.mktemp(name), ports | inbound | outbound)
            made[name] = envoy
            write_identity(envoy.certificates, make_authority(), "spiffe://cluster.local/ns/d/sa/b")
            envoy.load(world.resources(name), world.endpoints(name))
            envoy.start()
        yield made
    finally:
        for envoy in made.values():
            envoy.close()


@pytest.mark.parametrize("sample", NETWORKING, ids=lambda path: path.stem)
def test_sample_is_accepted(envoys: dict[str, Envoy], sample: Path) -> None:
    """No listener, route table or cluster is refused, and Envoy reaches the new state."""
    always = [
        SAMPLES / "networking" / name
        for name in ("bookinfo-gateway.yaml", "destination-rule-all.yaml")
    ]
    files = [*always, *([sample] if sample not in always else [])]
    if sample.stem.startswith("destination-rule"):
        files = [always[0], sample]
    world = bookinfo(*files)
    assert not [finding for finding in world.findings if finding.level.value == "Error"]
    for name, envoy in envoys.items():
        envoy.load(world.resources(name), world.endpoints(name))
        wanted = {cluster.name for cluster in world.ir(name).clusters}

        def reached(envoy: Envoy = envoy, wanted: set[str] = wanted) -> bool:
            assert not envoy.ads.nacks, envoy.ads.nacks
            text = fetch(envoy.admin, "/clusters").body.decode()
            known = {line.split("::")[0] for line in text.splitlines()} - {"xds"}
            return known == wanted

        wait_for(f"{name} has the clusters of {sample.name}", reached)
