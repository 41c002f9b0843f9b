"""The API server as an aiohttp application, and how it is served over TLS.

In: a `Store`, a `ServerConfig`, and the policy. Out: `create_app`, whose application answers the
Kubernetes API, and `serve`, which runs it on sockets until cancelled. The order of a request is:
who asks, for what, may they, then the handler. Every failure leaves as a Status.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from localkube.apiserver import errors
from localkube.apiserver.admission_wiring import ClusterPolicy, build_policy
from localkube.apiserver.authz import Attributes, Decision, denial_message
from localkube.apiserver.bootstrap import ApiAddress, bootstrap
from localkube.apiserver.builtin_resources import builtin_table
from localkube.apiserver.context import Call, Server
from localkube.apiserver.discovery import Discovery
from localkube.apiserver.errors import ApiError
from localkube.apiserver.handlers import Handlers
from localkube.apiserver.ipalloc import ServiceAllocator
from localkube.apiserver.metrics import RequestMetrics
from localkube.apiserver.node_proxy import NodeProxy
from localkube.apiserver.pki import Pki, ensure_pki, kubelet_client_context, server_ssl_context
from localkube.apiserver.plain_paths import PlainPaths
from localkube.apiserver.policy import Policy
from localkube.apiserver.request_info import RequestInfo, parse_request
from localkube.apiserver.responses import respond_error
from localkube.apiserver.store import StorageFullError, Store
from localkube.apiserver.upkeep import run_crd_cleanup, run_event_expiry
from localkube.apiserver.writing import ObjectWriter
from localkube.kit.tasks import Tasks

_log = structlog.get_logger("localkube.apiserver")

# How long open requests may take to end when the server stops.
_SHUTDOWN_S = 3.0
_KEEPALIVE_S = 120.0
# Request heads above this are refused; tokens and long selectors stay far below.
_MAX_HEAD = 65536


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server finds its keys, and its numbers.

    `pki_dir` holds the files that `pki.ensure_pki` makes for `node_name`. `advertise_*` is where pods reach the API
    server. Times are in seconds.
    """

    pki_dir: Path
    node_name: str = "node0"
    advertise_address: str = "172.30.0.1"
    advertise_port: int = 6443
    service_cidr: str = "10.96.0.0/16"
    node_port_range: tuple[int, int] = (30000, 32767)
    # Kubernetes' own default for --event-ttl.
    event_ttl_s: float = 3600.0


class ApiServer:
    """One API server over one store; `handle` answers any request."""

    def __init__(self, store: Store, config: ServerConfig, policy: Policy | None = None) -> None:
        table = builtin_table()
        real = build_policy(store, table, config.pki_dir) if policy is None else None
        self._real_policy = real
        chosen = policy or real
        assert chosen is not None
        self.server = Server(store, table, chosen)
        self._config = config
        allocator = ServiceAllocator(config.service_cidr, config.node_port_range)
        self.writer = ObjectWriter(self.server, allocator)
        self._proxy = NodeProxy(self._node_context)
        self._handlers = Handlers(self.server, self.writer, self._proxy)
        self._metrics = RequestMetrics(self.server)
        self._plain = PlainPaths(self.server, Discovery(table), self._metrics)
        first = str(ipaddress.ip_network(config.service_cidr)[1])
        where = ApiAddress(first, config.advertise_address, config.advertise_port)
        bootstrap(self.server, allocator, where, _rbac_objects(real))
        table.on_change(self._wake_watches)

    def _node_context(self) -> ssl.SSLContext:
        return kubelet_client_context(_keys(self._config))

    def _wake_watches(self) -> None:
        for wake in tuple(self.server.wake_on_close):
            wake()

    async def run_background(self, _app: web.Application) -> AsyncIterator[None]:
        """Background work as an aiohttp cleanup context."""
        async with Tasks("apiserver") as tasks:
            ttl_s = self._config.event_ttl_s
            tasks.spawn("event expiry", lambda: run_event_expiry(self.server, ttl_s), restart=True)
            tasks.spawn("crd cleanup", lambda: run_crd_cleanup(self.server), restart=True)
            yield
        await self._proxy.close()
        if self._real_policy is not None:
            await self._real_policy.close()

    async def close_streams(self, _app: web.Application) -> None:
        """End watches, so that shutting down does not wait for them."""
        self.server.close()
        await self._proxy.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        info = parse_request(request.method, request.rel_url.raw_path, request.query)
        warnings: list[str] = []
        with self._metrics.track(info) as outcome:
            try:
                response = await self._answer(request, info, warnings)
            except ApiError as error:
                response = respond_error(error, warnings)
            except StorageFullError as error:
                _log.error("write refused by the disk", reason=str(error))
                response = respond_error(errors.insufficient_storage(str(error)))
            except (asyncio.CancelledError, ConnectionError):
                raise
            except Exception as error:  # noqa: BLE001 - a defect must not end the connection mute
                _log.exception("request failed", method=request.method, path=info.path)
                response = respond_error(errors.internal(type(error).__name__))
            outcome.code = response.status
        return response

    async def _answer(
        self, request: web.Request, info: RequestInfo, warnings: list[str]
    ) -> web.StreamResponse:
        user = await self.server.policy.authenticate(request)
        attributes = _attributes(info)
        decision: Decision = self.server.policy.authorize(user, attributes)
        if not decision.allowed:
            raise _denied(denial_message(user, attributes, decision.reason), info)
        if not info.is_resource:
            return self._plain.answer(request, info.path)
        resource = self.server.table.lookup(info.group, info.version, info.plural)
        if resource is None:
            raise errors.no_such_path()
        call = Call(self.server, request, info, user, resource, warnings)
        return await self._handlers.answer(call)


def _keys(config: ServerConfig) -> Pki:
    return ensure_pki(config.pki_dir, node_name=config.node_name)


def _rbac_objects(policy: ClusterPolicy | None) -> list[tuple[str, dict[str, object]]]:
    if policy is None:
        return []
    return [
        (f"{plural}.rbac.authorization.k8s.io", obj) for plural, obj in policy.bootstrap_objects()
    ]


def _attributes(info: RequestInfo) -> Attributes:
    if not info.is_resource:
        return Attributes(verb=info.verb, path=info.path)
    return Attributes(
        verb=info.verb,
        group=info.group,
        version=info.version,
        resource=info.plural,
        subresource=info.subresource,
        namespace=info.namespace,
        name=info.name,
    )


def _denied(message: str, info: RequestInfo) -> ApiError:
    found = {"name": info.name, "group": info.group, "kind": info.plural}
    details = {key: value for key, value in found.items() if value}
    return ApiError(403, "Forbidden", message, details=details)


def create_app(store: Store, config: ServerConfig, policy: Policy | None = None) -> web.Application:
    """Return the application; without `policy` the real one is built over the keys in `pki_dir`.

    Creates what every cluster has (see `bootstrap`). Raises StorageFullError, PkiError.
    """
    api = ApiServer(store, config, policy)
    # Sizes are limited where bodies are read, with Kubernetes' Status.
    app = web.Application(handler_args={"max_field_size": _MAX_HEAD, "max_line_size": _MAX_HEAD})
    app.router.add_route("*", "/{path:.*}", api.handle)
    app.cleanup_ctx.append(api.run_background)
    app.on_shutdown.append(api.close_streams)
    return app


async def serve(
    store: Store,
    config: ServerConfig,
    sockets: Sequence[socket.socket],
    policy: Policy | None = None,
) -> None:
    """Serve on these listening sockets (TLS on each) until cancelled, then shut down cleanly."""
    app = create_app(store, config, policy)
    context = server_ssl_context(_keys(config))
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=_KEEPALIVE_S,
        shutdown_timeout=_SHUTDOWN_S,
        handle_signals=False,
    )
    await runner.setup()
    try:
        for sock in sockets:
            await web.SockSite(runner, sock, ssl_context=context).start()
        _log.info("serving", addresses=[_address(sock) for sock in sockets])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"{host}:{port}"
