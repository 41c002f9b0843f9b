"""Configuration that changes ten times a second for two minutes, while visitors come: nothing is lost, nothing leaks.

Slow: two minutes of churn, and as long again until what is drained has ended. The whole mesh is real: the operator's
installation, istiod, an ingress gateway and Bookinfo with its sidecars; changes go through the Kubernetes API.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.conftest import Ingress, Shell, Workload, ingress, mesh, shell, wait_for

__all__ = ["ingress", "mesh", "shell"]
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(560)]
INTERVAL_S = 0.1
CHANGES = 1200
# Changes before the first look: longer than a drain (45 s, as in Istio), so that as much ends as begins; caches are full by then,
# and allocators have their arenas.
WARM_UP = 600
# What the last look may have more than the first: room for noise, none for something that grows with changes.
GROWTH = 1.25
NETWORKING = "networking.istio.io/v1"
HOSTS = ("productpage", "details", "reviews", "ratings")
SUBSETS = [{"name": v, "labels": {"version": v}} for v in ("v1", "v2", "v3")]


def weights(dice: random.Random) -> dict[str, Any]:
    """reviews by new weights, and a rule for one user that comes and goes."""
    first, second = sorted(dice.sample(range(101), 2))
    parts = zip(("v1", "v2", "v3"), (first, second - first, 100 - second), strict=True)
    route = [{"destination": {"host": "reviews", "subset": v}, "weight": w} for v, w in parts]
    http: list[dict[str, Any]] = [{"route": route}]
    if dice.random() < 0.5:
        match = [{"headers": {"end-user": {"exact": f"user-{dice.randrange(50)}"}}}]
        http.insert(0, {"match": match, "route": [{"destination": {"host": "reviews"}}]})
    return named(NETWORKING, "VirtualService", "reviews", {"hosts": ["reviews"], "http": http})


def policy(dice: random.Random) -> dict[str, Any]:
    """Another load balancer and other limits: the cluster is made anew."""
    spec = {
        "host": "reviews",
        "subsets": SUBSETS,
        "trafficPolicy": {
            "loadBalancer": {"simple": dice.choice(["RANDOM", "ROUND_ROBIN", "LEAST_REQUEST"])},
            "connectionPool": {"tcp": {"maxConnections": dice.randrange(500, 1000)}},
        },
    }
    return named(NETWORKING, "DestinationRule", "reviews", spec)


def entry(dice: random.Random) -> dict[str, Any]:
    """One of five services outside: with another port each time, so that listeners come and go."""
    number = dice.randrange(5)
    spec = {
        "hosts": [f"outside-{number}.example.com"],
        "location": "MESH_EXTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": 20000 + dice.randrange(50), "name": "tcp", "protocol": "TCP"}],
        "endpoints": [{"address": f"192.0.2.{number + 1}"}],
    }
    return named(NETWORKING, "ServiceEntry", f"outside-{number}", spec)


def gateway(dice: random.Random) -> dict[str, Any]:
    """Another host at the ingress gateway, on the port that the visitors use."""
    host = f"shop-{dice.randrange(20)}.example.com"
    server = {"port": {"number": 8080, "name": "http", "protocol": "HTTP"}, "hosts": [host]}
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    return named(NETWORKING, "Gateway", "shop", spec)


def authorization(dice: random.Random) -> dict[str, Any]:
    """A refusal that concerns no visitor: the inbound listeners of all sidecars change."""
    rule = {"to": [{"operation": {"paths": [f"/secret/{dice.randrange(1000)}"]}}]}
    spec = {"action": "DENY", "rules": [rule]}
    return named("security.istio.io/v1", "AuthorizationPolicy", "secrets", spec)


def named(version: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A whole object of namespace bookinfo."""
    meta = {"name": name, "namespace": "bookinfo"}
    return {"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec}


KINDS = (weights, policy, entry, gateway, authorization)
PLURALS = {"Gateway": "gateways", "VirtualService": "virtualservices", "ServiceEntry": "serviceentries"} | {
    "DestinationRule": "destinationrules", "AuthorizationPolicy": "authorizationpolicies"}  # fmt: skip


class Api:
    """The Kubernetes API through ``kubectl proxy``: one change is one request."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.there: set[str] = set()

    def put(self, item: dict[str, Any]) -> None:
        """Server-side apply."""
        self._call("PATCH", self._path(item) + "?fieldManager=churn&force=true", item)
        self.there.add(self._path(item))

    def delete(self, path: str) -> None:
        """Take an object away."""
        self._call("DELETE", path, None)
        self.there.discard(path)

    def _path(self, item: dict[str, Any]) -> str:
        plural, meta = PLURALS[item["kind"]], item["metadata"]
        return f"/apis/{item['apiVersion']}/namespaces/{meta['namespace']}/{plural}/{meta['name']}"

    def _call(self, method: str, path: str, body: Any) -> None:
        request = urllib.request.Request(
            self.base + path,
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/apply-patch+yaml"} if body else {},
        )
        urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def kubectl_proxy(mesh: Shell) -> Iterator[Api]:
    process = subprocess.Popen(
        ["kubectl", "proxy", "--port=0"], env=mesh.environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        yield Api(f"http://{found[0]}")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def visitors(site: Ingress, count: int = 3) -> Iterator[Counter[str]]:
    """Steady requests for the whole page until the block ends; what they met, counted."""
    met: Counter[str] = Counter()
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.05):
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


@dataclass(frozen=True)
class Size:
    """What one process holds."""

    rss: int
    fds: int


def processes(mesh: Shell) -> dict[str, psutil.Process]:
    """istiod and every Envoy of the cluster, by a name that stays."""
    home = Path(mesh.environment["LOCALKUBE_HOME"])
    pid = int((home / "default" / "localkube.pid").read_text().split()[0])
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        line = process.cmdline()
        if "meltemi.programs.control_plane" in line:
            found["istiod"] = process
        elif line and Path(line[0]).name == "envoy":
            node = process.environ().get("POD_NAME") or str(process.pid)
            found[f"envoy {node}"] = process
    return found


def sizes(of: dict[str, psutil.Process]) -> dict[str, Size]:
    """The present sizes; the same processes must still be there."""
    return {name: Size(p.memory_info().rss, p.num_fds()) for name, p in of.items()}


def report(*looks: dict[str, Size]) -> str:
    """A table: MiB and file descriptors of each process at each look."""
    lines = [
        "process: MiB/descriptors at the start, after the warm-up, at the end of the churn, at rest"
    ]
    for name in sorted(looks[0]):
        lines.append(f"{name}: " + ", ".join(f"{s[name].rss >> 20}/{s[name].fds}" for s in looks))
    return "\n".join(lines)


def streams(mesh: Shell) -> int:
    """Proxies that istiod counts as connected."""
    pod = Workload(mesh, "istiod", "istio-system").pods()[0]
    text = mesh(f"kubectl get --raw /api/v1/namespaces/istio-system/pods/{pod}:15014/proxy/metrics")
    return int(sum(float(n) for n in re.findall(r"^pilot_xds\{[^}]*\} ([0-9.]+)$", text, re.M)))


def envoy_numbers(mesh: Shell, app: str) -> dict[str, int]:
    """Envoy's counts of what may pile up, in the proxy of one app of Bookinfo."""
    names = (
        "listener_manager.total_listeners_active",
        "listener_manager.total_listeners_draining",
        "listener_manager.total_filter_chains_draining",
        "cluster_manager.active_clusters",
        "cluster_manager.warming_clusters",
        "cluster.xds-grpc.upstream_cx_active",
        "cluster.xds-grpc.upstream_rq_active",
    )
    stats = Workload(mesh, app).envoy("stats")
    known = dict(line.split(": ", 1) for line in stats.splitlines() if ": " in line)
    return {name: int(known[name]) for name in names if name in known}


def settled(mesh: Shell) -> dict[str, dict[str, int]]:
    """Envoy's counts when nothing is draining or warming any more."""

    def look() -> dict[str, dict[str, int]]:
        return {app: envoy_numbers(mesh, app) for app in HOSTS}

    def quiet(found: dict[str, dict[str, int]]) -> bool:
        return not any(
            number
            for numbers in found.values()
            for name, number in numbers.items()
            if "draining" in name or "warming" in name
        )

    return dict(wait_for("nothing drains or warms up", look, 120, quiet))


def churn(api: Api, first: int, last: int, dice: random.Random) -> None:
    """Changes number ``first`` to ``last``, one each tenth of a second."""
    began = time.monotonic()
    for number in range(first, last):
        there = [path for path in sorted(api.there) if "serviceentries" in path]
        if len(there) > 3:
            api.delete(dice.choice(there))
        else:
            api.put(KINDS[number % len(KINDS)](dice))
        time.sleep(max(0.0, began + (number - first + 1) * INTERVAL_S - time.monotonic()))


def test_churn_loses_no_request_and_leaks_nothing(mesh: Shell, ingress: Ingress) -> None:
    dice = random.Random(3)
    with kubectl_proxy(mesh) as api:
        # From the start: subsets of a rule must be there before routes to them.
        api.put(policy(dice))
        try:
            wait_for("whole pages", lambda: ingress.whole())
            before = settled(mesh)
            connected = streams(mesh)
            running = processes(mesh)
            first = sizes(running)
            assert connected >= 8
            assert len(running) >= 9
            with visitors(ingress) as met:
                churn(api, 0, WARM_UP, dice)
                early = sizes(running)
                churn(api, WARM_UP, CHANGES, dice)
                late = sizes(running)
        finally:
            for path in sorted(api.there - {p for p in api.there if "destinationrules" in p}):
                api.delete(path)
        assert set(met) == {"whole"}, met
        assert met["whole"] > CHANGES / 10, "the visitors were there all the time"
        # Which holds although all that the changes brought is gone again:
        after = settled(mesh)
        for path in sorted(api.there):
            api.delete(path)
    assert after == before
    assert streams(mesh) == connected
    assert {name: p.pid for name, p in processes(mesh).items()} == {
        name: p.pid for name, p in running.items()
    }, "nothing was restarted"
    at_rest = sizes(running)
    print(report(first, early, late, at_rest))
    assert not [name for name in running if late[name].rss > early[name].rss * GROWTH]
    assert not [name for name in running if late[name].fds > early[name].fds * GROWTH]
    # Connections that pools keep warm remain, a few for each worker thread; nothing for each change.
    assert not [name for name in running if at_rest[name].fds > first[name].fds + 24]
