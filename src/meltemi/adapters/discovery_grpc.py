"""Serve xDS over gRPC: one task per stream, bytes as they are.

In: streams of requests, and snapshots from a ``Source``. Out: responses. Promises: a stream has at most one
push waiting, however many changes there were; responses are joined only when they are written; a proxy that
does not take a response in time is reported, holds one message, and keeps nobody else waiting; wake-ups are paced, so that a thousand
proxies never hold the loop; a caller gets only the configuration of the namespace and service account that it
has proven; secrets go to verified callers alone.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from grpc import aio

from meltemi.adapters.authenticate import Authenticator, CannotReview
from meltemi.adapters.discovery_connections import Connection, Connections, has_secrets
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.secret_access import SecretAccess
from meltemi.adapters.stream_gate import StreamGate, message_bucket
from meltemi.adapters.xds_requests import METHODS, PARSERS, SERVICE, proxy_of, request_of
from meltemi.ca.identity import Identity, NotAuthenticated, NotPermitted
from meltemi.discovery import wire
from meltemi.discovery.protocol import (
    Mode,
    Rejected,
    RemoteProtocolError,
    Send,
    Snapshot,
    Stale,
)
from meltemi.discovery.stream import Stream
from meltemi.kit.clock import Clock
from meltemi.kit.tasks import Tasks
from meltemi.model.names import (
    CDS_TYPE,
    DEBUG_TYPE,
    EDS_TYPE,
    HEALTH_TYPE,
    LDS_TYPE,
    NDS_TYPE,
    RDS_TYPE,
    SDS_TYPE,
)
from meltemi.model.resource import Resource

SHORT = {
    CDS_TYPE: "cds",
    EDS_TYPE: "eds",
    LDS_TYPE: "lds",
    RDS_TYPE: "rds",
    SDS_TYPE: "sds",
    NDS_TYPE: "nds",
}
INBOX_MAX = 32
FIRST_REQUEST_S = 30.0

log = structlog.get_logger("ads")


class NotYet(Exception):
    """What the proxy needs is not there; the text says what. It should try again."""


class Source(Protocol):
    """Where snapshots come from."""

    async def joined(self, connection: Connection) -> Snapshot:
        """What a proxy that has just connected should have. May refine ``connection.proxy``.

        Raises NotPermitted, or NotYet, when this caller may not be what the proxy says that it is.
        """
        ...

    def left(self, connection: Connection) -> None:
        """The stream has ended."""
        ...

    def health(self, connection: Connection, problem: str | None) -> None:
        """The proxy's agent tells what is wrong with its workload; None when nothing is."""
        ...

    async def debug(self, request: str) -> bytes:
        """The answer to a debug request such as ``syncz``."""
        ...

    def rejected(self, connection: Connection, event: Rejected) -> Mapping[str, object]:
        """A proxy refused a response; returns what to log: the origins of the resources."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the server."""

    streams_max: int = 100_000  # ISTIO_GPRC_MAXSTREAMS
    write_s: float = 20.0
    starts_per_s: float = 0.0  # PILOT_MAX_REQUESTS_PER_SECOND; 0 is no limit
    authenticate_plaintext: bool = False  # XDS_AUTH_PLAINTEXT


class DiscoveryServer:
    """The aggregated discovery service, both variants."""

    def __init__(
        self,
        source: Source,
        authenticator: Authenticator,
        metrics: Metrics,
        clock: Clock,
        limits: Limits | None = None,
        connections: Connections | None = None,
        *,
        access: SecretAccess | None = None,
        namespace: str = "istio-system",
    ) -> None:
        """``access`` tells whose Secrets may be read; ``namespace`` is istiod's own, whose accounts may debug."""
        self._namespace = namespace
        self.connections = connections if connections is not None else Connections()
        self._source = source
        self._authenticator = authenticator
        self._metrics = metrics
        self._clock = clock
        self._limits = limits or Limits()
        self._gate = StreamGate(
            clock, access or SecretAccess(None, clock), self._limits.starts_per_s
        )
        self._entries = wire.Entries()
        self._numbers = itertools.count(1)
        self._closing = False
        self._tasks = Tasks("ads")

    def handlers(self) -> grpc.GenericRpcHandler:
        """What to add to a gRPC server. Responses are bytes already: no serializer."""
        methods = {
            METHODS[mode]: grpc.stream_stream_rpc_method_handler(
                self._handler(mode), request_deserializer=self._parser(mode)
            )
            for mode in Mode
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def close(self) -> None:
        """End every stream in good order, so that proxies go to another replica."""
        self._closing = True
        for connection in self.connections:
            connection.closing = True
        await self.connections.wake(self.connections)

    async def drained(self, seconds: float) -> bool:
        """Wait until no stream is left, for so long at most."""
        try:
            async with asyncio.timeout(seconds):
                await self.connections.empty.wait()
        except TimeoutError:
            return False
        return True

    def _parser(self, mode: Mode) -> Callable[[bytes], Any]:
        parse, largest = PARSERS[mode], 0

        def parser(data: bytes) -> Any:
            nonlocal largest
            if len(data) > largest:
                largest = len(data)
                self._metrics.recv_max.set(largest)
            return parse(data)

        return parser

    def _handler(self, mode: Mode) -> Callable[[Any, Any], Awaitable[None]]:
        async def handle(_: Any, context: Any) -> None:
            try:
                await self._serve(mode, context)
            except RemoteProtocolError as error:
                log.warning("stream refused", peer=context.peer(), reason=str(error))
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            except NotAuthenticated as error:
                log.warning("caller not identified", peer=context.peer(), reason=str(error))
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
            except CannotReview as error:
                log.warning(
                    "caller cannot be identified now", peer=context.peer(), reason=str(error)
                )
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
            except NotPermitted as error:
                log.warning("node refused", peer=context.peer(), reason=str(error))
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            except NotYet as error:
                log.warning("node refused", peer=context.peer(), reason=str(error))
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            except aio.AbortError:
                raise
            except Exception:
                self._metrics.internal_errors.inc()
                log.exception("stream failed", peer=context.peer())
                raise

        return handle

    async def _serve(self, mode: Mode, context: Any) -> None:
        if self._closing or len(self.connections) >= self._limits.streams_max:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams, or shutting down"
            )
        identity = None
        if self._limits.authenticate_plaintext or self._authenticator.is_encrypted(context):
            identity = await self._authenticator.identify(context)
        if not await self._gate.pace():
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many new streams")
        first = await self._first(context)
        if first is None:
            return
        if first.type_url == DEBUG_TYPE:
            await self._serve_debug(mode, context, first, identity)
            return
        proxy = proxy_of(first)
        if why := self._gate.refusal(proxy, identity):
            log.warning("node refused", peer=context.peer(), node=proxy.id, reason=why)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        connection = Connection(
            id=f"{proxy.id}-{next(self._numbers)}",
            proxy=proxy,
            identity=identity,
            peer=context.peer(),
            stream=Stream(mode, self._entries),
            connected_at=self._clock.now(),
            first_type=first.type_url,
        )
        if not self._gate.enter(proxy, identity):
            why = "too many streams of one proxy"
            log.warning("node refused", peer=context.peer(), node=proxy.id, reason=why)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, why)
        try:
            await self._converse(mode, context, connection, first)
        finally:
            self._gate.leave(proxy, identity)

    async def _first(self, context: Any) -> Any:
        """The first request, which names the node; None when the caller went away."""
        try:
            async with asyncio.timeout(FIRST_REQUEST_S):
                first = await context.read()
        except TimeoutError as error:
            raise RemoteProtocolError(f"no request within {FIRST_REQUEST_S:.0f} s") from error
        return None if first is aio.EOF else first

    async def _converse(self, mode: Mode, context: Any, connection: Connection, first: Any) -> None:
        gauge = self._metrics.xds.labels(connection.proxy.version or "unknown")
        gauge.inc()
        self.connections.add(connection)
        log.info(
            "connected",
            node=connection.id,
            peer=connection.peer,
            mode=mode.value,
            type=connection.proxy.type.value,
        )
        try:
            connection.snapshot = await self._shown(
                connection, await self._source.joined(connection)
            )
            inbox: asyncio.Queue[Any] = asyncio.Queue(INBOX_MAX)
            inbox.put_nowait(first)
            connection.wake.set()
            reader = self._tasks.spawn(
                f"read {connection.id}", lambda: self._read(context, inbox, connection)
            )
            try:
                await self._loop(mode, context, connection, inbox)
            finally:
                reader.cancel()
        finally:
            gauge.dec()
            self.connections.remove(connection)
            self._source.left(connection)
            log.info("disconnected", node=connection.id)

    async def _read(self, context: Any, inbox: asyncio.Queue[Any], connection: Connection) -> None:
        bucket = message_bucket()
        while True:
            message = await context.read()
            # What comes too fast is read slowly; the peer's flow control does the rest.
            await asyncio.sleep(bucket.wait_s(self._clock.monotonic()))
            await inbox.put(message)
            connection.wake.set()
            if message is aio.EOF:
                return

    async def _loop(
        self, mode: Mode, context: Any, connection: Connection, inbox: asyncio.Queue[Any]
    ) -> None:
        """Requests first, then the push that waits. Ends when either side wants to."""
        while True:
            await connection.wake.wait()
            connection.wake.clear()
            while not inbox.empty():
                message = inbox.get_nowait()
                if message is aio.EOF:
                    return
                await self._answer(mode, context, connection, message)
            if connection.closing:
                return
            if connection.pending is not None:
                await self._push(context, connection)

    async def _answer(self, mode: Mode, context: Any, connection: Connection, message: Any) -> None:
        if message.type_url == DEBUG_TYPE:
            await self._serve_debug(mode, context, message, connection.identity)
            return
        if message.type_url == HEALTH_TYPE:
            wrong = message.error_detail if message.HasField("error_detail") else None
            self._source.health(connection, None if wrong is None else wrong.message)
            return
        started = self._clock.monotonic()
        reaction = connection.stream.receive(request_of(mode, message), connection.snapshot)
        for event in reaction.events:
            if isinstance(event, Rejected):
                self._note_rejection(connection, event)
            elif isinstance(event, Stale):
                self._metrics.expired_nonce.labels(SHORT.get(event.type_url, "other")).inc()
        await self._write(context, connection, reaction.sends, started, "request")

    async def _shown(self, connection: Connection, snapshot: Snapshot) -> Snapshot:
        """What this caller may see of its class's snapshot."""
        if has_secrets(snapshot):
            connection.secrets = await self._gate.may_have_secrets(connection.identity)
        return connection.visible(snapshot)

    async def _push(self, context: Any, connection: Connection) -> None:
        pending, connection.pending = connection.pending, None
        assert pending is not None
        snapshot = connection.snapshot = await self._shown(connection, pending.snapshot)
        started = self._clock.monotonic()
        self._metrics.queue_time.observe(max(0.0, started - pending.since_s))
        sends = connection.stream.push(snapshot, pending.only) if pending.only else []
        if pending.full:
            sends += connection.stream.push(snapshot)
        await self._write(context, connection, sends, started, "push")
        if sends:
            self._metrics.convergence.observe(max(0.0, self._clock.monotonic() - pending.since_s))

    async def _write(
        self,
        context: Any,
        connection: Connection,
        sends: Iterable[Send],
        started: float,
        reason: str,
    ) -> None:
        loop = asyncio.get_running_loop()
        for send in sends:
            kind = SHORT.get(send.type_url, send.type_url.rpartition("/")[2])
            data = send.payload()
            before = self._clock.monotonic()
            self._metrics.xds_push_time.labels(kind).observe(before - started)
            slow = loop.call_later(self._limits.write_s, self._note_slow, connection, kind, data)
            try:
                await context.write(data)
            finally:
                slow.cancel()
            started = self._clock.monotonic()
            self._metrics.xds_send_time.observe(started - before)
            self._metrics.xds_pushes.labels(kind).inc()
            self._metrics.xds_config_size.labels(kind).observe(len(data))
            log.debug(
                "sent",
                node=connection.id,
                type=kind,
                resources=len(send.names),
                removed=len(send.removed),
                bytes=len(data),
                reason=reason,
                nonce=send.nonce,
            )

    def _note_slow(self, connection: Connection, kind: str, data: bytes) -> None:
        """A proxy does not take a response.

        gRPC cannot end a call while a message of it is being sent; the keepalive ping (40 s) does, when the
        proxy is dead. Until then its stream holds this one message and nobody else waits for it.
        """
        self._metrics.write_timeout.inc()
        log.warning("proxy does not read", node=connection.id, type=kind, bytes=len(data))

    def _note_rejection(self, connection: Connection, event: Rejected) -> None:
        kind = SHORT.get(event.type_url, "other")
        connection.rejections[event.type_url] = event
        self._metrics.total_rejects.labels(kind).inc()
        if kind in self._metrics.rejects:
            self._metrics.rejects[kind].labels(connection.proxy.id, "13").inc()
        log.error(
            "proxy rejected configuration",
            node=connection.id,
            type=kind,
            message=event.message,
            **self._source.rejected(connection, event),
        )

    async def _serve_debug(
        self, mode: Mode, context: Any, message: Any, identity: Identity | None
    ) -> None:
        """``istio.io/debug``: for the mesh's own namespace, or over loopback (a port-forward)."""
        local = context.peer().startswith(("ipv4:127.", "ipv6:%5B::1%5D", "ipv6:[::1]", "unix:"))
        if not local and (identity is None or identity.namespace != self._namespace):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"debug requests need a service account of namespace {self._namespace}",
            )
        request = request_of(mode, message)
        if request.nonce and not request.names:
            return
        resources = [
            Resource(name, self._clock_version(), await self._source.debug(name))
            for name in request.names
        ]
        if mode is Mode.SOTW:
            parts = wire.sotw_parts(
                DEBUG_TYPE, "debug", "debug", [wire.sotw_entry(DEBUG_TYPE, r) for r in resources]
            )
        else:
            parts = wire.delta_parts(
                DEBUG_TYPE,
                "debug",
                "debug",
                [wire.delta_entry(DEBUG_TYPE, r) for r in resources],
                (),
            )
        await context.write(b"".join(parts))

    def _clock_version(self) -> str:
        return f"{self._clock.now():.3f}"
