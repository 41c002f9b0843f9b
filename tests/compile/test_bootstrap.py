"""``meltemi compile -o bootstrap``: one file, one command, and a real Envoy serves requests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from envoy_rig import Backend, fetch, free_port, wait_for
from meltemi.adapters.envoy_process import find_envoy
from meltemi.commands.compile import compile_

pytestmark = pytest.mark.envoy

MESH = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: app}}
spec:
  hosts: [app.example.com]
  resolution: STATIC
  ports: [{{number: {front}, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {app}}}}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: front}}
spec:
  selector: {{istio: ingressgateway}}
  servers: [{{port: {{number: {front}, name: http, protocol: HTTP}}, hosts: [www.example.com]}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: front}}
spec:
  hosts: [www.example.com]
  gateways: [front]
  http:
  - match: [{{uri: {{prefix: /app}}}}]
    route: [{{destination: {{host: app.example.com}}}}]
  - directResponse: {{status: 418, body: {{string: tea}}}}
---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: caller}}
spec:
  workloadSelector: {{labels: {{app: caller}}}}
  egress:
  - {{port: {{number: {front}, name: http, protocol: HTTP}}, bind: 127.0.0.1, captureMode: NONE, hosts: ["./app.example.com"]}}
  - {{hosts: ["./*"]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: caller}}
spec: {{template: {{metadata: {{labels: {{app: caller}}}}, spec: {{containers: [{{name: app}}]}}}}}}
"""
_FIXED = (15000, 15001, 15006, 15020, 15021, 15090)


@contextmanager
def envoy(workload: str, folder: Path, text: str) -> Iterator[None]:
    """The proxy that the verb's output describes; its fixed ports moved, so that tests may run at the same time."""
    (folder / "mesh.yaml").write_text(text)
    arguments = ["-f", str(folder / "mesh.yaml"), "--proxy", workload, "-o", "bootstrap"]
    done = CliRunner().invoke(compile_, arguments, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 0, done.output
    moved = {number: free_port() for number in _FIXED}

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: moved.get(entry, entry) if key in ("portValue", "port_value") else move(entry)
                for key, entry in value.items()
            }
        return [move(entry) for entry in value] if isinstance(value, list) else value

    path = folder / "bootstrap.json"
    path.write_text(json.dumps(move(json.loads(done.stdout))))
    log = folder / "envoy.log"
    command = [find_envoy(), "-c", str(path), "--log-path", str(log), "--disable-hot-restart"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait(10)


def _answers(port: int, path: str, host: str) -> int:
    try:
        return fetch(port, path, host=host).status
    except OSError:
        return 0


def test_a_gateway_serves(tmp_path: Path) -> None:
    """A route to a service and an answer of its own."""
    app, port = Backend("app"), free_port()
    try:
        with envoy("istio-ingressgateway", tmp_path, MESH.format(app=app.port, front=port)):
            wait_for("an answer", lambda: _answers(port, "/", "www.example.com") == 418)
            assert fetch(port, "/", host="www.example.com").body == b"tea"
            assert fetch(port, "/app/1", host="www.example.com").json["path"] == "/app/1"
            assert fetch(port, "/", host="other.example.com").status == 404
    finally:
        app.close()


def test_a_sidecar_serves_its_application(tmp_path: Path) -> None:
    """Through a listener that needs no capture."""
    app, port = Backend("app"), free_port()
    try:
        with envoy("caller.default", tmp_path, MESH.format(app=app.port, front=port)):
            wait_for("an answer", lambda: _answers(port, "/x", "app.example.com") == 200)
            assert fetch(port, "/y", host="app.example.com").json["path"] == "/y"
    finally:
        app.close()
