"""An agent asks istiod for the patches of its bootstrap before it starts Envoy."""

from __future__ import annotations

from pathlib import Path

from istiod.plane import files, running
from meltemi.adapters.agent_bootstrap import BootstrapQuestion, PatchedBootstrap, ask_for_patches

PATCHES = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: start, namespace: istio-system}
spec:
  configPatches:
  - applyTo: BOOTSTRAP
    patch: {operation: MERGE, value: {stats_flush_interval: 7s}}
  - applyTo: BOOTSTRAP
    match: {context: GATEWAY}
    patch: {operation: MERGE, value: {stats_flush_interval: 9s}}
"""


async def _ask(port: int, **metadata: str) -> PatchedBootstrap:
    node = {
        "id": "sidecar~10.0.0.1~web-1.shop~shop.svc.cluster.local",
        "metadata": {"NAMESPACE": "shop", **metadata},
    }
    question = BootstrapQuestion(
        address=f"127.0.0.1:{port}",
        server_name="istiod",
        plaintext=True,
        root_file="",
        token_file="",
        bootstrap={"node": node, "stats_flush_interval": "5s"},
    )
    return await ask_for_patches(question)


async def test_istiod_answers_who_takes_patches(tmp_path: Path) -> None:
    """Those of its kind of proxy; nothing, at once, to others and where there is none."""
    (tmp_path / "patches.yaml").write_text(PATCHES)
    async with running(files(tmp_path)) as plane:
        port = plane.ports["grpc"]
        made = await _ask(port, BOOTSTRAP_XDS_AGENT="true")
        assert made.patches == ("0000/MERGE/istio-system/start",)
        assert '"statsFlushInterval": "7s"' in made.text
        assert await _ask(port) == PatchedBootstrap()
