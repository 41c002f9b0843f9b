"""One whole cluster for the end-to-end tests: localkube, the operator, the mesh, Bookinfo.

Everything is driven as a user would: the `meltemi` command, real kubectl, HTTP through the ingress gateway. The
cluster has a name and a state folder of its own, so runs beside each other do not meet.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


class Shell:
    """A user's terminal: runs command lines, fails loudly with all that was printed."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __call__(
        self, line: str, *, timeout: float = 120, check: bool = True, stdin: str | None = None
    ) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            env=self.environment,
            cwd=ROOT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            pytest.fail(f"$ {line}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def json(self, line: str) -> Any:
        return json.loads(self(line))


def terminal(home: Path) -> Shell:
    """A terminal whose clusters have their state under ``home``."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "LOCALKUBE_HOME": str(home),
    }
    environment.pop("KUBECONFIG", None)
    if shutil.which("kubectl", path=environment["PATH"]) is None:
        pytest.fail("there is no kubectl: make setup installs one into .venv/bin")
    return Shell(environment)


def adopt_environment(shell: Shell, *, name: str = "default") -> None:
    """What ``eval "$(meltemi local env)"`` does to a terminal."""
    exported = shell(f"meltemi local env --name {name}")
    for variable, value in re.findall(r"export (\w+)=\"?([^\"\n]+)\"?", exported):
        if variable != "PATH":
            shell.environment[variable] = value.strip("'")


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A terminal with a cluster of its own, taken away at the end.

    With MELTEMI_E2E_HOME set, the cluster with that state is used, or made, and left running: for work on tests.
    """
    kept = os.environ.get("MELTEMI_E2E_HOME")
    shell = terminal(Path(kept) if kept else tmp_path_factory.mktemp("localkube"))
    try:
        shell("meltemi local up --detach", timeout=90)
        adopt_environment(shell)
        yield shell
    finally:
        if not kept:
            shell("meltemi local down", timeout=90, check=False)
            shell("meltemi local reset", timeout=60, check=False)


def wait_for(
    what: str,
    probe: Callable[[], Any],
    timeout: float = 60.0,
    accept: Callable[[Any], object] = bool,
) -> Any:
    """Poll until ``probe`` returns something acceptable; the last thing it saw is in the failure."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            found = probe()
            last = repr(found)
            if accept(found):
                return found
        except (OSError, AssertionError) as error:
            last = repr(error)
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not within {timeout:.0f} s; last: {last}")
        time.sleep(0.1)


class Ingress:
    """The mesh from outside."""

    def __init__(self, base: str) -> None:
        self.base = base

    def get(self, path: str, timeout: float = 20, **headers: str) -> tuple[int, str]:
        request = urllib.request.Request(
            self.base + path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def whole(self) -> bool:
        """Whether the page comes with details and reviews."""
        status, body = self.get("/productpage")
        return status == 200 and "currently unavailable" not in body

    def reviews(self, **headers: str) -> str:
        """Version of reviews that served one product page: ``v1``, ``v2``, ``v3`` or ``error``."""
        _, body = self.get("/productpage", 20, **headers)
        found = re.search(r"Reviews served by <code>reviews-(v\d)", body)
        return found[1] if found else "error"

    def login(self, user: str) -> str:
        """The cookie of a signed-in user."""
        return str(self._login(user).headers["Set-Cookie"]).split(";")[0]

    def login_status(self, user: str = "jason") -> int:
        """How an attempt to sign in, a POST, is answered."""
        return int(self._login(user).status)

    def _login(self, user: str) -> Any:
        return self._without_redirect("/login", f"username={user}&passwd=x".encode(), {})

    def location(self, path: str, **headers: str) -> tuple[int, str | None]:
        """Status, and where the answer sends the visitor to."""
        answer = self._without_redirect(path, None, headers)
        return answer.status, answer.headers["Location"]

    def _without_redirect(self, path: str, data: bytes | None, headers: dict[str, str]) -> Any:
        class Keep(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_: Any) -> None:
                return None

        request = urllib.request.Request(self.base + path, data=data, headers=headers)
        try:
            return urllib.request.build_opener(Keep).open(request, timeout=20)
        except urllib.error.HTTPError as error:
            return error


@pytest.fixture(scope="session")
def mesh(shell: Shell) -> Shell:
    """The cluster with operator, mesh and Bookinfo, put there by README's walk-through."""
    from e2e.walkthrough import run

    if "bookinfo" not in shell("kubectl get namespaces -o name"):
        run(shell)
    return shell


@pytest.fixture(scope="session")
def ingress(mesh: Shell) -> Ingress:
    """The ingress gateway of the mesh."""
    from meltemi.commands.demo import ingress_url

    def base() -> str | None:
        return ingress_url(
            mesh.json("kubectl -n istio-system get service istio-ingressgateway -o json")
        )

    found = Ingress(wait_for("an ingress address", base))
    wait_for("the product page", lambda: found.get("/productpage")[0] == 200)
    return found


FETCH = """
import urllib.request, urllib.error
try:
    with urllib.request.urlopen({url!r}, timeout=20) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print(0, error)
"""


class Workload:
    """The pods of one Deployment, found anew on each question: pods come and go."""

    def __init__(self, shell: Shell, app: str, namespace: str = "bookinfo") -> None:
        self.shell = shell
        self.app = app
        self.namespace = namespace

    def pods(self) -> list[str]:
        """Names of the pods that are not on their way out."""
        found = self.shell.json(f"kubectl get pods -n {self.namespace} -l app={self.app} -o json")
        return [
            pod["metadata"]["name"]
            for pod in found["items"]
            if "deletionTimestamp" not in pod["metadata"]
        ]

    def exec(self, container: str, line: str, *, stdin: str | None = None) -> str:
        """What a command in the first pod prints; its exit code is not looked at."""
        return self.shell(
            f"kubectl exec {'-i' if stdin else ''} -n {self.namespace} {self.pods()[0]} -c {container} -- {line}",
            stdin=stdin,
            check=False,
        )

    def fetch(self, container: str, url: str) -> str:
        """``STATUS BODY`` as a program in the first pod sees a URL; ``0`` and the reason without an answer."""
        return self.exec(container, "python3 -", stdin=FETCH.format(url=url))

    def envoy(self, path: str) -> str:
        """A page of the first pod's Envoy."""
        return self.exec("istio-proxy", f"pilot-agent request GET {path}")

    def requests(self, **labels: str) -> float:
        """``istio_requests_total`` with these labels, over all pods, from their merged metrics."""
        total = 0.0
        for pod in self.pods():
            text = self.shell(
                f"kubectl get --raw /api/v1/namespaces/{self.namespace}/pods/{pod}:15020/proxy/stats/prometheus"
            )
            for line in text.splitlines():
                if line.startswith("istio_requests_total{"):
                    found = dict(re.findall(r'(\w+)="([^"]*)"', line))
                    if labels.items() <= found.items():
                        total += float(line.rsplit(" ", 1)[1])
        return total


OUTSIDER = """
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: outside, labels: {app: client}}
spec:
  containers:
    - {name: client, image: "python:3", command: [sleep, infinity]}
"""


@pytest.fixture(scope="session")
def outsider(mesh: Shell) -> Workload:
    """A pod without a sidecar, in a namespace that the mesh does not touch."""
    mesh("kubectl apply -f -", stdin=OUTSIDER)
    mesh("kubectl wait -n outside pod/client --for=condition=Ready --timeout=60s")
    return Workload(mesh, "client", "outside")


def steadily(probe: Callable[[], bool], times: int = 10) -> Callable[[], bool]:
    """A probe that is true when ``probe`` is, several times in a row: chance does not make it so."""
    return lambda: all(probe() for _ in range(times))


@pytest.fixture
def applied(mesh: Shell) -> Iterator[Callable[[str], None]]:
    """Apply YAML (text or a path under samples/) to namespace bookinfo; undone after the test."""
    undo: list[str] = []

    def apply(source: str) -> None:
        if source.endswith(".yaml"):
            mesh(f"kubectl apply -n bookinfo -f {source}")
            undo.append(f"kubectl delete -n bookinfo --ignore-not-found -f {source}")
        else:
            mesh("kubectl apply -n bookinfo -f -", stdin=source)
            undo.append(
                f"kubectl delete -n bookinfo --ignore-not-found -f - <<'YAML'\n{source}\nYAML"
            )

    yield apply
    for line in reversed(undo):
        mesh(line)
