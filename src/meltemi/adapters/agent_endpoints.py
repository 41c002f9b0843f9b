"""What the agent answers on port 15020.

In: HTTP requests. Out: readiness, the pod's merged metrics, and (from inside the pod only) quit, drain and
debug. Promises that a metrics answer exists even when Envoy or the application does not answer: their part
is then missing and counted as a failure.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from meltemi.adapters.agent_http import Request, Response, fetch, open_request
from meltemi.agent.metrics import AgentCounters, Rewriter, ScrapeTarget
from meltemi.agent.readiness import STATS_FILTER, Readiness, judge_readiness

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_SCRAPE_S_MAX = 5.0


class AgentEndpoints:
    """The handler of the agent's HTTP server."""

    def __init__(
        self,
        *,
        admin_port: int,
        scrape: ScrapeTarget | None,
        counters: AgentCounters,
        now: Callable[[], float],
        stop: Callable[[], None],
        drain: Callable[[], None],
        describe: Callable[[], dict[str, Any]],
        names: Callable[[], dict[str, Any]],
        warn: Callable[[str], None],
    ) -> None:
        """``stop`` and ``drain`` are called for their paths; ``describe`` gives ``/debug``, ``names`` ``/debug/ndsz``."""
        self._admin_port, self._scrape, self._counters = admin_port, scrape, counters
        self._now, self._stop, self._drain = now, stop, drain
        self._pages = {"/debug": describe, "/debug/ndsz": names}
        self._warn = warn

    async def handle(self, request: Request) -> Response:
        """The answer to one request."""
        path = request.path.partition("?")[0]
        if path in ("/healthz/ready", "/stats/prometheus", "/metrics"):
            if request.method not in ("GET", "HEAD"):
                return Response(405, b"use GET\n", headers=(("allow", "GET"),))
            if path == "/healthz/ready":
                verdict = await self.check_readiness()
                return Response(200 if verdict.ready else 503, f"{verdict.reason}\n".encode())
            return Response(200, self._merged(), _PROMETHEUS)
        if path in ("/quitquitquit", "/drain", *self._pages):
            return self._local(request, path)
        return Response(404, b"no such path; probes of the application are on the health port\n")

    def _local(self, request: Request, path: str) -> Response:
        if not request.loopback:
            return Response(403, b"only from inside the pod\n")
        if path in self._pages:
            return Response(200, json.dumps(self._pages[path](), indent=1).encode() + b"\n")
        if request.method != "POST":
            return Response(405, b"use POST\n", headers=(("allow", "POST"),))
        if path == "/drain":
            self._drain()
        else:
            self._stop()
        return Response(200, b"OK\n")

    async def check_readiness(self) -> Readiness:
        """Ask Envoy. No answer is not ready."""
        try:
            path = "/stats?filter=" + _quote(STATS_FILTER)
            status, text = await fetch(self._admin_port, "GET", path, timeout_s=1.0)
        except (OSError, TimeoutError) as error:
            return Readiness(False, f"Envoy does not answer: {error or 'timeout'}")
        if status != 200:
            return Readiness(False, f"Envoy's admin port answered {status}")
        return judge_readiness(text)

    async def _merged(self) -> AsyncIterator[bytes]:
        self._counters.scrapes += 1
        async for piece in self._envoy_part():
            yield piece
        if self._scrape:
            async for piece in self._application_part(self._scrape):
                yield piece
        yield self._counters.render(self._now())

    async def _envoy_part(self) -> AsyncIterator[bytes]:
        rewriter = Rewriter()
        try:
            async with open_request(
                self._admin_port, "GET", "/stats/prometheus", timeout_s=_SCRAPE_S_MAX
            ) as (_, pieces):
                async for piece in pieces:
                    if lines := rewriter.feed(piece):
                        yield lines
        except (OSError, TimeoutError) as error:
            self._failed("envoy", str(error) or "timeout")
            rewriter.rest = b""
        if rest := rewriter.close():
            yield rest

    async def _application_part(self, target: ScrapeTarget) -> AsyncIterator[bytes]:
        last = b"\n"
        try:
            async with open_request(
                target.port, "GET", target.path, accept="text/plain", timeout_s=_SCRAPE_S_MAX
            ) as (status, pieces):
                if status != 200:
                    self._failed("application", f"{target.path} answered {status}")
                    return
                async for piece in pieces:
                    last = piece[-1:]
                    yield piece
        except (OSError, TimeoutError) as error:
            self._failed("application", str(error) or "timeout")
        if last != b"\n":
            yield b"\n"

    def _failed(self, kind: str, reason: str) -> None:
        # Once is worth a word; each scrape interval again would bury the log.
        if kind not in self._counters.scrape_failures:
            self._warn(f"scraping the {kind}'s metrics failed: {reason} (counted, not repeated)")
        self._counters.count_scrape_failure(kind)


def _quote(text: str) -> str:
    """Percent-encode for a query; urllib.parse would stay in memory for this one use."""
    safe = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-~")
    return "".join(chr(c) if c in safe else f"%{c:02X}" for c in text.encode())
