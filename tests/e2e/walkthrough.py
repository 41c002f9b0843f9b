"""README's walk-through, line by line, as a hands-on Istio user types it."""

from __future__ import annotations

import subprocess
import time

import pytest

from e2e.conftest import Shell, wait_for


def _operator_logs(shell: Shell) -> None:
    """``kubectl logs -f`` until the operator says that it is done."""
    line = "kubectl logs -f --selector=name=istio-operator -n istio-operator"
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + 180
    try:
        for text in process.stdout:
            lines.append(text)
            if "end reconciling resources" in text:
                return
            if time.monotonic() > deadline:
                break
    finally:
        process.kill()
        process.wait()
    pytest.fail("the operator did not end reconciling:\n" + "".join(lines))


def run(shell: Shell) -> None:
    """The walk-through up to the open page; each line is one of README's."""
    shell("meltemi operator init", timeout=120)
    shell("kubectl create ns istio-system")
    shell("kubectl apply -f samples/istio-manifest.yaml")
    _operator_logs(shell)
    shell("kubectl create ns bookinfo")
    shell("kubectl apply -n bookinfo -f samples/bookinfo/platform/kube/bookinfo.yaml")
    shell("kubectl label namespace bookinfo istio-injection=enabled")
    shell("kubectl delete pods --all -n bookinfo")
    images = (
        "kubectl get pods --selector=app=productpage -n bookinfo "
        "-o jsonpath='{.items[*].spec.containers[*].image}' | tr -s '[[:space:]]' '\\n'"
    )
    found = wait_for("a productpage pod", lambda: shell(images).split())
    assert len(found) == 2, f"the app's image and the proxy's: {found}"
    assert "examples-bookinfo-productpage" in found[0]
    assert "/proxy:" in found[1]
    shell("kubectl apply -n bookinfo -f samples/bookinfo/networking/bookinfo-gateway.yaml")
    shell("kubectl wait pods --all -n bookinfo --for=condition=Ready --timeout=120s", timeout=130)
