"""Requests and watches against a Kubernetes API server, on plain dicts.

In: a `Connection`, a `ResourceType` and plain dicts. Out: plain dicts, or ApiStatusError (the
server said no) / ApiConnectionError (the server could not be reached).

Promises: what is safe to repeat is repeated, with growing jittered pauses: reads, and replacements
guarded by a resourceVersion, after connection errors and 5xx; anything after 429, or when the
connection was never made. A create that may already have happened is never sent twice.
"""

import asyncio
import enum
import random
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver

from localkube.client import kubeconfig as kubeconfigs
from localkube.client.errors import ApiConnectionError, ApiStatusError
from localkube.client.kubeconfig import Connection
from localkube.client.resources import ResourceType
from localkube.kit.tasks import backoff

_ATTEMPTS: Final = 5
_REQUEST_DEADLINE: Final = 60.0  # seconds, one attempt
_WATCH_SECONDS: Final = 290  # asked of the server; plus jitter, so watches do not end together
_WATCH_SILENCE: Final = 400.0  # a watch silent for longer than it may last is dead
_TOKEN_MAX_AGE: Final = 60.0  # seconds before a token file is read again
_RETRY_STATUS: Final = frozenset({429, 500, 502, 503, 504})


class PatchType(enum.StrEnum):
    """Content types of PATCH."""

    JSON = "application/json-patch+json"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change: type is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: dict[str, Any]


class ApiClient:
    """One API server, one identity, one connection pool. Close it, or use it as a context manager.

    `socket_factory` (see aiohttp.TCPConnector) and `resolver` let a process in another network
    namespace connect through the host's. `user_agent` also names our field manager.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        user_agent: str = "localkube",
        socket_factory: Callable[[Any], socket.socket] | None = None,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self.connection = connection
        self.user_agent = user_agent
        self._socket_factory = socket_factory
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None
        self._token = connection.token
        self._token_read = 0.0

    @classmethod
    def from_kubeconfig(cls, path: str | Path, **options: Any) -> "ApiClient":
        """The client of a kubeconfig's current context. Raises KubeconfigError."""
        return cls(kubeconfigs.from_kubeconfig(Path(path)), **options)

    @classmethod
    def in_cluster(cls, **options: Any) -> "ApiClient":
        """The client of the pod we run in. Raises KubeconfigError."""
        return cls(kubeconfigs.in_cluster(), **options)

    async def close(self) -> None:
        """Close all connections; watches end with ApiConnectionError."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # -- verbs -------------------------------------------------------------------------------

    async def get(
        self,
        resource: ResourceType,
        name: str,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """One object. Raises ApiStatusError (not_found, ...)."""
        return await self.request_json("GET", resource.path(namespace, name, subresource))

    async def list(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int | None = None,
        continue_token: str | None = None,
        resource_version: str | None = None,
    ) -> dict[str, Any]:
        """A list object ({"metadata": {"resourceVersion", "continue"?}, "items": [...]})."""
        query = _query(
            labelSelector=label_selector,
            fieldSelector=field_selector,
            limit=limit,
            **{"continue": continue_token, "resourceVersion": resource_version},
        )
        return await self.request_json("GET", resource.path(namespace), query=query)

    async def create(
        self,
        resource: ResourceType,
        obj: Mapping[str, Any],
        *,
        namespace: str | None = None,
        name: str | None = None,
        subresource: str | None = None,
    ) -> dict[str, Any]:
        """Create an object; with `name` and `subresource`, POST to that (binding, token, ...)."""
        namespace = namespace or obj.get("metadata", {}).get("namespace")
        path = resource.path(namespace, name, subresource)
        return await self.request_json("POST", path, body=obj)

    async def update(
        self, resource: ResourceType, obj: Mapping[str, Any], *, subresource: str | None = None
    ) -> dict[str, Any]:
        """Replace an object by the one given, whose metadata says which."""
        meta = obj["metadata"]
        path = resource.path(meta.get("namespace"), meta["name"], subresource)
        return await self.request_json("PUT", path, body=obj)

    async def update_status(self, resource: ResourceType, obj: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object's status."""
        return await self.update(resource, obj, subresource="status")

    async def patch(
        self,
        resource: ResourceType,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        type: PatchType = PatchType.MERGE,
        subresource: str | None = None,
        field_manager: str | None = None,
        force: bool = False,
    ) -> dict[str, Any]:
        """Change some fields. Server-side apply (APPLY) needs a field manager; ours is the default."""
        if type is PatchType.APPLY and field_manager is None:
            field_manager = self.user_agent
        query = _query(fieldManager=field_manager, force="true" if force else None)
        path = resource.path(namespace, name, subresource)
        return await self.request_json("PATCH", path, body=patch, query=query, content_type=type)

    async def delete(
        self,
        resource: ResourceType,
        name: str,
        namespace: str | None = None,
        *,
        grace_period_seconds: int | None = None,
        propagation_policy: str | None = None,
        uid: str | None = None,
        resource_version: str | None = None,
    ) -> dict[str, Any]:
        """Delete one object; `uid` and `resource_version` are preconditions (409 otherwise)."""
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if propagation_policy is not None:
            options["propagationPolicy"] = propagation_policy
        conditions = _query(uid=uid, resourceVersion=resource_version)
        if conditions:
            options["preconditions"] = conditions
        return await self.request_json("DELETE", resource.path(namespace, name), body=options)

    async def delete_collection(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        grace_period_seconds: int | None = None,
    ) -> dict[str, Any]:
        """Delete every object that the selectors choose."""
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        query = _query(labelSelector=label_selector, fieldSelector=field_selector)
        return await self.request_json(
            "DELETE", resource.path(namespace), body=options, query=query
        )

    async def watch(
        self,
        resource: ResourceType,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Changes after `resource_version`, until the server ends the watch (then: watch again
        from the last resourceVersion seen; bookmarks carry one too).

        Raises ApiStatusError (`gone`: list again) or ApiConnectionError.
        """
        query = _query(
            labelSelector=label_selector,
            fieldSelector=field_selector,
            resourceVersion=resource_version,
            timeoutSeconds=_WATCH_SECONDS + random.randint(0, 60),  # noqa: S311 - jitter
            watch="true",
            allowWatchBookmarks="true",
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SILENCE)
        try:
            async with self._http().get(
                resource.path(namespace),
                params=query,
                headers=await self._headers(),
                timeout=timeout,
                **self._tls_options(),
            ) as response:
                if response.status != 200:
                    raise _status_error(response.status, await response.read())
                async for line in _lines(response.content):
                    event = msgspec.json.decode(line)
                    obj = event["object"]
                    if event["type"] == "ERROR":
                        raise _error_of_status(obj.get("code") or 500, obj)
                    yield WatchEvent(event["type"], obj)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            raise ApiConnectionError(f"watch of {resource.plural}: {error!r}") from error

    # -- plumbing ----------------------------------------------------------------------------

    async def request_json(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """One request with its retries -> the decoded answer. For paths no verb above covers."""
        answer = await self.request(method, path, body=body, query=query, content_type=content_type)
        decoded: dict[str, Any] = msgspec.json.decode(answer) if answer else {}
        return decoded

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request with its retries -> the answer's bytes (health, metrics, OpenAPI, ...)."""
        data = msgspec.json.encode(body) if body is not None else None
        repeatable = method in ("GET", "DELETE") or (
            method == "PUT" and bool(body["metadata"].get("resourceVersion"))
        )
        for attempt in range(_ATTEMPTS):
            last = attempt == _ATTEMPTS - 1
            pause = backoff(attempt)
            try:
                return await self._once(method, path, data, query, content_type)
            except ApiStatusError as error:
                safe = error.code == 429 or (repeatable and error.code in _RETRY_STATUS)
                if last or not safe:
                    raise
                pause = max(pause, float(error.details.get("retryAfterSeconds") or 0))
            except (aiohttp.ClientError, TimeoutError) as error:
                never_sent = isinstance(error, aiohttp.ClientConnectorError)
                if last or not (repeatable or never_sent):
                    raise ApiConnectionError(f"{method} {path}: {error!r}") from error
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _once(
        self,
        method: str,
        path: str,
        data: bytes | None,
        query: Mapping[str, str] | None,
        content_type: str,
    ) -> bytes:
        headers = await self._headers()
        if data is not None:
            headers["Content-Type"] = content_type
        async with self._http().request(
            method, path, data=data, params=query, headers=headers, **self._tls_options()
        ) as response:
            answer = await response.read()
            if response.status >= 400:
                raise _status_error(response.status, answer)
            return answer

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            options: dict[str, Any] = {}
            if self._socket_factory is not None:
                options["socket_factory"] = self._socket_factory
            if self._resolver is not None:
                options["resolver"] = self._resolver
            connector = aiohttp.TCPConnector(
                ssl=self.connection.tls if self.connection.tls is not None else True,
                limit=0,
                **options,
            )
            self._session = aiohttp.ClientSession(
                self.connection.server,
                connector=connector,
                auto_decompress=True,
                timeout=aiohttp.ClientTimeout(total=_REQUEST_DEADLINE, sock_connect=10),
            )
        return self._session

    def _tls_options(self) -> dict[str, Any]:
        name = self.connection.tls_server_name
        return {"server_hostname": name} if name else {}

    async def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": self.user_agent}
        file = self.connection.token_file
        if file is not None and time.monotonic() - self._token_read > _TOKEN_MAX_AGE:
            self._token = file.read_text().strip()
            self._token_read = time.monotonic()
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers


def _query(**values: Any) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length (StreamReader.readline has a limit that large objects exceed)."""
    pending: list[bytes] = []
    async for chunk in stream.iter_any():
        head, newline, rest = chunk.partition(b"\n")
        pending.append(head)
        while newline:
            line = b"".join(pending)
            if line.strip():
                yield line
            head, newline, rest = rest.partition(b"\n")
            pending = [head]


def _status_error(code: int, body: bytes) -> ApiStatusError:
    try:
        status = msgspec.json.decode(body)
    except msgspec.DecodeError:
        status = None
    if not isinstance(status, dict):
        return ApiStatusError(code, "", body[:500].decode(errors="replace"))
    return _error_of_status(code, status)


def _error_of_status(code: int, status: dict[str, Any]) -> ApiStatusError:
    return ApiStatusError(
        code, status.get("reason") or "", status.get("message") or "", status.get("details")
    )
