"""What breaks comes back by itself, and what is taken away on purpose takes no request with it."""

from __future__ import annotations

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
    mesh: Shell, ingress: Ingress, app: str, namespace: str, container: str, pattern: str
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


def test_istiod_back_from_the_dead_configures_proxies(
    mesh: Shell, ingress: Ingress, applied: Apply
) -> None:
    istiod = Workload(mesh, "istiod", "istio-system")
    assert processes(istiod, "discovery", "programs.control_plane", kill=True)
    mesh("kubectl wait -n istio-system pod -l app=istiod --for=condition=Ready --timeout=60s")
    wait_for(
        "the webhook",
        lambda: (
            not mesh(
                "kubectl apply -n bookinfo -f samples/bookinfo/networking/virtual-service-reviews-v3.yaml"
                " -f samples/bookinfo/networking/destination-rule-reviews.yaml >&2 || echo refused",
                check=False,
            ).endswith("refused\n")
        ),
    )
    applied("samples/bookinfo/networking/destination-rule-reviews.yaml")
    applied("samples/bookinfo/networking/virtual-service-reviews-v3.yaml")
    wait_for("the new rule in the old proxies", steadily(lambda: ingress.reviews() == "v3"))


def test_traffic_flows_while_istiod_is_down(mesh: Shell, ingress: Ingress) -> None:
    mesh("kubectl scale -n istio-operator deployment/istio-operator --replicas=0")
    mesh("kubectl wait -n istio-operator pod -l name=istio-operator --for=delete --timeout=60s")
    mesh("kubectl scale -n istio-system deployment/istiod --replicas=0")
    try:
        mesh("kubectl wait -n istio-system pod -l app=istiod --for=delete --timeout=60s")
        assert steadily(ingress.whole, 50)()
        # Even an Envoy that dies meanwhile: what the proxies know is lost with it, so it is one that is not needed.
        assert {ingress.reviews() for _ in range(30)} == {"v1", "v2", "v3"}
    finally:
        mesh("kubectl scale -n istio-system deployment/istiod --replicas=1")
        mesh("kubectl scale -n istio-operator deployment/istio-operator --replicas=1")
    mesh("kubectl rollout status -n istio-system deployment/istiod --timeout=60s")
    mesh("kubectl rollout status -n istio-operator deployment/istio-operator --timeout=60s")


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
def load(ingress: Ingress) -> Iterator[Load]:
    """Four visitors; afterwards every page must have been whole."""
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


@pytest.fixture
def two_of(mesh: Shell) -> Iterator[Callable[[str], Workload]]:
    """Gives a Deployment of Bookinfo a second pod; taken away after the test."""
    scaled: list[str] = []

    def scale(deployment: str) -> Workload:
        scaled.append(deployment)
        mesh(f"kubectl scale -n bookinfo deployment/{deployment} --replicas=2")
        mesh(f"kubectl rollout status -n bookinfo deployment/{deployment} --timeout=60s")
        app, version = deployment.split("-")
        return Workload(mesh, f"{app},version={version}")

    yield scale
    for deployment in scaled:
        mesh(f"kubectl scale -n bookinfo deployment/{deployment} --replicas=1")
        mesh(f"kubectl rollout status -n bookinfo deployment/{deployment} --timeout=60s")


@pytest.mark.parametrize("deployment", ["productpage-v1", "reviews-v2", "ratings-v1"])
def test_deleting_a_pod_under_load_loses_no_request(
    mesh: Shell, ingress: Ingress, two_of: Callable[[str], Workload], deployment: str
) -> None:
    workload = two_of(deployment)
    gone, _ = workload.pods()
    with load(ingress) as visitors:
        mesh(f"kubectl delete pod -n bookinfo {gone} --wait=false")
        visitors.more()
        mesh(f"kubectl wait -n bookinfo pod/{gone} --for=delete --timeout=60s")
        mesh(f"kubectl rollout status -n bookinfo deployment/{deployment} --timeout=60s")


@pytest.mark.parametrize("deployment", ["productpage-v1", "details-v1"])
def test_a_rollout_of_a_single_pod_loses_no_request(
    mesh: Shell, ingress: Ingress, deployment: str
) -> None:
    old = Workload(mesh, deployment.split("-")[0]).pods()[0]
    with load(ingress):
        mesh(f"kubectl rollout restart -n bookinfo deployment/{deployment}")
        mesh(f"kubectl rollout status -n bookinfo deployment/{deployment} --timeout=60s")
        mesh(f"kubectl wait -n bookinfo pod/{old} --for=delete --timeout=60s")


def test_a_rollout_of_the_ingress_gateway_loses_no_request(mesh: Shell, ingress: Ingress) -> None:
    old = Workload(mesh, "istio-ingressgateway", "istio-system").pods()[0]
    with load(ingress):
        mesh("kubectl rollout restart -n istio-system deployment/istio-ingressgateway")
        mesh("kubectl rollout status -n istio-system deployment/istio-ingressgateway --timeout=60s")
        mesh(f"kubectl wait -n istio-system pod/{old} --for=delete --timeout=60s")
