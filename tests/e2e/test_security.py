"""Certificates and mutual TLS on the running mesh: the gateway's, the workloads', and who is refused."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from e2e.conftest import Ingress, Shell, Workload, steadily, wait_for
from pki import Authority, make_authority

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
Apply = Callable[[str], None]
HOST = "bookinfo.example.com"
SECRET = "e2e-bookinfo-cert"
HTTPS_GATEWAY = f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: bookinfo-https}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
    - port: {{number: 443, name: https, protocol: HTTPS}}
      tls: {{mode: SIMPLE, credentialName: {SECRET}}}
      hosts: [{HOST}]
    - port: {{number: 80, name: http, protocol: HTTP}}
      tls: {{httpsRedirect: true}}
      hosts: [{HOST}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: bookinfo-https}}
spec:
  hosts: [{HOST}]
  gateways: [bookinfo-https]
  http:
    - route: [{{destination: {{host: productpage, port: {{number: 9080}}}}}}]
"""
PEER_AUTHENTICATION = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
"""


class TlsClient:
    """HTTPS to the gateway as a browser that trusts one root."""

    def __init__(self, address: tuple[str, int], root: bytes) -> None:
        self.address = address
        self.context = ssl.create_default_context(cadata=root.decode())

    def connect(self) -> ssl.SSLSocket:
        raw = socket.create_connection(self.address, timeout=10)
        try:
            return self.context.wrap_socket(raw, server_hostname=HOST)
        except BaseException:
            raw.close()
            raise

    def serial(self) -> int:
        """Serial number of the certificate that the gateway presents; ssl.SSLError if it is not trusted."""
        with self.connect() as connection:
            presented = connection.getpeercert(binary_form=True)
        assert presented is not None
        return x509.load_der_x509_certificate(presented).serial_number

    def get(self, path: str) -> tuple[int, str]:
        with self.connect() as connection:
            session = http.client.HTTPConnection(HOST)
            session.sock = connection
            session.request("GET", path)
            answer = session.getresponse()
            return answer.status, answer.read().decode()


def write_certificate(folder: Path, authority: Authority) -> int:
    """A new certificate for HOST as kubectl wants it; its serial number."""
    certificate, key = authority.issue(HOST)
    (folder / "tls.crt").write_bytes(certificate)
    (folder / "tls.key").write_bytes(key)
    return x509.load_pem_x509_certificate(certificate).serial_number


def create_secret(folder: Path) -> str:
    return (
        f"kubectl create -n istio-system secret tls {SECRET} --cert={folder}/tls.crt --key={folder}/tls.key "
        "--dry-run=client -o yaml | kubectl apply -f -"
    )


@pytest.fixture
def authority(mesh: Shell) -> Iterator[Authority]:
    yield make_authority()
    mesh(f"kubectl delete -n istio-system --ignore-not-found secret {SECRET}")


def https_address(mesh: Shell) -> tuple[str, int]:
    """Where the gateway's port 443 answers on this machine, for whoever runs this."""
    service = mesh.json("kubectl -n istio-system get service istio-ingressgateway -o json")
    forwarded = service["metadata"].get("annotations", {}).get("localkube/forwarded-ports", "")
    ports = dict(pair.split("=") for pair in forwarded.split(",") if pair)
    return service["status"]["loadBalancer"]["ingress"][0]["ip"], int(ports.get("443", 443))


def test_https_at_the_gateway_follows_its_secret(
    mesh: Shell, ingress: Ingress, applied: Apply, authority: Authority, tmp_path: Path
) -> None:
    first = write_certificate(tmp_path, authority)
    applied(HTTPS_GATEWAY)
    mesh(create_secret(tmp_path))
    client = TlsClient(https_address(mesh), authority.root)
    wait_for("HTTPS with the Secret's certificate", lambda: client.serial() == first)
    wait_for("the page over HTTPS", lambda: client.get("/productpage")[0] == 200)
    gateway = Workload(mesh, "istio-ingressgateway", "istio-system")
    before = gateway.pods()

    second = write_certificate(tmp_path, authority)
    mesh(create_secret(tmp_path))
    wait_for("the rotated certificate", lambda: client.serial() == second)
    assert client.get("/productpage")[0] == 200
    assert gateway.pods() == before
    assert (
        mesh(
            f"kubectl get pod -n istio-system {before[0]} -o jsonpath='{{.status.containerStatuses[0].restartCount}}'"
        )
        == "0"
    )


def test_http_is_redirected_to_https(ingress: Ingress, applied: Apply) -> None:
    applied(HTTPS_GATEWAY)

    def location() -> str | None:
        status, where = ingress.location("/productpage", Host=HOST)
        return where if status == 301 else None

    assert wait_for("the redirect", location) == f"https://{HOST}/productpage"
    assert ingress.get("/productpage")[0] == 200, "other hosts are served as before"


def test_a_gateway_without_its_secret_disturbs_nobody(
    mesh: Shell, ingress: Ingress, applied: Apply
) -> None:
    applied(HTTPS_GATEWAY)
    assert steadily(lambda: ingress.get("/productpage")[0] == 200, 20)()


def test_plaintext_is_refused_once_a_namespace_is_strict(
    outsider: Workload, ingress: Ingress, applied: Apply
) -> None:
    def ask() -> str:
        return outsider.fetch("client", "http://details.bookinfo:9080/details/0")

    answer = wait_for("an answer while PERMISSIVE", ask, accept=lambda a: a.startswith("200 "))
    assert "William Shakespeare" in answer
    applied(PEER_AUTHENTICATION)
    refused = wait_for("a refusal", ask, accept=lambda a: a.startswith("0 "))
    assert "reset by peer" in refused or "closed connection" in refused
    assert steadily(lambda: ask().startswith("0 "), 3)()
    # The mesh's own calls go on.
    assert steadily(ingress.whole)()


def test_workload_certificates_name_their_service_account(mesh: Shell, ingress: Ingress) -> None:
    certificates = json.loads(Workload(mesh, "ratings").envoy("certs"))
    uris = {
        name["uri"]
        for entry in certificates["certificates"]
        for certificate in entry["cert_chain"]
        for name in certificate["subject_alt_names"]
    }
    assert uris == {"spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"}
