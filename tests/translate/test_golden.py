"""Golden files: ``tests/golden/translate/<case>.in.yaml`` -> ``.out.yaml``.

The first lines of an input say ``# proxy: <pod>`` and, if wanted, ``# mesh: <MeshConfig as flow YAML>``. A new input is a new
test; ``pytest --update-golden`` writes its output, which is then reviewed like code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from meltemi.ir.render import render
from mesh_world import build_world

FOLDER = Path(__file__).parents[1] / "golden" / "translate"
CASES = sorted(FOLDER.glob("*.in.yaml"))
# Access logs and filters repeat in every chain; the Envoy golden files show them.
_NOISE = ("access_logs", "filters_of_http", "inspection")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write values out, never as anchors."""
        return True


def _header(text: str, name: str, fallback: str = "") -> str:
    found = re.search(rf"^# {name}: (.*)$", text, re.MULTILINE)
    return found[1] if found else fallback


def _quiet(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _quiet(v) for k, v in value.items() if k not in _NOISE}
    if isinstance(value, list):
        return [_quiet(entry) for entry in value]
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name.removesuffix(".in.yaml"))
def test_golden(case: Path, golden: Any) -> None:
    """The IR of one proxy is as reviewed."""
    text = case.read_text()
    world = build_world(text, mesh=_header(text, "mesh"), source=case.name)
    assert not [f for f in world.findings if f.level.value == "Error"], world.findings
    ir = world.ir(_header(text, "proxy"))
    document = {
        "listeners": [_quiet(render(entry)) for entry in ir.listeners],
        "routes": [render(entry) for entry in ir.routes],
        "clusters": [render(entry) for entry in ir.clusters],
        "endpoint_needs": [render(entry) for entry in ir.endpoint_needs],
        "secrets": [render(entry) for entry in ir.secrets],
        "findings": [str(finding) for finding in ir.findings],
    }
    dumped = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)
    golden.check(case.with_name(case.name.replace(".in.", ".out.")), dumped)
