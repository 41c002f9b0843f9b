"""Pod subresources that the node agent answers: log, exec, attach, portforward.

In: a `Call` for a pod. Out: the node's answer, streamed. The pod's node is looked up in the store
and called over TLS with the API server's client certificate. An upgraded connection (WebSocket or
SPDY) is passed through as bytes in both directions; anything but a 101 is relayed as an ordinary
response, so that a client can never speak to the node under the server's identity.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp import web

from localkube.apiserver import errors
from localkube.apiserver.admission_contract import Operation
from localkube.apiserver.context import Call
from localkube.apiserver.tables import dig

JsonObject = dict[str, Any]

_PATHS = {
    "log": "containerLogs",
    "exec": "exec",
    "attach": "attach",
    "portforward": "portForward",
}
_CONNECT_TIMEOUT_S = 10.0
_HEAD_LIMIT = 65536
_BODY_LIMIT = 1 << 20
# Headers of an upgrade that the node needs to see; credentials never pass.
_UPGRADE_HEADERS = (
    "Upgrade",
    "Connection",
    "X-Stream-Protocol-Version",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
)
_BEARER_PROTOCOL = "base64url.bearer.authorization.k8s.io."
_LOG_OPTIONS = frozenset(
    {
        "follow",
        "previous",
        "sinceSeconds",
        "sinceTime",
        "timestamps",
        "tailLines",
        "limitBytes",
        "stream",
        "insecureSkipTLSVerifyBackend",
    }
)


@dataclass(slots=True)
class NodeProxy:
    """Calls node agents. `make_context` builds the client's TLS context when first needed."""

    make_context: Callable[[], ssl.SSLContext]
    _context: ssl.SSLContext | None = None
    _session: aiohttp.ClientSession | None = None
    _open: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context for calls to nodes."""
        if self._context is None:
            self._context = self.make_context()
        return self._context

    def session(self) -> aiohttp.ClientSession:
        """Return the HTTP client for nodes, pods and services."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
            )
        return self._session

    async def close(self) -> None:
        """End open streams and close the HTTP client."""
        for task in tuple(self._open):
            task.cancel()
        if self._session is not None:
            await self._session.close()

    async def answer(self, call: Call, subresource: str) -> web.StreamResponse:
        """Answer log, exec, attach or portforward of the named pod."""
        pod = _find_pod(call)
        container = "" if subresource == "portforward" else _container(call, pod, subresource)
        host, port = _node_endpoint(call, pod)
        parts = [
            _PATHS[subresource],
            call.namespace,
            call.name,
            *([container] if container else []),
        ]
        path = "/" + "/".join(quote(part, safe="") for part in parts)
        query = _query(call, subresource)
        target = f"{path}?{query}" if query else path
        if subresource == "log":
            return await self._stream_log(call, f"https://{_bracket(host)}:{port}{target}")
        await call.server.policy.validate(
            Operation(
                verb="CONNECT",
                resource=call.resource,
                subresource=subresource,
                namespace=call.namespace,
                name=call.name,
                object=None,
                old_object=None,
                user=call.user,
                warnings=call.warnings,
            )
        )
        if "upgrade" not in call.request.headers.get("Connection", "").lower():
            raise errors.bad_request(
                f"{subresource} needs a connection upgrade (WebSocket or SPDY/3.1)"
            )
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            return await self._tunnel(call, host, port, target)
        finally:
            self._open.discard(task)

    async def _stream_log(self, call: Call, url: str) -> web.StreamResponse:
        try:
            async with self.session().get(url, ssl=self.context) as upstream:
                headers = {"Content-Type": upstream.headers.get("Content-Type", "text/plain")}
                if upstream.status != 200:
                    body = await upstream.content.read(_BODY_LIMIT)
                    raise _node_error(upstream.status, body)
                response = web.StreamResponse(status=200, headers=headers)
                await response.prepare(call.request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                return response
        except aiohttp.ClientError as error:
            raise _unreachable(call, error) from None

    async def _tunnel(self, call: Call, host: str, port: int, target: str) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self.context, limit=_HEAD_LIMIT
                )
        except (OSError, TimeoutError) as error:
            raise _unreachable(call, error) from None
        try:
            writer.write(_request_head(call.request, f"{_bracket(host)}:{port}", target))
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers = _parse_head(head)
            if status != 101:
                return await _plain_response(status, headers, reader)
            await _relay(call.request, head, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise _unreachable(call, error) from None
        finally:
            writer.close()
        # The connection is closed: aiohttp has nobody left to send this to.
        return web.Response(status=101)


def _find_pod(call: Call) -> JsonObject:
    stored = call.server.store.get("pods", call.namespace, call.name)
    if stored is None:
        raise errors.not_found("pods", call.name)
    return stored.object


def _names(pod: JsonObject, field_name: str) -> list[str]:
    return [str(one.get("name", "")) for one in dig(pod, f"spec.{field_name}", ())]


def _container(call: Call, pod: JsonObject, subresource: str) -> str:
    asked = call.option("container")
    main, init = _names(pod, "containers"), _names(pod, "initContainers")
    ephemeral = _names(pod, "ephemeralContainers")
    if asked:
        if asked not in (*main, *init, *ephemeral):
            raise errors.bad_request(f"container {asked} is not valid for pod {call.name}")
        return asked
    if len(main) == 1:
        return main[0]
    default = (pod["metadata"].get("annotations") or {}).get(
        "kubectl.kubernetes.io/default-container"
    )
    if subresource != "log" and default in main:
        return str(default)
    listed = " ".join(main)
    message = f"a container name must be specified for pod {call.name}, choose one of: [{listed}]"
    if init:
        message += f" or one of the init containers: [{' '.join(init)}]"
    raise errors.bad_request(message)


def _node_endpoint(call: Call, pod: JsonObject) -> tuple[str, int]:
    node_name = dig(pod, "spec.nodeName", "")
    if not node_name:
        raise errors.bad_request(f"pod {call.name} does not have a host assigned")
    node = call.server.store.get("nodes", "", node_name)
    if node is None:
        raise errors.not_found("nodes", node_name)
    addresses = {
        one.get("type"): one.get("address") for one in dig(node.object, "status.addresses", ())
    }
    host = addresses.get("InternalIP") or addresses.get("Hostname")
    port = dig(node.object, "status.daemonEndpoints.kubeletEndpoint.Port", 0)
    if not host or not port:
        raise errors.unavailable(
            f"node {node_name} has not announced where its agent listens (status.addresses, "
            "status.daemonEndpoints)"
        )
    return str(host), int(port)


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _query(call: Call, subresource: str) -> str:
    pairs = [
        (key, value)
        for key, value in call.request.query.items()
        if (key in _LOG_OPTIONS if subresource == "log" else key != "container")
    ]
    return urlencode(pairs)


def _request_head(request: web.Request, host: str, target: str) -> bytes:
    lines = [f"{request.method} {target} HTTP/1.1", f"Host: {host}"]
    for name in _UPGRADE_HEADERS:
        values = request.headers.getall(name, [])
        if name == "Sec-WebSocket-Protocol":
            # A token may travel as a WebSocket protocol: it stays here.
            offered = [p.strip() for value in values for p in value.split(",")]
            kept = [p for p in offered if p and not p.startswith(_BEARER_PROTOCOL)]
            values = [", ".join(kept)] if kept else []
        lines.extend(f"{name}: {value}" for value in values)
    if request.method == "POST":
        lines.append("Content-Length: 0")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *rest = head.decode("latin-1").split("\r\n")
    parts = first.split(" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        raise errors.unavailable("the node's agent answered with something that is not HTTP")
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return int(parts[1]), headers


async def _plain_response(
    status: int, headers: dict[str, str], reader: asyncio.StreamReader
) -> web.Response:
    """Return the node's refusal of an upgrade."""
    length = headers.get("content-length", "")
    if length.isdigit():
        body = await reader.readexactly(min(int(length), _BODY_LIMIT))
    else:
        body = b""
    raise _node_error(status, body)


def _node_error(status: int, body: bytes) -> errors.ApiError:
    """Return the node's error as ours; a Status object in the body is taken as it is."""
    import msgspec

    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        found = None
    if isinstance(found, dict) and found.get("kind") == "Status":
        return errors.ApiError(
            int(found.get("code") or status),
            str(found.get("reason") or "InternalError"),
            str(found.get("message") or ""),
            details=found.get("details"),
        )
    reasons = {400: "BadRequest", 403: "Forbidden", 404: "NotFound"}
    text = body.decode(errors="replace").strip() or f"the node's agent answered {status}"
    code = status if status in reasons else 500
    return errors.ApiError(code, reasons.get(status, "InternalError"), text)


def _unreachable(call: Call, error: BaseException) -> errors.ApiError:
    node = dig(_find_pod(call), "spec.nodeName", "")
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error  # its own text shows the TLS context
    why = str(error) or type(error).__name__
    return errors.unavailable(f"cannot reach the agent of node {node}: {why}")


class _HijackedProtocol(asyncio.StreamReaderProtocol):
    """Takes a client's connection over from aiohttp, and tells aiohttp when it ends."""

    def __init__(self, reader: asyncio.StreamReader, former: asyncio.BaseProtocol) -> None:
        super().__init__(reader)
        self._former = former

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if isinstance(self._former, asyncio.Protocol):
            self._former.connection_lost(exc)


async def _relay(
    request: web.Request,
    head: bytes,
    upstream: asyncio.StreamReader,
    upstream_writer: asyncio.StreamWriter,
) -> None:
    """Send the 101 to the client, then copy both ways until either side ends."""
    transport = request.transport
    if transport is None:
        return
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_HEAD_LIMIT, loop=loop)
    protocol = _HijackedProtocol(reader, request.protocol)
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    # aiohttp may have paused reading while the handler ran.
    if not transport.is_reading():
        transport.resume_reading()
    client_writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    client_writer.write(head)
    copies = {
        loop.create_task(_copy(reader, upstream_writer)),
        loop.create_task(_copy(upstream, client_writer)),
    }
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        # What the ending side sent last is still to be written out.
        for writer in (client_writer, upstream_writer):
            if not writer.is_closing():
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await writer.drain()
    except (OSError, TimeoutError):
        pass
    finally:
        for copy in copies:
            copy.cancel()
        client_writer.close()
        await asyncio.gather(*copies, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # the other side has gone; the relay ends
