"""The one-machine Kubernetes on a machine that does not cooperate."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.conftest import Ingress, Shell, terminal, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@contextlib.contextmanager
def taken_port(address: str) -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as other:
        other.bind((address, 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_taken_api_port_is_named(tmp_path: Path) -> None:
    shell = terminal(tmp_path)
    with taken_port("127.0.0.1") as port:
        said = shell(
            f"meltemi local up --detach --no-node --api-port {port} || echo refused", check=False
        )
    assert "refused" in said
    assert f"port {port} is taken by another program" in said
    assert "--api-port" in said
    assert "Traceback" not in said


def test_a_taken_load_balancer_port_is_named_and_another_works(
    mesh: Shell, ingress: Ingress
) -> None:
    with taken_port("0.0.0.0") as port:
        mesh(f"kubectl create service loadbalancer -n bookinfo e2e-edge --tcp={port}:9080")
        try:
            mesh("kubectl set selector -n bookinfo service e2e-edge app=details")
            service = wait_for(
                "a port that stands in",
                lambda: mesh.json("kubectl get service -n bookinfo e2e-edge -o json"),
                accept=lambda s: (
                    "localkube/forwarded-ports" in s["metadata"].get("annotations", {})
                ),
            )
            found = service["status"]["loadBalancer"]["ingress"][0]
            assert found["ports"] == [{"port": port, "protocol": "TCP", "error": "AddressInUse"}]
            pair = service["metadata"]["annotations"]["localkube/forwarded-ports"]
            other = int(pair.removeprefix(f"{port}="))
            edge = Ingress(f"http://{found['ip']}:{other}")
            wait_for("details there", lambda: edge.get("/details/0")[0] == 200)
            events = mesh(
                "kubectl get events -n bookinfo --field-selector involvedObject.name=e2e-edge"
            )
            assert f"already listens on {found['ip']}:{port}" in events
        finally:
            mesh("kubectl delete service -n bookinfo e2e-edge")
    assert ingress.whole()


def test_a_kernel_without_user_namespaces_is_explained(tmp_path: Path) -> None:
    said = terminal(tmp_path)(
        "unshare --user --map-root-user bash -c '"
        "echo 0 > /proc/sys/user/max_user_namespaces; echo 0 > /proc/sys/user/max_net_namespaces;"
        "meltemi local up --detach' || echo refused",
        check=False,
    )
    assert "refused" in said
    assert "user.max_user_namespaces is 0: sudo sysctl -w user.max_user_namespaces=" in said
    assert "Traceback" not in said


DISK_FULL = """
mount -t tmpfs -o size=24m tmpfs "$LOCALKUBE_HOME"
trap 'meltemi local reset >/dev/null' EXIT
meltemi local up --detach --no-node >/dev/null
eval "$(meltemi local env)"
kubectl create namespace before >/dev/null
head -c 400000 /dev/zero | tr '\\0' x > "$SCRATCH/big"
dd if=/dev/zero of="$LOCALKUBE_HOME/fill" bs=64k 2>/dev/null || true
echo "--- full"
kubectl create configmap big -n before --from-file="$SCRATCH/big" 2>&1 || echo refused
kubectl get namespace before -o name
rm "$LOCALKUBE_HOME/fill"
echo "--- free"
kubectl create configmap big -n before --from-file="$SCRATCH/big" 2>&1
"""


def test_a_full_disk_is_told_and_got_over(tmp_path: Path, ingress: Ingress) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    shell = terminal(home)
    shell.environment["SCRATCH"] = str(scratch)
    said = shell("unshare --user --map-root-user --mount bash -eu", stdin=DISK_FULL)
    full, free = said.split("--- full\n")[1].split("--- free\n")
    assert "could not be written: database or disk is full" in full
    assert "refused" in full
    assert "namespace/before" in full, "what is stored can be read"
    assert "configmap/big created" in free
    assert ingress.whole()
