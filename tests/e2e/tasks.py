"""What the classic tasks share: a namespace of their own, a client pod, and a world outside the mesh."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.conftest import Shell, wait_for

CURL = "curl" if shutil.which("curl") else f"{sys.executable} -m meltemi_samples.programs.curl"
CONFIG = "gateways.networking.istio.io,virtualservices,destinationrules,serviceentries,sidecars.networking.istio.io"


class Task:
    """One task: its namespace, with sidecars, and what a reader of the task types."""

    def __init__(self, shell: Shell, namespace: str) -> None:
        self.shell = shell
        self.namespace = namespace

    def kubectl(self, line: str, *, stdin: str | None = None, check: bool = True) -> str:
        """``kubectl`` in the task's namespace."""
        return self.shell(f"kubectl -n {self.namespace} {line}", stdin=stdin, check=check)

    def apply(self, *sources: str) -> None:
        """Apply YAML: text, or paths below samples/."""
        files = [source for source in sources if source.endswith(".yaml")]
        if files:
            self.kubectl("apply " + " ".join(f"-f {path}" for path in files))
        text = "\n---\n".join(source for source in sources if source not in files)
        if text:
            self.kubectl("apply -f -", stdin=text)

    def ready(self) -> None:
        """Wait for all Deployments of the namespace."""
        self.kubectl("wait deployment --all --for=condition=Available --timeout=90s")

    def curl(self, line: str, *, pod: str = "deploy/curl") -> str:
        """What ``curl`` prints in the client pod; an answer that does not come shows curl's own message."""
        return self.kubectl(f"exec {pod} -c curl -- curl -sS --max-time 20 {line}", check=False)

    def status(self, line: str, *, pod: str = "deploy/curl") -> str:
        """The status code that ``curl`` in the client pod gets; ``000`` and the reason without an answer."""
        return self.curl(f"-o /dev/null -w '%{{http_code}}' {line}", pod=pod)

    def address(self, app: str) -> str:
        """The address of an app's pod."""
        found = self.kubectl(f"get pod -l app={app} -o jsonpath={{.items[*].status.podIP}}")
        assert found and " " not in found, f"pods of {app}: {found!r}"
        return found


@contextmanager
def task(shell: Shell, namespace: str, *, injected: bool = True) -> Iterator[Task]:
    """A namespace for one task; afterwards its configuration is gone, and the rest on its way."""
    shell(f"kubectl create namespace {namespace}")
    if injected:
        shell(f"kubectl label namespace {namespace} istio-injection=enabled")
    try:
        yield Task(shell, namespace)
    finally:
        # The configuration first: gateways must not meet the next task with it.
        shell(f"kubectl delete -n {namespace} {CONFIG} --all")
        shell(f"kubectl delete namespace {namespace} --wait=false")


class Gateway:
    """The ingress gateway as this machine's curl reaches it."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        service = shell.json("kubectl -n istio-system get service istio-ingressgateway -o json")
        self.host = service["status"]["loadBalancer"]["ingress"][0]["ip"]
        forwarded = service["metadata"].get("annotations", {}).get("localkube/forwarded-ports", "")
        self._forwarded = dict(pair.split("=") for pair in forwarded.split(",") if pair)

    def port(self, number: int) -> int:
        """Where a port of the Service answers for this user."""
        return int(self._forwarded.get(str(number), number))

    def curl(self, scheme: str, host: str, path: str, flags: str = "") -> str:
        """What ``curl`` on this machine prints for a URL whose host is sent to the gateway."""
        port = self.port({"http": 80, "https": 443}[scheme])
        return self.shell(
            f"{CURL} -sS --max-time 20 --resolve {host}:{port}:{self.host} {flags} {scheme}://{host}:{port}{path}",
            check=False,
        )

    def status(self, scheme: str, host: str, path: str, flags: str = "") -> str:
        """The status code, or ``000`` and the reason."""
        return self.curl(scheme, host, path, f"-o /dev/null -w '%{{http_code}}' {flags}")


def eventually(task: Task, line: str, wanted: str, **more: str) -> None:
    """Wait until the client pod's curl gets this status."""
    wait_for(f"{wanted} for curl {line}", lambda: task.status(line, **more), 30, wanted.__eq__)


def client(address: str, *hosts: str, mounts: dict[str, str] | None = None) -> str:
    """YAML of the client pod ``curl`` that finds ``hosts`` at ``address``, its proxy with Secrets mounted (path: name)."""
    annotations = ""
    if mounts:
        volumes = ",".join(f'"{n}":{{"secret":{{"secretName":"{n}"}}}}' for n in mounts.values())
        places = ",".join(
            f'"{n}":{{"mountPath":"{path}","readOnly":true}}' for path, n in mounts.items()
        )
        annotations = f"""
      annotations:
        sidecar.istio.io/userVolume: '{{{volumes}}}'
        sidecar.istio.io/userVolumeMount: '{{{places}}}'"""
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: curl}}
spec:
  selector: {{matchLabels: {{app: curl}}}}
  template:
    metadata:
      labels: {{app: curl}}{annotations}
    spec:
      terminationGracePeriodSeconds: 0
      hostAliases: [{{ip: {address}, hostnames: [{", ".join(hosts)}]}}]
      containers:
        - {{name: curl, image: docker.io/curlimages/curl:8.16.0, command: [sleep, infinity]}}
"""


def tls_server(name: str, secret: str, ports: dict[int, int]) -> str:
    """YAML of an httpbin ``name`` on ``ports[80]`` in plain text and on ``ports[443]`` with a Secret's certificate."""
    return f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      volumes: [{{name: certificate, secret: {{secretName: {secret}}}}}]
      containers:
        - name: http
          image: docker.io/mccutchen/go-httpbin:v2.15.0
          args: ["{ports[80]}"]
          readinessProbe: {{tcpSocket: {{port: {ports[80]}}}, periodSeconds: 1}}
        - name: https
          image: docker.io/mccutchen/go-httpbin:v2.15.0
          args: ["{ports[443]}"]
          env:
            - {{name: HTTPS_CERT_FILE, value: /certificate/tls.crt}}
            - {{name: HTTPS_KEY_FILE, value: /certificate/tls.key}}
          volumeMounts: [{{name: certificate, mountPath: /certificate}}]
          readinessProbe: {{tcpSocket: {{port: {ports[443]}}}, periodSeconds: 1}}
"""


def write_pair(folder: Path, name: str, pair: tuple[bytes, bytes]) -> str:
    """``--cert ... --key ...`` for kubectl and curl, after writing a certificate and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    certificate.write_bytes(pair[0])
    key.write_bytes(pair[1])
    return f"--cert {certificate} --key {key}"


def code_counts(report: str) -> dict[int, int]:
    """Answers per status in a report of fortio."""
    return {
        int(code): int(count) for code, count in re.findall(r"^Code +(-?\d+) : (\d+)", report, re.M)
    }
