"""Kubernetes is real elsewhere: nothing here needs what only localkube offers."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate
import pytest
import yaml
from envoy.config.cluster.v3 import cluster_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2

from e2e.conftest import Shell, adopt_environment, terminal, wait_for
from meltemi.model.names import CDS_TYPE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A cluster without a node: an API server that knows nothing of this machine's pods."""
    shell = terminal(tmp_path_factory.mktemp("bare"))
    try:
        shell("meltemi local up --detach --no-node", timeout=60)
        adopt_environment(shell)
        yield shell
    finally:
        shell("meltemi local down", timeout=60, check=False)
        shell("meltemi local reset", timeout=60, check=False)


def manifests(shell: Shell, profile: str) -> list[dict[str, Any]]:
    text = shell(f"meltemi manifest generate --set profile={profile}")
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("profile", ["default", "demo", "minimal"])
def test_generated_manifests_are_valid_kubernetes(
    profile: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = manifests(terminal(tmp_path_factory.mktemp("none")), profile)
    assert {d["kind"] for d in found} >= {"Deployment", "Service", "CustomResourceDefinition"}
    for document in found:
        kubernetes_validate.validate(document, "1.33", strict=True)
    assert "localkube" not in json.dumps(found)


def test_generated_manifests_apply_to_a_cluster(bare: Shell) -> None:
    bare("kubectl create namespace istio-system")
    piped = bare("meltemi manifest generate | kubectl apply -f -")
    assert "deployment.apps/istiod created" in piped
    bare(
        "meltemi manifest generate --set profile=default > $LOCALKUBE_HOME/all.yaml;"
        "kubectl apply --server-side -f $LOCALKUBE_HOME/all.yaml"
    )
    again = bare("kubectl diff --server-side -f $LOCALKUBE_HOME/all.yaml && echo same")
    assert again.strip().endswith("same")


SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: orders}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec: {host: orders, subsets: [{name: v1, labels: {version: v1}}]}
"""


def free_addresses(*flags: str) -> dict[str, str]:
    """A loopback port of its own for each flag; all are held until all are chosen."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in flags]
    found = {
        flag: f"127.0.0.1:{sock.getsockname()[1]}" for flag, sock in zip(flags, held, strict=True)
    }
    for sock in held:
        sock.close()
    return found


def clusters(address: str) -> set[str]:
    """Names of the clusters that a sidecar of namespace default is told over plaintext ADS."""
    request = discovery_pb2.DiscoveryRequest(type_url=CDS_TYPE)
    request.node.id = "sidecar~10.0.0.1~client.default~default.svc.cluster.local"
    with grpc.insecure_channel(address) as channel:
        stream = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).StreamAggregatedResources(
            iter([request]), timeout=20
        )
        response = next(stream)
        stream.cancel()
    return {cluster_pb2.Cluster.FromString(r.value).name for r in response.resources}


def test_istiod_runs_outside_with_a_kubeconfig(bare: Shell, tmp_path: Path) -> None:
    """As on an engineer's desk: it serves a cluster in which it has no pod, and ends cleanly."""
    bare("kubectl create namespace istio-system --dry-run=client -o yaml | kubectl apply -f -")
    bare("meltemi manifest generate --set profile=minimal | kubectl apply -f -")
    # Its webhooks lead to a pod that this cluster, without a node, never has.
    bare("kubectl delete validatingwebhookconfigurations,mutatingwebhookconfigurations --all")
    bare("kubectl apply -n default -f -", stdin=SERVICE)
    addresses = free_addresses(
        *("--httpAddr", "--monitoringAddr", "--httpsAddr"),
        *("--grpcAddr", "--secureGRPCAddr", "--mtlsGRPCAddr"),
    )
    log = (tmp_path / "istiod.log").open("w+")
    istiod = subprocess.Popen(
        ["meltemi-istiod", "discovery", "--kubeconfig", bare.environment["KUBECONFIG"]]
        + [word for pair in addresses.items() for word in pair],
        env=bare.environment,
        cwd=tmp_path,
        stdout=log,
        stderr=subprocess.STDOUT,
    )

    def ready() -> bool:
        with urllib.request.urlopen(f"http://{addresses['--httpAddr']}/ready", timeout=5) as answer:
            return bool(answer.status == 200)

    try:
        wait_for("istiod", ready)
        wanted = {
            "outbound|8080||orders.default.svc.cluster.local",
            "outbound|8080|v1|orders.default.svc.cluster.local",
        }
        wait_for(
            "the service",
            lambda: clusters(addresses["--grpcAddr"]),
            accept=lambda found: wanted <= found,
        )
        root = bare(
            "kubectl get configmap -n default istio-ca-root-cert -o jsonpath='{.data.root-cert\\.pem}'"
        )
        assert "BEGIN CERTIFICATE" in root
    finally:
        istiod.terminate()
        code = istiod.wait(60)
        log.close()
    assert code == 0, (tmp_path / "istiod.log").read_text()


def test_a_node_joins_another_api_server(bare: Shell, tmp_path: Path) -> None:
    # A node's own kubeconfig, whose certificate the API server trusts for logs and exec, pointed at the host's port.
    kubeconfig = tmp_path / "node.kubeconfig"
    kubeconfig.write_text(
        (Path(bare.environment["KUBECONFIG"]).parent / "node.kubeconfig").read_text()
    )
    server = bare("kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}'")
    cluster = bare("kubectl config view --minify -o jsonpath='{.clusters[0].name}'")
    bare(f"kubectl config --kubeconfig {kubeconfig} set-cluster {cluster} --server={server}")
    log = (tmp_path / "node.log").open("w+")
    node = subprocess.Popen(
        ["localkube", "node", "--kubeconfig", str(kubeconfig)],
        env={**bare.environment, "LOCALKUBE_HOME": str(tmp_path / "guest")},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_for(
            "the joined node",
            lambda: bare("kubectl get node node0 --ignore-not-found -o name"),
            timeout=30,
        )
        bare("kubectl wait node/node0 --for=condition=Ready --timeout=30s")
        bare(
            "kubectl run hello --image=busybox:1 --restart=Never -- sh -c 'echo from the joined node; sleep 600'"
        )
        bare("kubectl wait pod/hello --for=condition=Ready --timeout=30s")
        assert bare("kubectl get pod hello -o jsonpath='{.spec.nodeName}'") == "node0"
        assert "from the joined node" in bare("kubectl logs hello")
        assert bare("kubectl exec hello -- echo inside") == "inside\n"
        bare("kubectl delete pod hello --grace-period=1")
    finally:
        node.terminate()
        code = node.wait(60)
        log.close()
    assert code == 0, (tmp_path / "node.log").read_text()
