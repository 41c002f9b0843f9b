"""A whole mesh whose certificates the cluster signs: istiod approves, a signer of the user's own issues.

A cluster of its own, because who signs is decided when the mesh is installed. Slow for that reason.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from e2e.conftest import Ingress, Shell, Workload, ingress, shell, wait_for
from meltemi.ca import authority
from meltemi.kit.clock import SystemClock

__all__ = ["ingress", "shell"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
SIGNER = "signer.example.com/mesh"
MESH = """
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {{name: istio, namespace: istio-system}}
spec:
  profile: demo
  values: {{pilot: {{env: {{EXTERNAL_CA: ISTIOD_RA_KUBERNETES_API, K8S_SIGNER: {signer}}}}}}}
  meshConfig: {{caCertificates: [{{certSigners: [{signer}], pem: {root}}}]}}
"""


class Signer:
    """Issues for requests to ``SIGNER`` that somebody approved, as any certificates.k8s.io signer does."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._clock = SystemClock()
        key = ec.generate_private_key(ec.SECP256R1())
        self.held = authority.self_signed(key, self._clock.now(), 1, "signer.example.com")
        self.names: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.2):
            found = json.loads(self._shell("kubectl get csr -o json", check=True))
            for entry in found["items"]:
                status = entry.get("status") or {}
                approved = any(c["type"] == "Approved" for c in status.get("conditions") or ())
                if (
                    entry["spec"]["signerName"] == SIGNER
                    and approved
                    and not status.get("certificate")
                ):
                    self._sign(entry["metadata"]["name"], entry["spec"]["request"])

    def _sign(self, name: str, encoded: str) -> None:
        text = base64.b64decode(encoded).decode()
        asked = x509.load_pem_x509_csr(text.encode())
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        identity = str(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
        serial = x509.random_serial_number()
        leaf = authority.issue(self.held, text, identity, self._clock.now(), serial).chain[0]
        patch = json.dumps({"status": {"certificate": base64.b64encode(leaf.encode()).decode()}})
        self._shell(
            f"kubectl patch csr {name} --subresource=status --type=merge -p '{patch}'", check=False
        )
        self.names.append(identity)

    def close(self) -> None:
        """Sign nothing more."""
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="session")
def signer(shell: Shell) -> Iterator[Signer]:
    """The cluster's signer."""
    made = Signer(shell)
    yield made
    made.close()


@pytest.fixture(scope="session")
def mesh(shell: Shell, signer: Signer) -> Shell:
    """Bookinfo, below the signer's root, with mutual TLS everywhere."""
    shell("meltemi operator init", timeout=120)
    shell("kubectl create ns istio-system")
    text = MESH.format(signer=SIGNER, root=json.dumps(signer.held.roots))
    shell("kubectl apply -f -", stdin=text)
    names = "kubectl get deployments -n istio-system -o name"
    wait_for("gateways", lambda: "istio-ingressgateway" in shell(names), 180)
    shell(
        "kubectl wait -n istio-system deployment --all --for=condition=Available --timeout=120s",
        timeout=150,
    )
    shell("kubectl create ns bookinfo")
    shell("kubectl label namespace bookinfo istio-injection=enabled")
    strict = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: bookinfo}
spec: {mtls: {mode: STRICT}}
"""
    shell("kubectl apply -f -", stdin=strict)
    for path in ("platform/kube/bookinfo.yaml", "networking/bookinfo-gateway.yaml"):
        shell(f"kubectl apply -n bookinfo -f samples/bookinfo/{path}")
    shell(
        "kubectl wait -n bookinfo deployment --all --for=condition=Available --timeout=120s",
        timeout=150,
    )
    return shell


def test_a_mesh_below_the_clusters_signer(mesh: Shell, signer: Signer, ingress: Ingress) -> None:
    """Pages are whole over mutual TLS; what workloads show the signer has issued, and each for its own account."""
    wait_for("a whole page", ingress.whole, 60)
    line = "openssl s_client -connect details:9080 -alpn istio -showcerts < /dev/null"
    text = Workload(mesh, "ratings").exec("ratings", f"sh -c '{line} 2>&1'")
    first = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.S)
    assert first, text
    leaf = x509.load_pem_x509_certificate(first[0].encode())
    leaf.verify_directly_issued_by(signer.held.certificate)
    account = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [account]
    assert account in signer.names
    assert not mesh.json("kubectl get csr -o json")["items"]
