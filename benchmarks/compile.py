"""How long ``meltemi compile`` takes for one proxy of a large mesh, as a user waits for it: start-up, reading, output.

Prints a table, and a record for ``benchmarks/results/compile.jsonl``: seconds of wall clock (the best of some runs) and of CPU, for
meshes of 100 and 1000 services, and how much longer the larger takes. Run as ``python -m benchmarks.compile``.
"""

from __future__ import annotations

import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "compile.jsonl"
SIZES = (100, 1000)
RUNS = 5
SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: s{n}, namespace: ns{space}}}
spec:
  selector: {{app: s{n}}}
  ports:
  - {{name: http, port: 8080}}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: s{n}-v1
  namespace: ns{space}
spec:
  replicas: 2
  selector:
    matchLabels: {{app: s{n}, version: v1}}
  template:
    metadata:
      labels: {{app: s{n}, version: v1}}
    spec:
      serviceAccountName: s{n}
      containers:
      - name: app
        image: docker.io/meltemi/app:1
        ports:
        - containerPort: 8080
---
"""
# Every fifth service has rules.
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: s{n}, namespace: ns{space}}}
spec:
  hosts: [s{n}]
  http:
  - match:
    - headers:
        end-user: {{exact: jason}}
    route:
    - destination: {{host: s{n}, subset: v1}}
  - route:
    - destination: {{host: s{n}}}
    timeout: 5s
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: s{n}, namespace: ns{space}}}
spec:
  host: s{n}
  trafficPolicy:
    connectionPool: {{tcp: {{maxConnections: 100}}}}
  subsets:
  - name: v1
    labels: {{version: v1}}
---
"""


def mesh(services: int) -> str:
    """The YAML of a mesh, in twenty namespaces."""
    parts = []
    for number in range(services):
        parts.append(SERVICE.format(n=number, space=number % 20))
        if number % 5 == 0:
            parts.append(RULES.format(n=number, space=number % 20))
    return "".join(parts)


def measure(path: Path, output: str) -> tuple[float, float]:
    """(seconds of wall clock, seconds of CPU) of one run."""
    program = Path(sys.executable).with_name("meltemi")
    command = [program, "compile", "-f", path, "--proxy", "s1-v1.ns1", "-o", output]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print, record."""
    now = datetime.datetime.now(datetime.UTC)  # noqa: TID251  # a benchmark says when it ran
    record: dict[str, object] = {"at": now.isoformat(timespec="seconds"), "cpus": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        for output in ("short", "json"):
            best = {}
            for services in SIZES:
                path = Path(folder) / f"{services}.yaml"
                path.write_text(mesh(services))
                runs = [measure(path, output) for _ in range(RUNS)]
                best[services] = min(wall for wall, _ in runs)
                cpu = min(cpu for _, cpu in runs)
                record[f"{output}_{services}_s"] = round(best[services], 3)
                record[f"{output}_{services}_cpu_s"] = round(cpu, 3)
                print(
                    f"{services:5d} services, -o {output:5s} {best[services]:.2f} s, CPU {cpu:.2f} s"
                )
            small, large = SIZES
            record[f"{output}_ratio"] = round(best[large] / best[small], 2)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
