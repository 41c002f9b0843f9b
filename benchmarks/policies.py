"""What authorization policies cost a request, as a ratio to none in the same run.

One caller, one workload, real Envoys over mutual TLS. The CPU time of the workload's Envoy per request is measured, not
latency: it does not depend on who else uses the machine. Rounds take turns between the cases, and the median of each
counts. Prints a table and appends a record to ``benchmarks/results/policies.jsonl``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.record import conclude
from meltemi.testing.mesh import Mesh, Session

RESULTS = Path(__file__).parent / "results" / "policies.jsonl"
ROUNDS, WARM_UP, REQUESTS = 7, 100, 1000
URL = "http://server:8080/orders/7?page=1"
WORKLOADS = """
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{name: http, port: 8080}]}
"""


def deployment(name: str) -> str:
    """A workload with an account of its own."""
    return f"""
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{serviceAccountName: {name}, containers: [{{name: app}}]}}
"""


def policies(action: str, count: int, *, last_matches: bool) -> str:
    """``count`` policies of one rule each: a caller, a method and a path, a header. All but perhaps the last fit nobody."""
    text = ""
    for number in range(count):
        hit = last_matches and number == count - 1
        account, path = ("caller", "/orders/*") if hit else (f"caller-{number}", f"/p{number}/*")
        text += f"""
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p{number:03d}}}
spec:
  action: {action}
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/{account}]}}}}]
    to: [{{operation: {{methods: [GET, HEAD], paths: ["{path}"]}}}}]
    when: [{{key: "request.headers[x-nobody]", notValues: ["v{number}"]}}]
"""
    return text


CASES = {
    "none": "",
    "deny_1": policies("DENY", 1, last_matches=False),
    "deny_10": policies("DENY", 10, last_matches=False),
    "deny_100": policies("DENY", 100, last_matches=False),
    "allow_100_last_matches": policies("ALLOW", 100, last_matches=True),
}


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def measure(session: Session, text: str) -> float:
    """Microseconds of the workload's Envoy for each request, with these policies."""
    mesh = Mesh(session, Path())
    mesh.apply(WORKLOADS + deployment("caller") + deployment("server") + text)
    client = mesh.client("caller")
    client.send(URL, n=WARM_UP)
    rig = session.started
    assert rig is not None
    server = next(proxy for proxy in mesh.objects.proxies if proxy.workload == "server")
    pid = rig.running[server.id].process.pid
    before = cpu_s(pid)
    answers = client.send(URL, n=REQUESTS)
    used = cpu_s(pid) - before
    assert set(answers.statuses) == {200}, answers.statuses
    return used / REQUESTS * 1e6


def rounds() -> dict[str, list[float]]:
    """All cases, in turns."""
    found: dict[str, list[float]] = {name: [] for name in CASES}
    session = Session()
    try:
        for _ in range(ROUNDS):
            for name, text in CASES.items():
                found[name].append(measure(session, text))
    finally:
        session.close()
    return found


def lines(found: dict[str, list[float]]) -> Iterator[tuple[str, Any]]:
    """The record: each case's median, and its ratio to no policy."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, value in medians.items():
        yield f"{name}_us", round(value, 1)
    for name, value in medians.items():
        if name != "none":
            yield f"{name}_ratio", round(value / medians["none"], 2)


def main() -> None:
    """Measure, print, record."""
    conclude(RESULTS, dict(lines(rounds())))


if __name__ == "__main__":
    main()
