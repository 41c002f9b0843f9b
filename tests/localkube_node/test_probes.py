"""Probe attempts against real servers, and the order of their reports."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from localkube.node.probes import Target, attempt, watch_probe


async def no_command(_command: Sequence[str], _limit: float) -> tuple[int, str]:
    return 1, "nothing runs here"


def target(port: int) -> Target:
    return Target("127.0.0.1", {"http": port}, no_command)


async def serve(answers: list[bytes]) -> tuple[asyncio.Server, int, list[bytes]]:
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answers.pop(0) if len(answers) > 1 else answers[0])
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1], requests


def answer(code: int) -> bytes:
    return f"HTTP/1.1 {code} X\r\ncontent-length: 0\r\n\r\n".encode()


@pytest.mark.parametrize(("code", "ok"), [(200, True), (302, True), (404, False), (503, False)])
async def test_http_status_decides(code: int, ok: bool) -> None:
    server, port, requests = await serve([answer(code)])
    headers = [{"name": "X-A", "value": "b"}]
    action = {"httpGet": {"port": "http", "path": "health", "httpHeaders": headers}}
    outcome = await attempt(target(port), action, 2)
    assert outcome.ok is ok
    assert requests[0].startswith(b"GET /health HTTP/1.1\r\n")
    assert b"\r\nx-a: b\r\n" in requests[0]
    assert b"kube-probe/" in requests[0]
    server.close()


async def test_refusals_timeouts_and_nonsense_are_outcomes() -> None:
    server, port, _ = await serve([b"SSH-2.0\r\n"])
    nonsense = await attempt(target(port), {"httpGet": {"port": port}}, 2)
    assert "no HTTP answer" in nonsense.message
    assert (await attempt(target(port), {"tcpSocket": {"port": port}}, 2)).ok
    server.close()
    await server.wait_closed()
    refused = await attempt(target(port), {"tcpSocket": {"port": port}}, 2)
    assert refused.message == f"dial tcp 127.0.0.1:{port}: connection refused"
    refused = await attempt(target(port), {"httpGet": {"port": port, "path": "/x"}}, 2)
    assert refused.message == f'Get "http://127.0.0.1:{port}/x": connection refused'
    unknown = await attempt(target(port), {"tcpSocket": {"port": "web"}}, 2)
    assert "no port named 'web'" in unknown.message
    silent = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    number = silent.sockets[0].getsockname()[1]
    late = await attempt(target(number), {"httpGet": {"port": number}}, 0.05)
    assert "timed out" in late.message
    silent.close()
    command = await attempt(target(port), {"exec": {"command": ["x"]}}, 1)
    assert command.message == "nothing runs here"


async def test_a_slow_starter_is_ready_long_before_its_period_ends() -> None:
    server, port, requests = await serve([answer(503), answer(503), answer(200)])
    reports: list[bool] = []
    seen: list[str] = []
    ready = asyncio.Event()

    def report(healthy: bool, _message: str) -> None:
        reports.append(healthy)
        ready.set()

    probe: dict[str, Any] = {"httpGet": {"port": port}, "periodSeconds": 3600}
    work = asyncio.ensure_future(watch_probe("readiness", probe, target(port), report, seen.append))
    async with asyncio.timeout(10):
        await ready.wait()
    work.cancel()
    assert reports == [True]
    assert len(requests) == 3
    assert seen == [], "failures of the first period are the program's start"
    server.close()


async def test_a_startup_probe_ends_with_its_first_success() -> None:
    server, port, _ = await serve([answer(200)])
    reports: list[bool] = []
    probe = {"httpGet": {"port": port}}
    async with asyncio.timeout(10):
        await watch_probe("startup", probe, target(port), lambda ok, _: reports.append(ok), print)
    assert reports == [True]
    server.close()
