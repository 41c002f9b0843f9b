"""A real kopf operator against the server: discovery, list, watch, merge patches, finalizers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localkube_apiserver.api_process import ApiProcess

_OPERATOR = """
import kopf

@kopf.on.create("kopf.test", "v1", "jobs")
def created(spec, **_):
    return {"doubled": spec["n"] * 2}

@kopf.on.update("kopf.test", "v1", "jobs", field="spec.n")
def updated(new, patch, **_):
    patch.status["doubled"] = new * 2

@kopf.on.delete("kopf.test", "v1", "jobs")
def deleted(**_):
    pass
"""


def _crd() -> dict[str, Any]:
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": free},
        "subresources": {"status": {}},
    }
    names = {"plural": "jobs", "singular": "job", "kind": "Job", "listKind": "JobList"}
    spec = {"group": "kopf.test", "scope": "Namespaced", "names": names, "versions": [version]}
    return {"metadata": {"name": "jobs.kopf.test"}, "spec": spec}


def _eventually(check: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not check():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_an_operator_works(api: ApiProcess, namespace: str, tmp_path: Path) -> None:
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert api.post(crds, _crd()).status == 201
    operator, log = tmp_path / "operator.py", tmp_path / "log"
    operator.write_text(_OPERATOR)
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig)}
    command = [sys.executable, "-m", "kopf", "run", "-n", namespace, str(operator)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        path = f"/apis/kopf.test/v1/namespaces/{namespace}/jobs"
        assert api.post(path, {"metadata": {"name": "j"}, "spec": {"n": 4}}).status == 201

        def status(name: str) -> Any:
            return api.get(f"{path}/j").body.get("status", {}).get(name)

        _eventually(lambda: status("created") == {"doubled": 8}, process, log)
        api.patch(f"{path}/j", {"spec": {"n": 5}})
        _eventually(lambda: status("doubled") == 10, process, log)
        held = api.delete(f"{path}/j").body
        assert held["metadata"]["finalizers"]
        _eventually(lambda: api.get(f"{path}/j").status == 404, process, log)
    finally:
        process.terminate()
        process.wait(20)
