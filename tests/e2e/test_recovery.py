"""What breaks comes back by itself, and what is taken away on purpose takes no request with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from e2e.conftest import Ingress, Shell, Workload, steadily, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]
Apply = Callable[[str], None]
KILL = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        line = open(f"/proc/{{pid}}/cmdline").read()
    except OSError:
        continue
    if {pattern!r} in line and int(pid) != os.getpid():
        print(pid, flush=True)
        if {kill}:
            os.kill(int(pid), signal.SIGKILL)
"""


def processes(
    workload: Workload, container: str, pattern: str, *, kill: bool = False
) -> frozenset[str]:
    """Process ids, in the pod, of the command lines with ``pattern``; killed with SIGKILL if asked for."""
    found = workload.exec(container, "python3 -", stdin=KILL.format(pattern=pattern, kill=kill))
    return frozenset(word for word in found.split() if word.isdigit())


@pytest.mark.parametrize(
    ("app", "namespace", "container", "pattern"),
    [
        ("productpage", "bookinfo", "istio-proxy", "_bin/envoy"),
        ("productpage", "bookinfo", "istio-proxy", "programs.node_agent"),
        ("productpage", "bookinfo", "productpage", "src.productpage"),
        ("istio-ingressgateway", "istio-system", "istio-proxy", "_bin/envoy"),
        ("istiod", "istio-system", "discovery", "programs.control_plane"),
    ],
)
def test_a_killed_process_comes_back(
    mesh: Shell,
    ingress: Ingress,
    applied: Apply,
    app: str,
    namespace: str,
    container: str,
    pattern: str,
) -> None:
    workload = Workload(mesh, app, namespace)
    pods = workload.pods()
    killed = processes(workload, container, pattern, kill=True)
    assert killed
    wait_for(
        "a new process",
        lambda: processes(workload, container, pattern),
        accept=lambda now: now and not now & killed,
    )
    assert workload.pods() == pods, "the pod itself stays"
    mesh(f"kubectl wait -n {namespace} pod/{pods[0]} --for=condition=Ready --timeout=60s")
    wait_for("whole pages again", steadily(ingress.whole))
    # A new rule reaches every proxy on the way: the one that came back, or all of them from the istiod that did.
    applied("samples/bookinfo/networking/destination-rule-reviews.yaml")
    applied("samples/bookinfo/networking/virtual-service-reviews-v3.yaml")
    wait_for("the new rule in the proxies", steadily(lambda: ingress.reviews() == "v3"))


def test_traffic_flows_while_istiod_is_down(mesh: Shell, ingress: Ingress) -> None:
    listening(mesh)
    mesh("kubectl scale -n istio-operator deployment/istio-operator --replicas=0")
    mesh("kubectl wait -n istio-operator pod -l name=istio-operator --for=delete --timeout=60s")
    mesh("kubectl scale -n istio-system deployment/istiod --replicas=0")
    try:
        mesh("kubectl wait -n istio-system pod -l app=istiod --for=delete --timeout=60s")
        assert steadily(ingress.whole, 50)()
        assert {ingress.reviews() for _ in range(30)} == {"v1", "v2", "v3"}
    finally:
        mesh("kubectl scale -n istio-system deployment/istiod --replicas=1")
        mesh("kubectl scale -n istio-operator deployment/istio-operator --replicas=1")
    mesh("kubectl rollout status -n istio-system deployment/istiod --timeout=60s")
    mesh("kubectl rollout status -n istio-operator deployment/istio-operator --timeout=60s")
    listening(mesh)


def listening(mesh: Shell) -> None:
    """Wait until every proxy is connected: one that is not goes on calling pods that have gone."""

    def wanted() -> int:
        containers = "jsonpath='{.items[*].spec.containers[*].name}'"
        return mesh(f"kubectl get pods -A -o {containers}").split().count("istio-proxy")

    wait_for("every proxy connected", lambda: wanted() - connected(mesh), accept=lambda n: n == 0)


def connected(mesh: Shell) -> int:
    """Proxies that istiod counts as connected."""
    pod = Workload(mesh, "istiod", "istio-system").pods()[0]
    path = f"/api/v1/namespaces/istio-system/pods/{pod}:15014/proxy/metrics"
    counts = re.findall(r"^pilot_xds\{[^}]*\} ([0-9.]+)$", mesh(f"kubectl get --raw {path}"), re.M)
    return int(sum(map(float, counts)))


class Load:
    """Pages asked for without a pause, and what came back."""

    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress
        self.seen: Counter[str] = Counter()
        self.stop = False

    def visit(self) -> None:
        while not self.stop:
            status, body = self.ingress.get("/productpage")
            whole = "currently unavailable" not in body
            self.seen[f"{status} {'whole' if whole else 'with parts missing'}"] += 1

    def more(self, count: int = 150) -> None:
        """Wait until this many more pages have come."""
        target = self.seen.total() + count
        wait_for(f"{count} more pages", lambda: self.seen.total() >= target)


@contextmanager
def load(mesh: Shell, ingress: Ingress) -> Iterator[Load]:
    """Four visitors; afterwards every page must have been whole."""
    listening(mesh)
    visitors = Load(ingress)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(visitors.visit) for _ in range(4)]
        try:
            visitors.more(50)
            yield visitors
            visitors.more()
        finally:
            visitors.stop = True
    for future in futures:
        future.result()
    assert set(visitors.seen) == {"200 whole"}, visitors.seen


def test_deleting_pods_under_load_loses_no_request(mesh: Shell, ingress: Ingress) -> None:
    deployments = ("productpage-v1", "reviews-v2", "ratings-v1")
    names = " ".join(f"deployment/{name}" for name in deployments)
    mesh(f"kubectl scale -n bookinfo {names} --replicas=2")
    try:
        settle(mesh, "bookinfo", *deployments)
        first = " ".join(
            Workload(mesh, name.replace("-", ",version=")).pods()[0] for name in deployments
        )
        with load(mesh, ingress) as visitors:
            mesh(f"kubectl delete pod -n bookinfo {first}")
            settle(mesh, "bookinfo", *deployments)
            visitors.more()
    finally:
        mesh(f"kubectl scale -n bookinfo {names} --replicas=1")


def test_rollouts_of_single_pods_lose_no_request(mesh: Shell, ingress: Ingress) -> None:
    gone = {
        "bookinfo": [Workload(mesh, app).pods()[0] for app in ("productpage", "details")],
        "istio-system": Workload(mesh, "istio-ingressgateway", "istio-system").pods()[:1],
    }
    with load(mesh, ingress):
        mesh(
            "kubectl rollout restart -n bookinfo deployment/productpage-v1 deployment/details-v1;"
            "kubectl rollout restart -n istio-system deployment/istio-ingressgateway"
        )
        settle(mesh, "bookinfo", "productpage-v1", "details-v1")
        settle(mesh, "istio-system", "istio-ingressgateway")
        for namespace, pods in gone.items():
            mesh(f"kubectl wait -n {namespace} pod {' '.join(pods)} --for=delete --timeout=60s")


def settle(mesh: Shell, namespace: str, *deployments: str) -> None:
    """Wait until all pods of the Deployments are as they should be."""
    for name in deployments:
        mesh(f"kubectl rollout status -n {namespace} deployment/{name} --timeout=60s")
