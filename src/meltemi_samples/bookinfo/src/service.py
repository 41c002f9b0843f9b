"""What the four Bookinfo services share: the server loop, header propagation, and calls to neighbours.

A service listens on the port of its first argument (9080 by default) on all addresses, answers ``/health``,
logs a line a request, and stops at SIGTERM after the requests in flight have ended.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from meltemi_samples.programs import serving

# Headers that a service copies from the request it got to the requests it makes: trace context of the
# common tracers, the request id, the caller's login, and what authentication needs downstream.
PROPAGATED = (
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "traceparent",
    "tracestate",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "sw8",
    "end-user",
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
)
PORT = 9080

session_key = web.AppKey("session", aiohttp.ClientSession)
log = logging.getLogger("bookinfo")


def forwarded_headers(request: web.Request) -> dict[str, str]:
    """The headers of ``request`` that go along to the next service."""
    return {name: request.headers[name] for name in PROPAGATED if name in request.headers}


def neighbour_url(prefix: str, path: str, environ: Mapping[str, str] = os.environ) -> str:
    """URL of a neighbour from ``<PREFIX>_HOSTNAME``, ``<PREFIX>_SERVICE_PORT`` and ``SERVICES_DOMAIN``.

    The host name defaults to the prefix in lower case and the port to 9080.
    """
    host = environ.get(f"{prefix}_HOSTNAME", prefix.lower())
    domain = environ.get("SERVICES_DOMAIN", "")
    port = environ.get(f"{prefix}_SERVICE_PORT", str(PORT))
    return f"http://{host}{'.' + domain if domain else ''}:{port}{path}"


def json_response(body: Any, status: int = 200) -> web.Response:
    """A JSON answer without needless spaces."""
    return web.json_response(
        body, status=status, dumps=lambda value: json.dumps(value, separators=(",", ":"))
    )


async def _health(_request: web.Request) -> web.Response:
    return json_response({"status": "healthy"})


async def _session(app: web.Application) -> Any:
    async with aiohttp.ClientSession() as session:
        app[session_key] = session
        yield


def serve(routes: Iterable[web.RouteDef | web.StaticDef], health: Any = _health) -> None:
    """Run one service until SIGTERM or SIGINT. Does not return before requests in flight are done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", nargs="?", type=int, default=PORT)
    port = parser.parse_args().port
    app = web.Application()
    app.router.add_get("/health", health)
    app.add_routes(routes)
    app.cleanup_ctx.append(_session)
    serving.run(app, port)
