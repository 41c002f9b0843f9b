"""How fast the pytest plugin is: ten services and 50 tests, and the first test alone, as a user sees them.

``python -m benchmarks.testing`` writes a project into a temporary folder, runs pytest on it in a new process each time,
prints a table and appends a record to ``benchmarks/results/testing.jsonl``. Compare records of one machine only.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "testing.jsonl"
# Aims on two cores; a record says whether they were met, nothing fails by them.
AIMS = {"suite_s": 10.0, "first_test_s": 3.0}
SERVICES = 10
TESTS = 50
RUNS = 3
WORKLOAD = """
apiVersion: apps/v1
kind: Deployment
metadata: {{name: s{n}}}
spec:
  template:
    metadata: {{labels: {{app: s{n}}}}}
    spec: {{serviceAccountName: s{n}, containers: [{{name: app, ports: [{{containerPort: 8080}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: s{n}}}
spec: {{selector: {{app: s{n}}}, ports: [{{name: http, port: 8080}}]}}
"""
# Each test has a configuration of its own: what is measured is changing ten proxies, asking, and changing them again.
TEST = """
import pytest

@pytest.mark.parametrize("number", range({tests}))
def test_a_header_leads_to_another_service(mesh, number):
    here, there = f"s{{number % {services}}}", f"s{{(number + 1) % {services}}}"
    mesh.apply("k8s/", f'''
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{{{name: routes}}}}
spec:
  hosts: [{{here}}]
  http:
  - match: [{{{{headers: {{{{number: {{{{exact: "{{number}}"}}}}}}}}}}}}]
    route: [{{{{destination: {{{{host: {{there}}}}}}}}}}]
  - route: [{{{{destination: {{{{host: {{here}}}}}}}}}}]
''')
    client = mesh.client(f"s{{(number + 5) % {services}}}")
    assert client.get(f"http://{{here}}:8080/", headers={{"number": str(number)}}).workload == there
    answer = client.get(f"http://{{here}}:8080/")
    assert answer.workload == here
    assert answer.mtls
"""


def write_project(folder: Path) -> None:
    """Ten services and fifty tests."""
    (folder / "k8s").mkdir()
    text = "---".join(WORKLOAD.format(n=n) for n in range(SERVICES))
    (folder / "k8s" / "services.yaml").write_text(text, encoding="utf-8")
    (folder / "test_routes.py").write_text(
        TEST.format(tests=TESTS, services=SERVICES), encoding="utf-8"
    )


def seconds(folder: Path, *words: str) -> float:
    """How long one run of pytest takes, from its start as a process to its end."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.monotonic() - began


def main() -> None:
    """Measure, print, record."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write_project(folder)
        first = [seconds(folder, "-k", "service[0]") for _ in range(RUNS)]
        suite = [seconds(folder) for _ in range(RUNS)]
        workers = [seconds(folder, "-n", "2") for _ in range(RUNS)]
    record: dict[str, Any] = {
        "suite_s": round(statistics.median(suite), 2),
        "first_test_s": round(statistics.median(first), 2),
        "suite_with_two_workers_s": round(statistics.median(workers), 2),
        "services": SERVICES,
        "tests": TESTS,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),  # noqa: TID251 - a rim of its own
        "machine": f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}",
        "user": "root" if os.geteuid() == 0 else "ordinary",
    }
    table = Table("What", "Found", "Aim")
    for key, value in record.items():
        aim = AIMS.get(key)
        table.add_row(key, str(value), f"under {aim:g}" if aim else "")
    Console().print(table)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
