"""Probes of a machine's workload: each kind against a real server, and what istiod is told."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf import wrappers_pb2
from grpc import aio

from agent.control_plane import Authority, ControlPlane
from agent.world import Container, eventually, free_port
from meltemi.adapters.agent_checks import check_health
from meltemi.agent.health import Health, HttpGet, Probe, parse_probe
from meltemi.agent.settings import parse_settings

HERE = "127.0.0.1"


def probe(**fields: Any) -> Probe:
    """The probe of a WorkloadGroup as the agent reads it."""
    found, wrong = parse_probe(fields)
    assert found is not None, wrong
    return found


async def ask(**fields: Any) -> str | None:
    """What one check says."""
    made = probe(**fields)
    return await check_health(made.check, HERE, made.timeout_s)


@asynccontextmanager
async def application(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[Any]]]:
    """A server whose ``/ok`` is well, ``/moved`` elsewhere, ``/slow`` endless; all else is not there. Its port and requests."""
    seen: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.path_qs, request.headers.copy(), time.monotonic()))
        if request.path == "/slow":
            await asyncio.Event().wait()
        return web.Response(status={"/ok": 200, "/": 204, "/moved": 302}.get(request.path, 404))

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, HERE, 0, ssl_context=tls)
    await site.start()
    try:
        yield runner.addresses[0][1], seen
    finally:
        await runner.cleanup()


@pytest.mark.covers("WorkloadGroup.probe.httpGet.path", "WorkloadGroup.probe.httpGet.port")
@pytest.mark.parametrize(
    ("path", "problem"),
    [("/ok", None), ("ok", None), ("", None), ("/moved", None), ("/no", "statuscode: 404")],
)
async def test_http(path: str, problem: str | None) -> None:
    async with application() as (port, seen):
        said = await ask(httpGet={"port": port, "path": path})
        assert said is None if problem is None else problem in str(said)
        assert seen[0][0] == "/" + path.lstrip("/")


@pytest.mark.covers(
    "WorkloadGroup.probe.httpGet.host",
    "WorkloadGroup.probe.httpGet.httpHeaders.name",
    "WorkloadGroup.probe.httpGet.httpHeaders.value",
)
async def test_http_headers_and_host() -> None:
    """The host is where to call, the header Host what to call it; without one, the machine's own address."""
    headers = [{"name": "X-Probe", "value": "yes"}, {"name": "Host", "value": "shop.example"}]
    async with application() as (port, seen):
        get = {"port": port, "path": "/ok"}
        assert await ask(httpGet={**get, "host": "localhost", "httpHeaders": headers}) is None
        assert (seen[0][1]["X-Probe"], seen[0][1]["Host"]) == ("yes", "shop.example")
        assert await ask(httpGet=get) is None
        assert seen[1][1]["Host"] == f"{HERE}:{port}"
        assert "127.0.0.2" in str(await ask(httpGet={**get, "host": "127.0.0.2"}))


@pytest.mark.covers("WorkloadGroup.probe.httpGet.scheme")
async def test_https_with_whatever_certificate(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pem = tmp_path / "pair.pem"
    pem.write_bytes(own_certificate())
    context.load_cert_chain(pem)
    async with application(context) as (port, _):
        assert await ask(httpGet={"port": port, "path": "/ok", "scheme": "HTTPS"}) is None
        assert await ask(httpGet={"port": port, "path": "/ok", "scheme": "HTTP"}) is not None


def own_certificate() -> bytes:
    """A key and a certificate for another name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("other.example")])
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + Authority().sign(key.public_key(), names, 3600).encode()


@pytest.mark.covers("WorkloadGroup.probe.tcpSocket.port", "WorkloadGroup.probe.tcpSocket.host")
async def test_tcp() -> None:
    async with application() as (port, _):
        assert await ask(tcpSocket={"port": port}) is None
        assert await ask(tcpSocket={"port": port, "host": "localhost"}) is None
        assert await ask(tcpSocket={"port": port, "host": "127.0.0.2"}) is not None
    assert await ask(tcpSocket={"port": port}) is not None


@pytest.mark.covers("WorkloadGroup.probe.exec.command")
async def test_exec() -> None:
    assert await ask(exec={"command": [sys.executable, "-c", ""]}) is None
    said = await ask(exec={"command": ["sh", "-c", "echo no space; exit 3"]}, timeoutSeconds=20)
    assert said == "exit code 3: no space"
    assert "no-such-command" in str(await ask(exec={"command": ["no-such-command"]}))


@pytest.mark.covers("WorkloadGroup.probe.grpc.port", "WorkloadGroup.probe.grpc.service")
async def test_grpc() -> None:
    """SERVING is 1, NOT_SERVING 2; a service that the server does not know is an error of the call."""
    states = {"": 1, "shop": 1, "cart": 2}

    async def check(request: Any, context: Any) -> Any:
        if request.value not in states:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return wrappers_pb2.Int32Value(value=states[request.value])

    handler = grpc.unary_unary_rpc_method_handler(
        check, wrappers_pb2.StringValue.FromString, wrappers_pb2.Int32Value.SerializeToString
    )
    server = aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
    )
    port = server.add_insecure_port(f"{HERE}:0")
    await server.start()
    try:
        assert await ask(grpc={"port": port}) is None
        assert await ask(grpc={"port": port, "service": "shop"}) is None
        assert "SERVING" in str(await ask(grpc={"port": port, "service": "cart"}))
        assert await ask(grpc={"port": port, "service": "else"}) == "unknown service"
    finally:
        await server.stop(0)
    assert await ask(grpc={"port": port}) is not None


@pytest.mark.covers("WorkloadGroup.probe.timeoutSeconds")
async def test_a_check_takes_no_longer_than_its_timeout() -> None:
    async with application() as (port, _):
        get = {"port": port, "path": "/slow"}
        assert await ask(httpGet=get, timeoutSeconds=0.1) == "no answer within 0.1 s"
    command = {"command": ["sleep", "60"]}
    assert await ask(exec=command, timeoutSeconds=0.1) == "no answer within 0.1 s"


@pytest.mark.covers("WorkloadGroup.probe.successThreshold", "WorkloadGroup.probe.failureThreshold")
def test_thresholds_count_results_in_a_row() -> None:
    made = probe(tcpSocket={"port": 1}, successThreshold=2, failureThreshold=3)
    health, verdicts = Health(), []
    for result in (None, "x", None, None, "x", "x", None, "x", "x", "y", None, None):
        health = health.step(made, result)
        verdicts.append(health.healthy)
    assert verdicts == [None] * 3 + [True] * 6 + [False] * 2 + [True]


def test_defaults_are_istios() -> None:
    assert probe(httpGet={"port": 80}) == Probe(HttpGet(80, "/"), 0, 1, 10, 1, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        {"periodSeconds": 1},
        {"httpGet": {"port": 80}, "exec": {"command": ["x"]}},
        {"httpGet": {"port": 0}},
        {"httpGet": {"port": 80, "scheme": "FTP"}},
        {"httpGet": {"port": 80, "httpHeaders": ["x"]}},
        {"tcpSocket": {"port": "many"}},
        {"exec": {}},
        {"tcpSocket": {"port": 80}, "periodSeconds": -1},
        {"tcpSocket": []},
    ],
)
def test_a_wrong_probe_is_told_and_left_out(wrong: Any) -> None:
    found, problems = parse_probe(wrong)
    assert found is None
    assert "readinessProbe" in problems[0]


def test_without_a_probe_there_is_nothing_to_do() -> None:
    settings, problems = parse_settings({"PROXY_CONFIG": "{}"})
    assert settings.probe is None
    assert not settings.calls_istiod
    assert problems == []


# --- with a real Envoy ------------------------------------------------------------------------------------


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    plane.start()
    yield plane
    plane.stop()


@pytest.fixture
def container(tmp_path: Path, control_plane: ControlPlane) -> Iterator[Container]:
    box = Container(tmp_path, control_plane)
    yield box
    box.close()


@pytest.mark.envoy
@pytest.mark.covers(
    "WorkloadGroup.probe.initialDelaySeconds",
    "WorkloadGroup.probe.periodSeconds",
)
async def test_istiod_is_told_of_changes_and_again_after_it_was_away(
    container: Container, control_plane: ControlPlane
) -> None:
    """Through Envoy, which proves who it is; not before the first verdict, and only when it changes."""
    port = free_port()
    container.config["readinessProbe"] = {
        "httpGet": {"port": port, "path": "/ok"},
        "initialDelaySeconds": 0.5,
        "periodSeconds": 0.05,
        "failureThreshold": 2,
    }

    def told(*reports: str) -> Any:
        return eventually(
            lambda: [bool(r) for r in control_plane.reports] == [bool(r) for r in reports],
            f"reports {reports}\n{container.text()}",
        )

    runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
    checks: list[float] = []

    async def answer(_: web.Request) -> web.Response:
        checks.append(time.monotonic())
        return web.Response()

    runner.app.router.add_get("/ok", answer)
    await runner.setup()
    await web.TCPSite(runner, HERE, port).start()
    began = time.monotonic()
    container.start()
    await asyncio.to_thread(container.await_ready)
    await asyncio.to_thread(told, "")
    assert checks[0] - began >= 0.5
    await asyncio.to_thread(eventually, lambda: len(checks) > 20, "more checks")
    # Half of what it is: the moments are taken here, and this machine may be busy.
    assert checks[20] - checks[0] >= 20 * 0.05 / 2
    assert len(control_plane.reports) == 1, "nothing new, nothing said"
    await runner.cleanup()
    await asyncio.to_thread(told, "", "refused")
    assert container.debug()["health"]["healthy"] is False
    control_plane.reports.clear()
    control_plane.stop()
    control_plane.start()
    await asyncio.to_thread(told, "refused")
    assert control_plane.stream_tokens[-1] == "Bearer token-1"
    container.signal()
    assert await asyncio.to_thread(container.wait) == 0
