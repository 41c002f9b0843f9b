"""DNS capture on the running mesh: a pod that asks for it resolves what only the mesh knows."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from e2e.conftest import BIN, Shell, Workload, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

WORLD = """
apiVersion: v1
kind: Namespace
metadata: {name: dns, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata:
  name: client
  namespace: dns
  labels: {app: client}
  annotations:
    proxy.istio.io/config: |
      proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true"}
spec:
  containers: [{name: client, image: "python:3", command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: dns, labels: {app: server, sidecar.istio.io/inject: "false"}}
spec:
  containers:
  - {name: server, image: "python:3", command: [python3, -m, http.server, "9000"]}
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: dns}
spec: {selector: {app: server}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vault, namespace: dns}
spec:
  hosts: [vault.corp.example]
  ports: [{number: 9000, name: tcp, protocol: TCP}]
  resolution: DNS
  endpoints: [{address: server.dns.svc.cluster.local}]
"""
# Prints, as JSON, what questions to the pod's own resolver answer: status and records.
ASK = """
import json, dns.message, dns.query, dns.rcode
server = [l.split()[1] for l in open("/etc/resolv.conf") if l.startswith("nameserver")][0]
def ask(name, kind, send=dns.query.udp):
    answer = send(dns.message.make_query(name, kind), server, timeout=10)
    return [dns.rcode.to_text(answer.rcode()), [str(i) for r in answer.answer for i in r]]
print(json.dumps({
    "entry": ask("vault.corp.example", "A"),
    "in capitals": ask("VAULT.corp.EXAMPLE", "A"),
    "over TCP": ask("vault.corp.example", "A", dns.query.tcp),
    "missing family": ask("vault.corp.example", "AAAA"),
    "service": ask("server.dns.svc.cluster.local", "A"),
    "other type": ask("server.dns.svc.cluster.local", "SRV"),
    "unknown": ask("nothing.dns.svc.cluster.local", "A"),
}))
"""


@pytest.fixture(scope="module")
def client(mesh: Shell) -> Iterator[Workload]:
    mesh("kubectl apply -f -", stdin=WORLD)
    try:
        mesh("kubectl wait -n dns --for=condition=Ready pod/client pod/server --timeout=60s")
        yield Workload(mesh, "client", "dns")
    finally:
        mesh("kubectl delete namespace dns --wait=false")


def test_the_pods_resolver_answers_for_the_mesh(client: Workload, mesh: Shell) -> None:
    def asked() -> dict[str, tuple[str, list[str]]]:
        found: dict[str, tuple[str, list[str]]] = json.loads(
            client.exec("client", f"{BIN}/python -", stdin=ASK)
        )
        return found

    found = wait_for(
        "the entry's name", asked, accept=lambda answers: answers["entry"][0] == "NOERROR"
    )
    status, (address,) = found["entry"]
    assert status == "NOERROR"
    assert address.startswith("240.240.")
    assert found["in capitals"] == found["over TCP"] == found["entry"]
    assert found["missing family"] == ["NOERROR", []]
    service = mesh("kubectl get service -n dns server -o jsonpath='{.spec.clusterIP}'")
    assert found["service"] == ["NOERROR", [service]]
    assert found["unknown"][0] == "NXDOMAIN"
    names = json.loads(
        client.exec("istio-proxy", "pilot-agent request --debug-port 15020 GET /debug/ndsz")
    )
    assert names["names"]["vault.corp.example"] == [address]


def test_a_tcp_host_without_address_is_reached_by_its_name(client: Workload) -> None:
    """The automatic address leads to a listener; Envoy resolves the endpoint's name itself, past the capture."""
    answer = wait_for(
        "an answer",
        lambda: client.fetch("client", "http://vault.corp.example:9000/"),
        accept=lambda text: text.startswith("200"),
    )
    assert answer.startswith("200")
    wait_for("the connection in the metrics", lambda: "vault.corp.example" in metrics(client))


def metrics(client: Workload) -> str:
    return client.exec(
        "istio-proxy", "pilot-agent request --debug-port 15020 GET /stats/prometheus"
    )


def test_the_agent_counts_questions(client: Workload) -> None:
    lines = metrics(client).splitlines()
    (line,) = [line for line in lines if line.startswith("istio_agent_dns_requests_total")]
    assert int(line.rpartition(" ")[2]) > 0
