"""Probes and hooks: is a container alive, ready, started?

In: a probe of the pod's spec, the pod's address, a way to execute in the container. Out: results in
order, by callback. Promises: probes start at the node's address like a kubelet's; each attempt ends
within its timeout; before its first success a readiness or startup probe is also tried between the
periods (quickly at first), and such extra failures do not count.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from localkube.kit import clock
from localkube.kit.reasons import reason

ProbeKind = Literal["startup", "readiness", "liveness"]
Execute = Callable[[Sequence[str], float], Awaitable[tuple[int, str]]]
"""(command, timeout in seconds) -> exit code and what it printed."""

_EAGER_FIRST_S: Final = 0.03
_EAGER_LONGEST_S: Final = 1.0
_HEAD_LIMIT: Final = 16 << 10
_OUTPUT_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one attempt; ``message`` says why it failed."""

    ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how to probe one container."""

    address: str
    ports: Mapping[str, int]
    execute: Execute

    def port(self, value: int | str) -> int:
        """Return the number of a port given by number or name."""
        if isinstance(value, int) or value.isdigit():
            return int(value)
        if value not in self.ports:
            raise ValueError(f"the container has no port named {value!r}")
        return self.ports[value]


def _insecure_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # as the kubelet: a probe does not judge certificates
    return context


async def attempt(target: Target, action: Mapping[str, Any], timeout_s: float) -> Outcome:
    """Try one probe (or hook) action once; never raises for what the container does."""
    try:
        async with asyncio.timeout(timeout_s):
            if action.get("httpGet"):
                return await _http_get(target, action["httpGet"])
            if action.get("tcpSocket"):
                return await _tcp(target, action["tcpSocket"])
            if action.get("grpc"):
                return await _grpc(target, action["grpc"], timeout_s)
            if action.get("exec"):
                command = action["exec"].get("command") or []
                code, output = await target.execute(command, timeout_s)
                return Outcome(code == 0, output[-_OUTPUT_LIMIT:].strip() or f"exit code {code}")
    except TimeoutError:
        return Outcome(False, f"{_aim(target, action)}timed out after {timeout_s:g}s")
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        return Outcome(False, f"{_aim(target, action)}{why}")
    return Outcome(False, "the probe has no action that is known")


def _aim(target: Target, action: Mapping[str, Any]) -> str:
    """Return what a probe that got no answer was after, for its message."""
    for kind in ("httpGet", "tcpSocket", "grpc"):
        if not (spec := action.get(kind)):
            continue
        try:
            where = f"{spec.get('host') or target.address}:{target.port(spec['port'])}"
        except ValueError:
            return ""  # the message names the port
        if kind != "httpGet":
            return f"dial tcp {where}: "
        path = (spec.get("path") or "/").removeprefix("/")
        return f'Get "{(spec.get("scheme") or "HTTP").lower()}://{where}/{path}": '
    return ""


async def _http_get(target: Target, action: Mapping[str, Any]) -> Outcome:
    host = action.get("host") or target.address
    port = target.port(action["port"])
    secure = (action.get("scheme") or "HTTP").upper() == "HTTPS"
    path = action.get("path") or "/"
    if not path.startswith("/"):
        path = f"/{path}"
    headers = {"host": f"{host}:{port}", "user-agent": "kube-probe/1.37", "accept": "*/*"}
    for header in action.get("httpHeaders") or []:
        headers[header["name"].lower()] = header.get("value") or ""
    lines = [f"GET {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    request = "\r\n".join([*lines, "connection: close", "", ""])
    reader, writer = await asyncio.open_connection(
        host, port, ssl=_insecure_context() if secure else None, limit=_HEAD_LIMIT
    )
    try:
        writer.write(request.encode("latin-1", "replace"))
        line = (await reader.readline()).decode("latin-1").strip()
    finally:
        writer.close()
    parts = line.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/") or not parts[1].isdigit():
        return Outcome(False, f"HTTP probe got no HTTP answer, but {line[:80]!r}")
    code = int(parts[1])
    return Outcome(200 <= code < 400, f"HTTP probe failed with statuscode: {code}")


async def _tcp(target: Target, action: Mapping[str, Any]) -> Outcome:
    host, port = action.get("host") or target.address, target.port(action["port"])
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
    return Outcome(True)


async def _grpc(target: Target, action: Mapping[str, Any], timeout_s: float) -> Outcome:
    import grpc.aio  # only here: most pods have no gRPC probe, and the import takes 70 ms

    service = (action.get("service") or "").encode()
    # HealthCheckRequest: field 1 is the service. HealthCheckResponse: field 1, 1 is SERVING.
    request = (b"\x0a" + bytes([len(service)]) + service) if service else b""
    address = f"{target.address}:{target.port(action['port'])}"
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            answer: bytes = await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return Outcome(False, f"gRPC health check: {error.code().name}: {error.details()}")
    return Outcome(answer == b"\x08\x01", "gRPC health check: the service is not SERVING")


async def watch_probe(
    kind: ProbeKind,
    probe: Mapping[str, Any],
    target: Target,
    report: Callable[[bool, str], None],
    observe: Callable[[str], None],
) -> None:
    """Probe until cancelled (a startup probe: until its first success).

    ``report(healthy, message)`` is called when a threshold is reached; ``observe(message)`` on each
    failure that counts.
    """
    period = float(probe.get("periodSeconds") or 10)
    timeout = float(probe.get("timeoutSeconds") or 1)
    needed = {
        True: int(probe.get("successThreshold") or 1),
        False: int(probe.get("failureThreshold") or 3),
    }
    eager = kind != "liveness"
    streak, last, pause = 0, None, _EAGER_FIRST_S
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    # Eager kinds: failures of the first period are the program's start, not news.
    tick = clock.monotonic() + (period if eager else 0.0)
    while True:
        outcome = await attempt(target, probe, timeout)
        now = clock.monotonic()
        due = now >= tick
        if due:
            tick = max(tick + period, now)
        if outcome.ok or due or not eager:
            streak = streak + 1 if outcome.ok == last else 1
            last = outcome.ok
            if not outcome.ok:
                observe(outcome.message)
            if streak >= needed[outcome.ok]:
                report(outcome.ok, outcome.message)
                if outcome.ok and kind == "startup":
                    return
        if outcome.ok:
            eager = False
        wait = max(0.0, tick - clock.monotonic())
        if eager:
            wait, pause = min(wait, pause), min(pause * 2, _EAGER_LONGEST_S)
        await asyncio.sleep(wait)
