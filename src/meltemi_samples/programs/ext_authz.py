"""An external authorizer: lets a request pass when its header ``x-ext-authz`` says ``allow``.

It speaks both protocols that a mesh can ask: HTTP (any path, port 8000) and Envoy's gRPC service
``envoy.service.auth.v3.Authorization`` (port 9000). A verdict carries headers that tell what happened:
``x-ext-authz-check-result`` (``allowed`` or ``denied``), ``x-ext-authz-check-received`` (what was asked), and
``x-ext-authz-additional-header-override`` (what the caller sent under that name is replaced).
Over gRPC it also decides about TCP connections, which have no headers: those of service account ``a`` pass.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from collections.abc import Mapping
from typing import Any

import grpc
from aiohttp import web
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2
from envoy.type.v3 import http_status_pb2
from google.rpc import code_pb2, status_pb2

from meltemi_samples.programs import serving

ASKED, RESULT = "x-ext-authz", "x-ext-authz-check-result"
RECEIVED, OVERRIDE = "x-ext-authz-check-received", "x-ext-authz-additional-header-override"
GOOD, TCP_ACCOUNT = "allow", "/sa/a"
CHECK = "/envoy.service.auth.v3.Authorization/Check"
REFUSED = f"denied by ext_authz for not found header `{ASKED}: {GOOD}` in the request"
RECEIVED_LENGTH_MAX = 2048

log = logging.getLogger("ext-authz")


def verdict(headers: Mapping[str, str], received: str) -> tuple[bool, dict[str, str]]:
    """Whether a request with these headers passes, and the headers that say so."""
    allowed = headers.get(ASKED) == GOOD
    override = headers.get(OVERRIDE, "")
    said = {
        RESULT: "allowed" if allowed else "denied",
        RECEIVED: received[:RECEIVED_LENGTH_MAX],
        OVERRIDE: f"{override}-from-ext-authz" if override else "grpc-or-http-additional-header",
    }
    return allowed, said


async def over_http(request: web.Request) -> web.Response:
    """Any request: 200 lets it pass, 403 refuses it."""
    allowed, said = verdict(request.headers, f"{request.method} {request.host}{request.path_qs}")
    log.info("http %s %s: %s", request.method, request.path, said[RESULT])
    return web.Response(
        status=200 if allowed else 403, headers=said, text="" if allowed else REFUSED
    )


def _options(headers: Mapping[str, str]) -> list[base_pb2.HeaderValueOption]:
    """Headers for Envoy to set, in the place of others of the same name."""
    replace = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    return [
        base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=value), append_action=replace
        )
        for name, value in headers.items()
    ]


async def over_grpc(question: Any, _context: Any) -> Any:
    """Envoy's ``CheckRequest``: about an HTTP request, or about a TCP connection."""
    attributes = question.attributes
    asked = attributes.request.http
    if not asked.method:
        allowed = attributes.source.principal.endswith(TCP_ACCOUNT)
        log.info("grpc tcp %s: %s", attributes.source.principal, allowed)
        code = code_pb2.OK if allowed else code_pb2.PERMISSION_DENIED
        return external_auth_pb2.CheckResponse(status=status_pb2.Status(code=code))
    allowed, said = verdict(asked.headers, f"{asked.method} {asked.host}{asked.path}")
    log.info("grpc %s %s: %s", asked.method, asked.path, said[RESULT])
    if allowed:
        passed = external_auth_pb2.OkHttpResponse(headers=_options(said))
        return external_auth_pb2.CheckResponse(
            status=status_pb2.Status(code=code_pb2.OK), ok_response=passed
        )
    refused = external_auth_pb2.DeniedHttpResponse(
        status=http_status_pb2.HttpStatus(code=http_status_pb2.Forbidden),
        headers=_options(said),
        body=REFUSED,
    )
    return external_auth_pb2.CheckResponse(
        status=status_pb2.Status(code=code_pb2.PERMISSION_DENIED), denied_response=refused
    )


def grpc_handlers() -> grpc.GenericRpcHandler:
    """What to add to a gRPC server."""
    service, method = CHECK.strip("/").split("/")
    handler = grpc.unary_unary_rpc_method_handler(
        over_grpc,
        request_deserializer=external_auth_pb2.CheckRequest.FromString,
        response_serializer=external_auth_pb2.CheckResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(service, {method: handler})


async def serve(http_port: int, grpc_port: int) -> None:
    """Answer on both ports until SIGTERM or SIGINT."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", over_http)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, None, http_port).start()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc_handlers(),))
    server.add_insecure_port(f"[::]:{grpc_port}")
    await server.start()
    log.info("HTTP on %d, gRPC on %d", http_port, grpc_port)
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    await over.wait()
    await asyncio.gather(server.stop(1.0), runner.cleanup())


def main() -> None:
    """Flags: the two ports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http", type=int, default=8000)
    parser.add_argument("--grpc", type=int, default=9000)
    flags = parser.parse_args()
    serving.start_logging()
    asyncio.run(serve(flags.http, flags.grpc))


if __name__ == "__main__":
    main()
