"""A load generator with fortio's commands, flags and report.

``fortio load [flags] URL``, ``fortio curl [flags] URL``, ``fortio server``. Flags of load: ``-c`` connections (4),
``-qps`` (8; 0: as many as go), ``-n`` calls, ``-t`` time (5s), ``-H``, ``-k``, ``-timeout`` (3s), ``-loglevel``,
``-quiet``, ``-payload``, ``-content-type``, ``-X``, ``-keepalive``, ``-allow-initial-errors``, ``-json`` (file or ``-``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from meltemi_samples.programs import serving
from meltemi_samples.programs.httpbin import choose_status, seconds

PORT = 8080
PERCENTILES = (50.0, 75.0, 90.0, 99.0, 99.9)
WARNING = ("warning", "error", "critical", "fatal")
_SINGLE_DASH = ("qps", "loglevel", "timeout", "payload", "content-type", "keepalive", "json", "http-port", "quiet",
                "allow-initial-errors", "http1.0", "stdclient", "uniform", "jitter", "labels", "nocatchup")  # fmt: skip


@dataclass
class Results:
    """What a run met."""

    codes: Counter[int] = field(default_factory=Counter)
    durations_s: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    sockets: int = 0
    elapsed_s: float = 0.0

    def percentile(self, share: float) -> float:
        """The time within which ``share`` percent of the calls ended."""
        ordered = sorted(self.durations_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]


class Load:
    """Connections that call one URL."""

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        self.results = Results()
        self.begun = 0
        self.started = time.monotonic()
        self.limit_s = (
            None if flags.n else (float("inf") if flags.t == "0" else long_seconds(flags.t))
        )

    def next_turn(self) -> float | None:
        """Seconds until the next call may start; None when there is none."""
        if self.flags.n and self.begun >= self.flags.n:
            return None
        due = self.begun / self.flags.qps if self.flags.qps > 0 else 0.0
        elapsed = time.monotonic() - self.started
        if self.limit_s is not None and max(due, elapsed) >= self.limit_s:
            return None
        self.begun += 1
        return max(0.0, due - elapsed)

    async def connection(self) -> None:
        """One connection: calls one after another."""

        async def opened(*_: Any) -> None:
            self.results.sockets += 1

        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(opened)
        connector = aiohttp.TCPConnector(
            limit=1, ssl=tls(self.flags.insecure), force_close=self.flags.keepalive == "false"
        )
        timeout = aiohttp.ClientTimeout(total=seconds(self.flags.timeout))
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, trace_configs=[trace]
        ) as session:
            while (pause := self.next_turn()) is not None:
                await asyncio.sleep(pause)
                await self.call(session)

    async def call(self, session: aiohttp.ClientSession) -> None:
        """One call; a code of -1 stands for no answer."""
        began = time.perf_counter()
        size = 0
        try:
            async with request(session, self.flags) as answer:
                size = len(await answer.read())
                code = answer.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            code = -1
            if self.flags.loglevel.lower() not in ("error", "critical", "fatal"):
                print(f"[W] {self.flags.url}: {error or type(error).__name__}", file=sys.stderr)
        self.results.durations_s.append(time.perf_counter() - began)
        self.results.sizes.append(size)
        self.results.codes[code] += 1

    async def run(self) -> Results:
        """All connections until the end."""
        self.started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self.flags.c):
                tasks.create_task(self.connection())
        self.results.elapsed_s = time.monotonic() - self.started
        return self.results


def long_seconds(text: str) -> float:
    """A duration of any length, as seconds() else takes them."""
    minutes, mark, rest = text.partition("m")
    if mark and not rest.startswith("s"):
        return float(minutes) * 60 + (long_seconds(rest) if rest else 0.0)
    return float(text.removesuffix("s")) if not text.endswith("ms") else seconds(text)


def tls(insecure: bool) -> ssl.SSLContext | bool:
    """Check certificates or not."""
    return not insecure


def request(session: aiohttp.ClientSession, flags: argparse.Namespace) -> Any:
    """The call that the flags describe."""
    headers = dict(line.split(":", 1) for line in flags.header)
    headers = {name.strip(): value.strip() for name, value in headers.items()}
    headers.setdefault("User-Agent", "fortio.org/fortio-1.69")
    if flags.content_type:
        headers["Content-Type"] = flags.content_type
    method = flags.method or ("POST" if flags.payload or flags.content_type else "GET")
    return session.request(
        method, flags.url, headers=headers, data=flags.payload or None, allow_redirects=False
    )


def report(flags: argparse.Namespace, results: Results) -> None:
    """fortio's text about a run."""
    count = len(results.durations_s)
    if not count:
        print("No calls were made")
        return
    total = sum(results.durations_s)
    mean = total / count
    deviation = (sum((d - mean) ** 2 for d in results.durations_s) / count) ** 0.5
    rate = count / results.elapsed_s if results.elapsed_s else 0.0
    print(f"Ended after {results.elapsed_s * 1000:.4g}ms : {count} calls. qps={rate:.5g}")
    print(
        f"Aggregated Function Time : count {count} avg {mean:.8g} +/- {deviation:.4g} "
        f"min {min(results.durations_s):.8g} max {max(results.durations_s):.8g} sum {total:.8g}"
    )
    for share in PERCENTILES:
        print(f"# target {share:g}% {results.percentile(share):.6g}")
    print(f"Sockets used: {results.sockets} (for perfect keepalive, would be {flags.c})")
    for code, times in sorted(results.codes.items()):
        print(f"Code {code:3d} : {times} ({100 * times / count:.1f} %)")
    print(
        f"Response Body/Total Sizes : count {count} avg {sum(results.sizes) / count:.6g} "
        f"min {min(results.sizes)} max {max(results.sizes)} sum {sum(results.sizes)}"
    )
    print(f"All done {count} calls (plus 0 warmup) {mean * 1000:.3f} ms avg, {rate:.1f} qps")


def as_json(flags: argparse.Namespace, results: Results) -> str:
    """fortio's JSON about a run, the fields that scripts read."""
    count = len(results.durations_s)
    return json.dumps(
        {
            "RunType": "HTTP",
            "URL": flags.url,
            "RequestedQPS": str(flags.qps or "max"),
            "ActualDuration": int(results.elapsed_s * 1e9),
            "ActualQPS": count / results.elapsed_s if results.elapsed_s else 0.0,
            "NumThreads": flags.c,
            "RetCodes": {str(code): times for code, times in sorted(results.codes.items())},
            "DurationHistogram": {
                "Count": count,
                "Min": min(results.durations_s, default=0.0),
                "Max": max(results.durations_s, default=0.0),
                "Sum": sum(results.durations_s),
                "Percentiles": [
                    {"Percentile": share, "Value": results.percentile(share)}
                    for share in PERCENTILES
                    if count
                ],
            },
            "SocketCount": results.sockets,
        },
        indent=2,
    )


def load(flags: argparse.Namespace) -> int:
    """``fortio load``. 1 when nothing was answered."""
    out = sys.stdout
    if flags.json == "-":
        sys.stdout = sys.stderr
    if not flags.quiet and flags.loglevel.lower() not in WARNING:
        what = f"for {flags.n} calls" if flags.n else f"for {flags.t}"
        print(f"Fortio running at {flags.qps:g} queries per second, {what}: {flags.url}")
        print(f"Starting with {flags.c} connection(s)")
    results = asyncio.run(Load(flags).run())
    report(flags, results)
    if flags.json == "-":
        print(as_json(flags, results), file=out)
    elif flags.json:
        Path(flags.json).write_text(as_json(flags, results) + "\n", encoding="utf-8")
    return 0 if set(results.codes) != {-1} else 1


async def fetch(flags: argparse.Namespace) -> int:
    """``fortio curl``: headers and body of one answer. 1 for an error."""
    connector = aiohttp.TCPConnector(ssl=tls(flags.insecure))
    timeout = aiohttp.ClientTimeout(total=seconds(flags.timeout))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            request(session, flags) as answer,
        ):
            print(f"HTTP/1.1 {answer.status} {answer.reason}")
            for name, value in answer.headers.items():
                print(f"{name}: {value}")
            print(f"\n{(await answer.read()).decode(errors='replace')}", end="")
            return 0 if answer.status < 400 else 1
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        print(f"Error for {flags.url}: {error or type(error).__name__}", file=sys.stderr)
        return 1


async def echo(request: web.Request) -> web.Response:
    """The body comes back; ``status``, ``delay`` and ``size`` of the query change the answer."""
    try:
        code = choose_status(request.query.get("status", "200"))
        await asyncio.sleep(seconds(request.query.get("delay", "0")))
        size = int(request.query.get("size", "-1"))
    except ValueError as error:
        return web.Response(status=400, text=f"{error}\n")
    body = b"x" * min(size, 1 << 20) if size >= 0 else await request.read()
    return web.Response(status=code, body=body)


async def debug(request: web.Request) -> web.Response:
    """``/debug``: what the request was."""
    lines = [f"{request.method} {request.raw_path} HTTP/1.1", "", "headers:", ""]
    lines += [f"{name}: {value}" for name, value in sorted(request.headers.items())]
    lines += ["", "body:", "", (await request.read()).decode(errors="replace")]
    return web.Response(text="\n".join(lines))


def parser() -> argparse.ArgumentParser:
    """fortio's command line."""
    found = argparse.ArgumentParser(prog="fortio", allow_abbrev=False)
    commands = found.add_subparsers(dest="command", required=True)
    for name in ("load", "curl"):
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("-c", type=int, default=4)
        command.add_argument("-n", type=int, default=0)
        command.add_argument("-t", default="5s")
        command.add_argument("-H", dest="header", action="append", default=[])
        command.add_argument("-k", dest="insecure", action="store_true")
        command.add_argument("-X", dest="method", default="")
        command.add_argument("-a", dest="save", action="store_true")
        command.add_argument("--qps", type=float, default=8.0)
        command.add_argument("--loglevel", default="info")
        command.add_argument("--timeout", default="3s")
        command.add_argument("--payload", default="")
        command.add_argument("--content-type", default="")
        command.add_argument("--keepalive", default="true")
        command.add_argument("--json", default="")
        for switch in (
            "quiet",
            "allow-initial-errors",
            "stdclient",
            "uniform",
            "jitter",
            "nocatchup",
        ):
            command.add_argument(f"--{switch}", action="store_true")
        command.add_argument("--labels", default="")
        command.add_argument("url")
    server = commands.add_parser("server", allow_abbrev=False)
    server.add_argument("--http-port", type=int, default=PORT)
    return found


def main(arguments: list[str]) -> int:
    """Run one command line; its exit code."""
    # Go's flags take one dash or two; argparse wants two for long ones.
    words = [
        f"-{word}"
        if word[:2] != "--" and word[1:].partition("=")[0] in _SINGLE_DASH and word[:1] == "-"
        else word
        for word in arguments
    ]
    flags = parser().parse_args(words)
    if flags.command == "load":
        return load(flags)
    if flags.command == "curl":
        return asyncio.run(fetch(flags))
    app = web.Application()
    app.add_routes([web.route("*", "/debug", debug), web.route("*", "/{any:.*}", echo)])
    serving.run(app, flags.http_port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
