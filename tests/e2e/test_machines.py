"""A machine joins the running mesh by itself: a process in a network namespace of its own that no injector has seen."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from e2e.conftest import Shell, Workload, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

GROUP = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: vm, namespace: machines}
spec:
  metadata: {labels: {app: vm}}
  template: {serviceAccount: vm, ports: {http: 8080}}
  probe:
    periodSeconds: 1
    failureThreshold: 1
    timeoutSeconds: 5
    httpGet: {path: /health, port: 8080}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: vm, namespace: machines}
---
apiVersion: v1
kind: Service
metadata: {name: vm, namespace: machines}
spec: {selector: {app: vm}, ports: [{name: http, port: 80}]}
"""
# Says who called, as the machine's own proxy has verified it.
APPLICATION = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        sick = self.path == "/health" and os.path.exists("/tmp/sick")
        body = self.headers.get("x-forwarded-client-cert", "").encode()
        self.send_response(500 if sick else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""


def machine(address_of_files: str) -> str:
    """Its pod lends it a network and a place to live; the mesh knows the pod neither by label nor by account."""
    application = json.dumps(["python3", "-c", APPLICATION])
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: host-1, namespace: machines, labels: {{app: host-1, sidecar.istio.io/inject: "false"}}}}
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 2
  containers:
  - {{name: app, image: "python:3", command: {application}}}
  - name: proxy
    image: meltemi/proxy:latest
    args: [machine, /machine]
    securityContext: {{runAsUser: 0, capabilities: {{add: [NET_ADMIN]}}}}
    volumeMounts:
    - {{name: files, mountPath: /machine}}
    - {{name: memory, mountPath: /var/run/secrets/workload-spiffe-credentials, subPath: credentials}}
    - {{name: memory, mountPath: /etc/istio/proxy, subPath: proxy}}
  volumes:
  - {{name: files, secret: {{secretName: {address_of_files}}}}}
  - {{name: memory, emptyDir: {{medium: Memory}}}}
"""


@pytest.fixture(scope="module")
def host(mesh: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    folder = tmp_path_factory.mktemp("machine")
    mesh("kubectl create namespace machines")
    try:
        mesh("kubectl apply -f -", stdin=GROUP)
        wait_for(
            "the mesh's root in the namespace",
            lambda: mesh(
                "kubectl get configmap -n machines istio-ca-root-cert -o name", check=False
            ),
            accept=lambda said: said.strip() == "configmap/istio-ca-root-cert",
        )
        configure = "meltemi x workload entry configure --name vm -n machines --autoregister"
        mesh(f"{configure} --no-capture-dns -o {folder}")
        mesh(f"kubectl create secret generic -n machines files --from-file={folder}")
        mesh("kubectl apply -f -", stdin=machine("files"))
        mesh("kubectl wait -n machines pod/host-1 --for=condition=Ready --timeout=60s")
        yield Workload(mesh, "host-1", "machines")
    finally:
        mesh("kubectl delete namespace machines --wait=false")


def condition(mesh: Shell) -> tuple[str, str]:
    """What the machine's WorkloadEntry says of its health: status and message."""
    found = mesh.json("kubectl get workloadentries -n machines -o json")["items"]
    for each in (found[0].get("status") or {}).get("conditions", ()) if found else ():
        if each["type"] == "Healthy":
            return each["status"], each.get("message", "")
    return "", ""


def test_a_machine_registers_serves_calls_and_leaves(mesh: Shell, host: Workload) -> None:
    """Called by a pod and calling one, over mutual TLS as its own account; without traffic while it is not well."""
    caller = Workload(mesh, "productpage")

    def answer() -> str:
        return caller.fetch("productpage", "http://vm.machines/")

    wait_for("its health", lambda: condition(mesh), accept=lambda found: found[0] == "True")
    (entry,) = mesh.json("kubectl get workloadentries -n machines -o json")["items"]
    address = mesh("kubectl get pod -n machines host-1 -o jsonpath={.status.podIP}")
    assert entry["metadata"]["name"] == f"vm-{address}"
    assert entry["metadata"]["annotations"]["istio.io/autoRegistrationGroup"] == "vm"
    said = wait_for("an answer", answer, accept=lambda text: text.startswith("200"))
    assert "By=spiffe://cluster.local/ns/machines/sa/vm" in said
    assert "URI=spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage" in said
    details = Workload(mesh, "details")
    before = details.requests(source_principal="spiffe://cluster.local/ns/machines/sa/vm")
    assert host.fetch("app", "http://details.bookinfo:9080/details/0").startswith("200")
    wait_for(
        "the machine's call, proven",
        lambda: details.requests(source_principal="spiffe://cluster.local/ns/machines/sa/vm"),
        accept=lambda now: now > before,
    )
    host.exec("app", "touch /tmp/sick")
    wait_for("no traffic", answer, accept=lambda text: text.startswith("503"))
    assert condition(mesh)[0] == "False"
    assert "500" in condition(mesh)[1]
    host.exec("app", "rm /tmp/sick")
    wait_for("traffic again", answer, accept=lambda text: text.startswith("200"))
    # That an entry goes when its grace period is over, test_machines of istiod shows.
    mesh("kubectl delete pod -n machines host-1 --wait=false")
    wait_for(
        "its entry to say that it left",
        lambda: mesh("kubectl get workloadentries -n machines -o yaml"),
        accept=lambda text: "istio.io/disconnectedAt" in text,
    )
