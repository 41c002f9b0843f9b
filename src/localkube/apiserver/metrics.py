"""The server's own metrics, in Prometheus' text format.

In: requests as they begin and end. Out: the text of /metrics. Names are those of kube-apiserver.
"""

from __future__ import annotations

import contextlib
import os
import resource as os_resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localkube.apiserver.context import Server
from localkube.apiserver.request_info import RequestInfo
from localkube.apiserver.resources import ALL_VERBS

# Methods are the client's invention, too.
_VERBS = frozenset({*ALL_VERBS, "head", "post", "put", "options"})


@dataclass(slots=True)
class Outcome:
    """How a request ended; 499 if the client left before."""

    code: int = 499


class RequestMetrics:
    """Counts requests by verb, resource and code."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._requests: Counter[tuple[str, str, str, int]] = Counter()
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def track(self, info: RequestInfo) -> Iterator[Outcome]:
        """Count one request; set the outcome's code before leaving."""
        verb = info.verb.upper() if info.verb in _VERBS else "OTHER"
        outcome = Outcome()
        self._running[verb] += 1
        try:
            yield outcome
        finally:
            self._running[verb] -= 1
            known = self._server.table.lookup(info.group, info.version, info.plural)
            # Only what is served becomes a label: paths are the client's invention.
            name = info.plural if known is not None else ""
            self._requests[verb, info.group if known else "", name, outcome.code] += 1

    def render(self) -> str:
        """Return all metrics as text."""
        lines = [
            "# HELP apiserver_request_total Requests by verb, group, resource and code.",
            "# TYPE apiserver_request_total counter",
        ]
        for (verb, group, name, code), count in sorted(self._requests.items()):
            lines.append(
                f'apiserver_request_total{{code="{code}",group="{group}",resource="{name}",'
                f'verb="{verb}"}} {count}'
            )
        lines += [
            "# HELP apiserver_current_inflight_requests Requests running now.",
            "# TYPE apiserver_current_inflight_requests gauge",
        ]
        for verb, count in sorted(self._running.items()):
            lines.append(f'apiserver_current_inflight_requests{{request_kind="{verb}"}} {count}')
        store = self._server.store
        lines += [
            "# HELP apiserver_storage_objects Stored objects by resource.",
            "# TYPE apiserver_storage_objects gauge",
        ]
        for storage in sorted(store.storages()):
            lines.append(
                f'apiserver_storage_objects{{resource="{storage}"}} {len(store.list(storage))}'
            )
        lines += _process_lines()
        return "\n".join(lines) + "\n"


def _process_lines() -> list[str]:
    usage = os_resource.getrusage(os_resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return [
        "# HELP process_cpu_seconds_total Processor time used.",
        "# TYPE process_cpu_seconds_total counter",
        f"process_cpu_seconds_total {usage.ru_utime + usage.ru_stime:.2f}",
        "# HELP process_resident_memory_bytes Resident memory.",
        "# TYPE process_resident_memory_bytes gauge",
        f"process_resident_memory_bytes {pages * os.sysconf('SC_PAGE_SIZE')}",
    ]
