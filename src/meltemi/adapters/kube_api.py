"""Requests to a Kubernetes API server on plain mappings, for installing and inspecting.

In: a ``Connection``. Out: decoded objects, or ``KubeError`` with the server's own words. The control plane's
watches are elsewhere (typed, resumable); this is for programs that ask a few things and go.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp

from meltemi.adapters.kube_connection import Connection

Object = dict[str, Any]
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
_TRIES = 5
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)


class KubeError(Exception):
    """The API server refused or could not be reached. ``code`` is the HTTP status, 0 for unreachable."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class KubeApi:
    """One session with one API server. Use as an async context manager."""

    def __init__(self, connection: Connection, field_manager: str) -> None:
        self.connection = connection
        self.field_manager = field_manager
        self._paths: dict[str, dict[str, tuple[str, bool]]] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        context = self.connection.ssl_context()
        connector = aiohttp.TCPConnector(ssl=context if context is not None else True)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": self.field_manager}
        if content_type:
            headers["Content-Type"] = content_type
        if token := self.connection.bearer():
            headers["Authorization"] = f"Bearer {token}"
        elif self.connection.username:
            headers["Authorization"] = aiohttp.encode_basic_auth(
                self.connection.username, self.connection.password
            )
        return headers

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        """One request; the answer's body. Safe requests are repeated while the server is not there."""
        assert self._session is not None, "use KubeApi as an async context manager"
        data = json.dumps(body).encode() if body is not None else None
        url = self.connection.server + path + (f"?{urlencode(params)}" if params else "")
        # Applying is idempotent, so it may be repeated like a read.
        tries = _TRIES if method in ("GET", "PATCH") else 1
        for attempt in range(tries):
            try:
                async with self._session.request(
                    method,
                    url,
                    data=data,
                    headers=self._headers(content_type if data else ""),
                    server_hostname=self.connection.server_name or None,
                ) as answer:
                    raw = await answer.read()
                    if answer.status < 400:
                        return raw
                    error = _error(answer.status, raw)
                    if answer.status not in (429, 502, 503) or attempt == tries - 1:
                        raise error
            except (aiohttp.ClientError, TimeoutError, OSError) as failure:
                if attempt == tries - 1:
                    raise KubeError(
                        0,
                        "Unreachable",
                        f"the cluster at {self.connection.server} cannot be reached: {failure or 'timeout'}",
                    ) from failure
            await asyncio.sleep(min(2.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.5))  # noqa: S311
        raise AssertionError("unreachable")

    async def json(self, method: str, path: str, **more: Any) -> Any:
        """Like ``request``, decoded."""
        return json.loads(await self.request(method, path, **more))

    async def _resource(self, api_version: str, kind: str) -> tuple[str, bool]:
        """(plural, namespaced) of a kind, by discovery; asked again while a CRD is young."""
        root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        for attempt in range(40):
            known = self._paths.get(api_version, {})
            if kind in known:
                return known[kind]
            try:
                listed = await self.json("GET", root)
            except KubeError as error:
                if error.code != 404:
                    raise
                listed = {"resources": []}
            self._paths[api_version] = {
                item["kind"]: (item["name"], item["namespaced"])
                for item in listed["resources"]
                if "/" not in item["name"]
            }
            if kind not in self._paths[api_version] and attempt < 39:
                await asyncio.sleep(0.05)
        if kind in self._paths[api_version]:
            return self._paths[api_version][kind]
        raise KubeError(404, "NotFound", f"the cluster knows no {kind} in {api_version}")

    async def path(self, api_version: str, kind: str, namespace: str = "", name: str = "") -> str:
        """URL path of an object, or of a collection without ``name``."""
        plural, namespaced = await self._resource(api_version, kind)
        return collection(api_version, plural, namespace if namespaced else "", name)

    async def apply(self, manifest: Object, *, namespace: str = "", force: bool = True) -> Object:
        """Server-side apply; creates what is not there. ``namespace`` is for manifests that name none."""
        metadata = manifest["metadata"]
        where = metadata.get("namespace") or namespace or self.connection.namespace
        path = await self.path(manifest["apiVersion"], manifest["kind"], where, metadata["name"])
        params = {"fieldManager": self.field_manager, "force": "true" if force else "false"}
        made: Object = await self.json(
            "PATCH", path, params=params, body=manifest, content_type=APPLY
        )
        return made

    async def find(self, api_version: str, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        try:
            found: Object = await self.json(
                "GET", await self.path(api_version, kind, namespace, name)
            )
        except KubeError as error:
            if error.code == 404:
                return None
            raise
        return found

    async def list(
        self, api_version: str, plural: str, namespace: str = "", selector: str = ""
    ) -> list[Object]:
        """All objects of a collection (all namespaces by default); none when the cluster lacks the kind."""
        params = {"labelSelector": selector} if selector else None
        try:
            found = await self.json(
                "GET", collection(api_version, plural, namespace), params=params
            )
        except KubeError as error:
            if error.code == 404:
                return []
            raise
        kind = found["kind"].removesuffix("List")
        return [{"apiVersion": api_version, "kind": kind, **item} for item in found["items"]]

    async def delete(self, manifest: Object, *, namespace: str = "") -> bool:
        """Delete in the background; False when it was not there."""
        metadata = manifest["metadata"]
        where = metadata.get("namespace") or namespace
        try:
            path = await self.path(
                manifest["apiVersion"], manifest["kind"], where, metadata["name"]
            )
            await self.request("DELETE", path, params={"propagationPolicy": "Background"})
        except KubeError as error:
            if error.code == 404:
                return False
            raise
        return True

    async def merge_patch(self, path: str, body: Object) -> Object:
        """JSON merge patch of an object or a subresource."""
        made: Object = await self.json("PATCH", path, body=body, content_type=MERGE)
        return made

    async def follow(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Lines of a streaming answer (logs, watches) until it ends."""
        assert self._session is not None, "use KubeApi as an async context manager"
        url = f"{self.connection.server}{path}?{urlencode(params)}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(url, headers=self._headers(""), timeout=timeout) as answer:
            if answer.status >= 400:
                raise _error(answer.status, await answer.read())
            async for line in answer.content:
                yield line

    def websocket(
        self, path: str, protocol: str
    ) -> AbstractAsyncContextManager[aiohttp.ClientWebSocketResponse]:
        """A WebSocket to ``path`` (with its query) that speaks ``protocol``."""
        assert self._session is not None, "use KubeApi as an async context manager"
        return self._session.ws_connect(
            self.connection.server + path,
            protocols=(protocol,),
            headers=self._headers(""),
            max_msg_size=0,
            server_hostname=self.connection.server_name or None,
        )


def collection(api_version: str, plural: str, namespace: str = "", name: str = "") -> str:
    """URL path of a collection or, with ``name``, of one object."""
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{plural}" + (f"/{name}" if name else "")


def _error(status: int, raw: bytes) -> KubeError:
    try:
        body = json.loads(raw)
        return KubeError(status, body.get("reason") or "", body.get("message") or raw.decode())
    except (ValueError, AttributeError):
        return KubeError(status, "", raw.decode(errors="replace").strip() or f"HTTP {status}")
