"""How long a whole mesh takes to start on this machine, and what it costs at rest.

Prints a table and appends a record to ``benchmarks/results/start.jsonl``: seconds from ``meltemi local up`` to a kubectl
that works; from there to a mesh and to all of Bookinfo ready with sidecars; memory of agents and Envoys per sidecar;
CPU of everything together at rest. Compare records of one machine only.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import conclude
from meltemi.adapters import kube_connection
from meltemi.adapters.kube_api import KubeApi
from meltemi.commands import demo

RESULTS = Path(__file__).parent / "results" / "start.jsonl"
NAME = "bench"
# Aims on two cores; a record says whether they were met, nothing fails by them.
AIMS = {
    "api_ready_s": 2.0,
    "bookinfo_ready_s": 20.0,
    "agent_rss_mib": 30.0,
    "idle_cpu_percent": 5.0,
}
SETTLE_S = 5.0
IDLE_WINDOW_S = 20.0
MIB = 1024 * 1024


def kubectl_ready() -> None:
    """Wait until real kubectl gets an answer."""
    while subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True).returncode:
        time.sleep(0.02)


def supervisor_tree(home: Path) -> list[psutil.Process]:
    """Every process of the cluster: the supervisor and all below it."""
    pid = int((home / NAME / "localkube.pid").read_text().split()[0])
    supervisor = psutil.Process(pid)
    return [supervisor, *supervisor.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """CPU time used so far; processes that ended meanwhile count nothing."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def memory(processes: list[psutil.Process]) -> dict[str, float]:
    """Median RSS of agents and median PSS of Envoys, MiB."""
    agents, envoys = [], []
    for process in processes:
        try:
            line = process.cmdline()
            if any("node_agent" in part for part in line) and "proxy" in line:
                agents.append(process.memory_info().rss / MIB)
            elif line and Path(line[0]).name == "envoy":
                envoys.append(process.memory_full_info().pss / MIB)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return {
        "sidecars": len(envoys),
        "agent_rss_mib": round(statistics.median(agents), 1) if agents else 0.0,
        "envoy_pss_mib": round(statistics.median(envoys), 1) if envoys else 0.0,
    }


async def mesh_and_bookinfo(kubeconfig: Path, started: float) -> dict[str, float]:
    """Install as the demo does; seconds since the start at each milestone."""
    found = {}
    async with KubeApi(kube_connection.load(str(kubeconfig)), "meltemi-bench") as api:
        await demo.install_operator(api)
        found["operator_ready_s"] = time.monotonic() - started
        await demo.install_mesh(api)
        found["mesh_ready_s"] = time.monotonic() - started
        await demo.install_bookinfo(api)
        found["bookinfo_ready_s"] = time.monotonic() - started
        await demo.wait_for_page(api)
        found["page_s"] = time.monotonic() - started
    return {key: round(value, 2) for key, value in found.items()}


def measure(home: Path) -> dict[str, Any]:
    """One run on an empty state folder."""
    os.environ["LOCALKUBE_HOME"] = str(home)
    cluster = demo.Cluster(NAME)
    started = time.monotonic()
    asyncio.run(cluster.up())
    try:
        kubeconfig = asyncio.run(cluster.kubeconfig())
        os.environ["KUBECONFIG"] = str(kubeconfig)
        kubectl_ready()
        record: dict[str, Any] = {"api_ready_s": round(time.monotonic() - started, 2)}
        record |= asyncio.run(mesh_and_bookinfo(kubeconfig, started))
        time.sleep(SETTLE_S)
        processes = supervisor_tree(home)
        before = cpu_seconds(processes)
        time.sleep(IDLE_WINDOW_S)
        used = cpu_seconds(processes) - before
        record["idle_cpu_percent"] = round(100 * used / IDLE_WINDOW_S, 1)
        record["processes"] = len(processes)
        return record | memory(processes)
    finally:
        asyncio.run(cluster.remove())


def main() -> None:
    """Measure once, print, record."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as home:
        record = measure(Path(home))
    conclude(RESULTS, record, AIMS)


if __name__ == "__main__":
    main()
