"""CPU and memory of pods, from /proc. In: the pod workers. Out: the kubelet's two formats.

A container is all processes that share its mount namespace.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from localkube.kit import clock
from localkube.node.podworker import PodWorker

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Usage:
    """CPU seconds and resident bytes."""

    cpu_s: float = 0.0
    memory: int = 0


def read_usage() -> dict[str, Usage]:
    """Return the usage of all processes by mount namespace."""
    found: dict[str, Usage] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed
        if not name.isdigit():
            continue
        try:
            key = os.readlink(f"/proc/{name}/ns/mnt")  # noqa: PTH115 - it is no path
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - the quickest way
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        usage = found.setdefault(key, Usage())
        # Fields 14 and 15 of proc(5) are CPU ticks, 24 is resident pages; two are cut off here.
        usage.cpu_s += (int(fields[11]) + int(fields[12])) * _TICK_S
        usage.memory += int(fields[21]) * _PAGE
    return found


def _containers(workers: Mapping[str, PodWorker]) -> list[tuple[PodWorker, str, Usage]]:
    usage = read_usage()
    return [
        (worker, name, usage[runner.process.mount_ns])
        for worker in workers.values()
        for name, runner in worker.runners.items()
        if runner.process is not None and runner.process.mount_ns in usage
    ]


def summarize(node: str, workers: Mapping[str, PodWorker]) -> dict[str, Any]:
    """Return the kubelet's /stats/summary."""
    now = clock.rfc3339(clock.now())
    pods: dict[str, dict[str, Any]] = {}
    for worker, name, usage in _containers(workers):
        reference = {"name": worker.name, "namespace": worker.namespace, "uid": worker.uid}
        pod = pods.setdefault(worker.uid, {"podRef": reference, "containers": []})
        pod["containers"].append(
            {
                "name": name,
                "cpu": {"time": now, "usageCoreNanoSeconds": int(usage.cpu_s * 1e9)},
                "memory": {"time": now, "workingSetBytes": usage.memory},
            }
        )
    return {"node": {"nodeName": node}, "pods": list(pods.values())}


def render_resource_metrics(workers: Mapping[str, PodWorker]) -> str:
    """Return the kubelet's /metrics/resource in the Prometheus text format."""
    cpu = ["# TYPE container_cpu_usage_seconds_total counter"]
    memory = ["# TYPE container_memory_working_set_bytes gauge"]
    for worker, name, usage in _containers(workers):
        labels = f'{{container="{name}",namespace="{worker.namespace}",pod="{worker.name}"}}'
        cpu.append(f"container_cpu_usage_seconds_total{labels} {usage.cpu_s:.2f}")
        memory.append(f"container_memory_working_set_bytes{labels} {usage.memory}")
    return "\n".join([*cpu, *memory, ""])
