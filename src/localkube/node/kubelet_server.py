"""The node's HTTPS API: what the API server asks a kubelet for.

In: requests that carry the API server's client certificate. Out: logs, exec, attach, port-forward,
and a little about pods and resources. Promises: nobody without a certificate of the cluster's CA
that names the API server's kubelet client (or an administrator) gets anything but /healthz.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web

from localkube.kit import clock
from localkube.node.containers import ContainerRunner
from localkube.node.logs import LogFile, LogOptions
from localkube.node.nodeagent import NodeAgent
from localkube.node.podworker import PodWorker
from localkube.node.stats import render_resource_metrics, summarize
from localkube.node.streaming import portforward
from localkube.node.streaming.channels import (
    Channels,
    SpdyChannels,
    WebSocketChannels,
    choose_protocol,
    is_spdy,
)
from localkube.node.streaming.sessions import run_attach, run_exec
from localkube.node.streaming.spdy import SpdyError

_CLIENTS: Final = frozenset({"kube-apiserver-kubelet-client", "kubernetes-admin"})
_TRUE: Final = frozenset({"1", "true", "True"})


@dataclass(frozen=True, slots=True)
class ServingTls:
    """Certificate, key and client CA of the node's API."""

    certificate: Path
    key: Path
    client_ca: Path

    def context(self) -> ssl.SSLContext:
        """Return the TLS settings: a client certificate is required."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        context.load_verify_locations(self.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class KubeletServer:
    """See the module's docstring."""

    def __init__(self, agent: NodeAgent, tls: ServingTls) -> None:
        self._agent = agent
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._log = structlog.get_logger("localkube.node.api")

    async def start(self, where: tuple[str, int] | socket.socket) -> None:
        """Listen on an address, or on a socket that listens already. Raises OSError."""
        app = web.Application(middlewares=[_authorize])
        app.router.add_get("/healthz", _healthz)
        app.router.add_get("/pods", self._pods)
        app.router.add_get("/stats/summary", self._summary)
        app.router.add_get("/metrics/resource", self._metrics)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        for verb in ("exec", "attach"):
            path = f"/{verb}/{{namespace}}/{{pod}}/{{container}}"
            app.router.add_route("*", path, getattr(self, f"_{verb}"))
        app.router.add_route("*", "/portForward/{namespace}/{pod}", self._port_forward)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        tls = self._tls.context()
        site: web.BaseSite
        if isinstance(where, tuple):
            site = web.TCPSite(self._runner, *where, ssl_context=tls)
        else:
            site = web.SockSite(self._runner, where, ssl_context=tls)
        await site.start()

    async def stop(self) -> None:
        """Stop listening and end all sessions."""
        if self._runner is not None:
            await self._runner.cleanup()

    # -- finding -----------------------------------------------------------------------------

    def _worker(self, request: web.Request) -> PodWorker:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        worker = self._agent.find(namespace, name)
        if worker is None:
            raise web.HTTPNotFound(text=f'pod "{namespace}/{name}" is not on this node')
        return worker

    def _container(self, request: web.Request) -> ContainerRunner:
        worker = self._worker(request)
        name = request.match_info["container"]
        runner = worker.runners.get(name)
        if runner is None:
            state = worker.waiting_reason(name)
            if state is None:
                raise web.HTTPNotFound(text=f'container "{name}" is not in pod "{worker.name}"')
            raise web.HTTPBadRequest(
                text=f'container "{name}" in pod "{worker.name}" is waiting to start: {state}'
            )
        return runner

    # -- plain requests ----------------------------------------------------------------------

    async def _pods(self, _request: web.Request) -> web.Response:
        items = [w.pod for w in self._agent.workers.values()]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "items": items})

    async def _summary(self, _request: web.Request) -> web.Response:
        return web.json_response(summarize(self._agent.settings.name, self._agent.workers))

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=render_resource_metrics(self._agent.workers))

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        log = self._log_of(request, query.get("previous") in _TRUE)
        try:
            options = _log_options(query)
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        try:
            async for chunk in log.read(options):
                await response.write(chunk)
        except ConnectionError:
            return response  # the reader left
        await response.write_eof()
        return response

    def _log_of(self, request: web.Request, previous: bool) -> LogFile:
        name, pod = request.match_info["container"], request.match_info["pod"]
        worker = self._worker(request)
        if name not in worker.runners and (old := worker.old_log(name)) is not None:
            return old
        runner = self._container(request)
        log = runner.previous_log if previous else runner.log
        if log is None:
            if previous:
                text = f'previous terminated container "{name}" in pod "{pod}" not found'
            else:
                why = worker.waiting_reason(name) or "ContainerCreating"
                text = f'container "{name}" in pod "{pod}" is waiting to start: {why}'
            raise web.HTTPBadRequest(text=text)
        return log

    # -- sessions ----------------------------------------------------------------------------

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        runner = self._container(request)
        query = request.query
        command = query.getall("command", [])
        if not command:
            raise web.HTTPBadRequest(text="you must specify at least 1 command for the container")
        stdin, tty = _wants(query, "stdin", "input"), _wants(query, "tty")
        channels = await self._channels(request, tty)
        await run_exec(channels, runner, command, stdin, tty)
        return _ended(request)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        runner = self._container(request)
        tty = bool(runner.container.get("tty"))
        channels = await self._channels(request, tty and _wants(request.query, "tty"))
        await run_attach(channels, runner)
        return _ended(request)

    async def _channels(self, request: web.Request, tty: bool) -> Channels:
        query = request.query
        expected = {"error"}
        for names in (("stdin", "input"), ("stdout", "output")):
            if _wants(query, *names):
                expected.add(names[0])
        if _wants(query, "stderr", "error") and not tty:
            expected.add("stderr")
        if tty:
            expected.add("resize")
        if not is_spdy(request):
            return await WebSocketChannels.accept(request, expected)
        try:
            return await SpdyChannels.accept(request, expected)
        except (SpdyError, TimeoutError) as error:
            raise web.HTTPBadRequest(text=str(error)) from None

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        worker = self._worker(request)
        if not worker.address:
            raise web.HTTPBadRequest(text=f'pod "{worker.name}" is not running')
        if is_spdy(request):
            await portforward.serve_spdy(request, worker.connect)
            return _ended(request)
        header = "Sec-WebSocket-Protocol"
        if choose_protocol(request, (portforward.TUNNEL_PROTOCOL,), header):
            return await portforward.serve_tunnel(request, worker.connect)
        try:
            values = request.query.getall("ports", request.query.getall("port", []))
            ports = [int(p) for value in values for p in value.split(",")]
        except ValueError:
            raise web.HTTPBadRequest(text="ports must be numbers") from None
        return await portforward.serve_websocket(request, worker.connect, ports)


@web.middleware
async def _authorize(request: web.Request, handler: Any) -> web.StreamResponse:
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    names = {
        value
        for part in (certificate or {}).get("subject", ())
        for key, value in part
        if key == "commonName"
    }
    if request.path != "/healthz" and not names & _CLIENTS:
        raise web.HTTPForbidden(text="only the API server may call the node agent")
    response: web.StreamResponse = await handler(request)
    return response


async def _healthz(_request: web.Request) -> web.Response:
    return web.Response(text="ok")


def _ended(request: web.Request) -> web.StreamResponse:
    """Close the connection of a session that was upgraded; return the response it began with."""
    if request.transport is not None:
        request.transport.close()
    response: web.StreamResponse = request["upgraded"]
    return response


def _wants(query: Any, *names: str) -> bool:
    return any(query.get(name) in _TRUE for name in names)


def _log_options(query: Any) -> LogOptions:
    def number(name: str) -> int | None:
        text = query.get(name)
        if not text:
            return None
        if not text.isdigit():
            raise ValueError(f"{name} must be a non-negative number, not {text!r}")
        return int(text)

    since = None
    seconds = number("sinceSeconds")
    if seconds is not None:
        since = clock.now() - timedelta(seconds=seconds)
    elif query.get("sinceTime"):
        since = clock.parse_time(query["sinceTime"])
    return LogOptions(
        follow=_wants(query, "follow"),
        tail_lines=number("tailLines"),
        timestamps=_wants(query, "timestamps"),
        since=since,
        limit_bytes=number("limitBytes"),
    )
