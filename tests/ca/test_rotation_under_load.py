"""A whole mesh whose certificates, roots and control plane change while visitors come: none of them notices.

A cluster of its own, whose authority is plugged in before the mesh is installed and whose certificates are short-lived:
all of it concerns every pod. Slow, because each proxy has to renew several times, and agents look for new roots and
renew spread over tens of seconds.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from e2e.conftest import ROOT, Ingress, Shell, Workload, ingress, shell, wait_for
from meltemi.ca import authority, secrets
from meltemi.kit.clock import SystemClock

__all__ = ["ingress", "shell"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
LIFE_S = 120
SYSTEM = "-n istio-system"
EXPIRY = "istio_agent_cert_expiry_seconds"
IN_ROW = "istio_agent_cert_renewal_failures_in_row"
MESH = f"""
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata: {{name: istio, namespace: istio-system}}
spec:
  profile: demo
  meshConfig: {{defaultConfig: {{proxyMetadata: {{SECRET_TTL: {LIFE_S}s}}}}}}
"""


@pytest.fixture(scope="session")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two authorities to plug in, each an intermediate below a root of its own."""
    made = {}
    for name in ("first", "second"):
        folder = tmp_path_factory.mktemp(name)
        tool = ROOT / "samples" / "certs" / "make_certs.py"
        subprocess.run([sys.executable, str(tool), str(folder)], check=True, capture_output=True)
        made[name] = folder / "cluster1"
    return made


@pytest.fixture(scope="session")
def mesh(shell: Shell, authorities: dict[str, Path]) -> Shell:
    """Bookinfo on a mesh whose authority was there first."""
    shell("meltemi operator init", timeout=120)
    shell("kubectl create ns istio-system")
    shell(f"kubectl create secret generic cacerts {SYSTEM} --from-file={authorities['first']}")
    shell("kubectl apply -f -", stdin=MESH)
    names = f"kubectl get deployments {SYSTEM} -o name"
    wait_for("gateways", lambda: "istio-ingressgateway" in shell(names), 180)
    shell(f"kubectl wait {SYSTEM} deployment --all --for=condition=Available --timeout=120s")
    shell("kubectl create ns bookinfo")
    shell("kubectl label namespace bookinfo istio-injection=enabled")
    for path in ("platform/kube/bookinfo.yaml", "networking/bookinfo-gateway.yaml"):
        shell(f"kubectl apply -n bookinfo -f samples/bookinfo/{path}")
    shell("kubectl wait -n bookinfo deployment --all --for=condition=Available --timeout=120s")
    return shell


@contextmanager
def visitors(site: Ingress, count: int = 3) -> Iterator[Counter[str]]:
    """Steady requests for the whole page until the block ends; what they met, counted."""
    met: Counter[str] = Counter()
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.02):
            try:
                met["whole" if site.whole() else "broken"] += 1
            except OSError as error:
                met[repr(error)] += 1

    threads = [threading.Thread(target=visit) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield met
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(met) == {"whole"}, met


def served_chain(mesh: Shell) -> list[x509.Certificate]:
    """What details shows to whoever connects, read from the wire."""
    line = "openssl s_client -connect details:9080 -alpn istio -showcerts < /dev/null"
    text = Workload(mesh, "ratings").exec("ratings", f"sh -c '{line} 2>&1'")
    found = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.S)
    assert found, text
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in found]


def verified(chain: list[x509.Certificate], folder: Path) -> bool:
    """Whether a served chain is a workload's certificate, then the plugged-in intermediate, below its root."""
    wanted, root = (
        x509.load_pem_x509_certificate((folder / name).read_bytes())
        for name in ("ca-cert.pem", "root-cert.pem")
    )
    if len(chain) != 2 or chain[1] != wanted:
        return False
    chain[0].verify_directly_issued_by(wanted)
    wanted.verify_directly_issued_by(root)
    names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    account = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details"
    return names.get_values_for_type(x509.UniformResourceIdentifier) == [account]


def metrics(mesh: Shell, name: str) -> dict[str, float]:
    """One of the agents' numbers, by pod of Bookinfo."""
    pods = mesh.json("kubectl get pods -n bookinfo -o json")["items"]
    found = {}
    for pod in (entry["metadata"]["name"] for entry in pods):
        path = f"/api/v1/namespaces/bookinfo/pods/{pod}:15020/proxy/stats/prometheus"
        lines = mesh(f"kubectl get --raw {path}").splitlines()
        found[pod] = next(float(x.rpartition(" ")[2]) for x in lines if x.startswith(name))
    return found


def serials(mesh: Shell) -> dict[str, str]:
    """Serial number of the certificate in use, by pod of Bookinfo."""
    pods = mesh.json("kubectl get pods -n bookinfo -o json")["items"]
    found = {}
    for pod in (entry["metadata"]["name"] for entry in pods):
        line = f"kubectl exec -n bookinfo {pod} -c istio-proxy -- pilot-agent request GET certs"
        serial = re.search(r'"serial_number": "(\w+)",(?:[^}]*?)spiffe', mesh(line), re.S)
        found[pod] = serial[1] if serial else ""
    return found


def test_a_plugged_in_authority_is_what_workloads_show(
    mesh: Shell, ingress: Ingress, authorities: dict[str, Path]
) -> None:
    """On the wire: the workload's certificate and the intermediate, below the plugged-in root; no root made beside it."""
    assert verified(served_chain(mesh), authorities["first"])
    published = mesh(
        r"kubectl get configmap -n bookinfo istio-ca-root-cert -o jsonpath='{.data.root-cert\.pem}'"
    )
    assert published.strip() == (authorities["first"] / "root-cert.pem").read_text().strip()
    assert "istio-ca-secret" not in mesh(f"kubectl get secrets {SYSTEM} -o name")


def credentials(held: authority.Authority) -> tuple[str, int]:
    """A certificate of productpage with its key in PEM, as a thief has it, and its serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    asked = csr.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    serial = x509.random_serial_number()
    account = "spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage"
    issued = authority.issue(held, asked, account, SystemClock().now(), serial)
    return "".join(issued.chain[:-1]) + authority.key_pem(key), serial


def knock(mesh: Shell, pem: str) -> str:
    """What details' sidecar says to whoever shows this certificate."""
    ask = 'printf "GET /details/0 HTTP/1.1\\r\\nhost: details\\r\\nconnection: close\\r\\n\\r\\n"'
    show = "openssl s_client -quiet -connect details:9080 -alpn istio-http/1.1"
    show += " -cert /tmp/x -cert_chain /tmp/x -key /tmp/x"
    line = f"sh -c 'cat > /tmp/x; {ask} | {show} 2>&1'"
    return Workload(mesh, "ratings").exec("ratings", line, stdin=pem)


def test_revoked_and_unknown_certificates_are_refused(
    mesh: Shell, ingress: Ingress, authorities: dict[str, Path]
) -> None:
    """By a real sidecar, once the list is in the Secret cacerts; everybody else goes on, and so does the thief when it is gone."""
    folder = authorities["first"]
    held = secrets.authority_of({f.name: f.read_bytes() for f in folder.iterdir()})
    stranger = authority.self_signed(
        ec.generate_private_key(ec.SECP256R1()), SystemClock().now(), 1, "cluster.local"
    )
    stolen, serial = credentials(held)
    assert "200 OK" in knock(mesh, stolen)
    assert "unknown ca" in knock(mesh, credentials(stranger)[0])
    secret = f"kubectl create secret generic cacerts {SYSTEM} --dry-run=client -o yaml"
    tool = f"{sys.executable} samples/certs/make_certs.py {folder.parent} --revoke {serial:x}"
    with visitors(ingress):
        mesh(tool)
        mesh(f"{secret} --from-file={folder} | kubectl replace -f -")
        answer = wait_for(
            "the refusal", lambda: knock(mesh, stolen), 180, lambda text: "200 OK" not in text
        )
        assert "certificate revoked" in answer
        assert "200 OK" in knock(mesh, credentials(held)[0])
        (folder / "ca-crl.pem").unlink()
        mesh(f"{secret} --from-file={folder} | kubectl replace -f -")
        wait_for("the return", lambda: knock(mesh, stolen), 180, lambda text: "200 OK" in text)


def test_renewal_of_all_proxies_loses_no_request(mesh: Shell, ingress: Ingress) -> None:
    """Every sidecar gets two further certificates."""
    with visitors(ingress):
        for _ in range(2):
            before = serials(mesh)
            assert all(before.values())
            wait_for(
                "another certificate everywhere",
                lambda: serials(mesh),
                2 * LIFE_S,
                accept=lambda now: all(now[pod] != serial for pod, serial in before.items()),  # noqa: B023
            )


def test_istiod_may_be_away_for_more_than_half_a_life(mesh: Shell, ingress: Ingress) -> None:
    """Pages stay whole; every agent warns in its metrics before anything expires, and recovers by itself."""
    mesh("kubectl scale -n istio-operator deployment/istio-operator --replicas=0")
    mesh("kubectl wait -n istio-operator pod -l name=istio-operator --for=delete --timeout=60s")
    with visitors(ingress):
        mesh(f"kubectl scale {SYSTEM} deployment/istiod --replicas=0")
        try:
            wait_for(
                "warnings of all agents",
                lambda: metrics(mesh, IN_ROW),
                LIFE_S,
                accept=lambda found: all(count >= 1 for count in found.values()),
            )
            assert all(0 < left < LIFE_S / 2 + 2 for left in metrics(mesh, EXPIRY).values())
        finally:
            mesh(f"kubectl scale {SYSTEM} deployment/istiod --replicas=1")
            mesh("kubectl scale -n istio-operator deployment/istio-operator --replicas=1")
        wait_for(
            "recovery of all agents",
            lambda: metrics(mesh, IN_ROW),
            LIFE_S,
            accept=lambda found: not any(found.values()),
        )


def test_root_rotation_loses_no_request(
    mesh: Shell, ingress: Ingress, authorities: dict[str, Path]
) -> None:
    """To another authority below another root, with istiod replaced on the way; the proof is complete, and on the wire."""
    before = mesh.json("meltemi ca status -o json")
    with visitors(ingress):
        mesh(f"meltemi ca rotate --to {authorities['second']}")
        wait_for(
            "the second phase",
            lambda: mesh.json("meltemi ca status -o json")["rotation"],
            240,
            accept=lambda turning: turning["phase"] == "issue",
        )
        mesh(f"kubectl rollout restart {SYSTEM} deployment/istiod")
        wait_for(
            "the end",
            lambda: mesh.json("meltemi ca status -o json"),
            400,
            accept=lambda now: now["rotation"] is None,
        )
    after = mesh.json("meltemi ca status -o json")
    assert after["signs"] != before["signs"]
    assert len(after["trusted"]) == 1
    assert after["trusted"] != before["trusted"]
    assert after["proxies"] >= 8
    assert after["issuedBy"] == {after["signs"]: after["proxies"]}
    assert after["trustedBy"] == {after["trusted"][0]: after["proxies"]}
    assert verified(served_chain(mesh), authorities["second"])
