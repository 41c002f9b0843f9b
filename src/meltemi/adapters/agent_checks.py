"""Check once whether a workload is healthy.

In: a check, and the machine's own address. Out: None when it is, else what is wrong, for people. Every check ends within its
timeout and leaves nothing behind. Calls to the machine's own address come from 127.0.0.6, as Envoy's do, which capture leaves alone.
"""

from __future__ import annotations

import asyncio
import ssl

import h11

from meltemi.adapters.agent_h2 import GrpcCall, StreamEndedError
from meltemi.adapters.agent_http import open_request
from meltemi.agent.health import Check, Exec, Grpc, HttpGet, TcpSocket

_OWN_SOURCE = {4: "127.0.0.6", 6: "::6"}
_GRPC_METHOD = "/grpc.health.v1.Health/Check"
_OUTPUT_MAX = 1024


async def check_health(check: Check, address: str, timeout_s: float) -> str | None:
    """None, or the problem."""
    try:
        async with asyncio.timeout(timeout_s):
            if isinstance(check, Exec):
                return await _run(check)
            host = check.host if isinstance(check, (HttpGet, TcpSocket)) else ""
            source = "" if host and host != address else _source(address)
            if isinstance(check, HttpGet):
                return await _http(check, host or address, source, timeout_s)
            if isinstance(check, TcpSocket):
                await _connect(host or address, check.port, source)
                return None
            return await _grpc(check, address, source)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except (OSError, StreamEndedError, h11.ProtocolError) as error:
        return str(error) or type(error).__name__


def _source(address: str) -> str:
    if address.startswith("127.") or address == "::1":
        return ""
    return _OWN_SOURCE[6 if ":" in address else 4]


async def _http(check: HttpGet, host: str, source: str, timeout_s: float) -> str | None:
    tls = None
    if check.https:
        # As a kubelet does: the certificate is the application's own affair.
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    headers = check.headers
    if not any(name.lower() == "user-agent" for name, _ in headers):
        headers = (("User-Agent", "istio-probe/1.0"), *headers)
    async with open_request(
        check.port,
        "GET",
        check.path,
        host=host,
        timeout_s=timeout_s,
        more=headers,
        tls=tls,
        source=source,
    ) as (status, _):
        return None if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"


async def _connect(host: str, port: int, source: str) -> None:
    local = (source, 0) if source else None
    _, writer = await asyncio.open_connection(host, port, local_addr=local)
    writer.close()


async def _run(check: Exec) -> str | None:
    process = await asyncio.create_subprocess_exec(
        *check.command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return None
    text = output[:_OUTPUT_MAX].decode(errors="replace").strip()
    return f"exit code {process.returncode}" + (f": {text}" if text else "")


async def _grpc(check: Grpc, host: str, source: str) -> str | None:
    # The messages of grpc.health.v1 have the wire form of these: one string, one number.
    from google.protobuf import wrappers_pb2

    local = (source, 0) if source else None
    reader, writer = await asyncio.open_connection(host, check.port, local_addr=local)
    try:
        call = GrpcCall(reader, writer, _GRPC_METHOD, f"{host}:{check.port}")
        call.send(wrappers_pb2.StringValue(value=check.service).SerializeToString(), last=True)
        async for answer in call.messages():
            serving = wrappers_pb2.Int32Value.FromString(answer).value == 1
            return None if serving else "the gRPC health service does not say SERVING"
    finally:
        writer.close()
    return "no answer"
