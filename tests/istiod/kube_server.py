"""A small API server for tests: real HTTP, lists with pages, watches with bookmarks and 410, faults on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from meltemi.config.kinds import KINDS

Object = dict[str, Any]


class KubeServer:
    """Collections by URL path. ``url`` after ``start``."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], Object]] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.version = 100
        self.oldest = 0
        self.refuse: Callable[[web.Request], web.Response | None] = lambda request: None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.tokens: dict[str, Object] = {}  # token -> TokenReview status
        self.secret_readers: set[str] = set()  # user names that a SubjectAccessReview allows
        self._changed = asyncio.Condition()
        self._streams: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self, port: int = 0) -> KubeServer:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def stop(self) -> None:
        self.cut_streams()
        if self._runner:
            await self._runner.cleanup()

    def cut_streams(self) -> None:
        """Break every watch, as a dying server would."""
        for task in list(self._streams):
            task.cancel()

    def serve(self, collection: str) -> None:
        """The kind exists now."""
        self.objects.setdefault(collection, {})

    async def put(self, collection: str, obj: Object) -> Object:
        self.serve(collection)
        meta = obj.setdefault("metadata", {})
        key = (meta.get("namespace", ""), meta["name"])
        kind = "MODIFIED" if key in self.objects[collection] else "ADDED"
        await self._store(collection, kind, key, obj)
        return obj

    async def remove(self, collection: str, namespace: str, name: str) -> None:
        await self._store(
            collection, "DELETED", (namespace, name), self.objects[collection][namespace, name]
        )

    async def bookmark(self, collection: str) -> None:
        self.version += 1
        await self._announce(
            collection, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}}
        )

    def forget_history(self) -> None:
        """Watches from before now get 410 Gone."""
        self.version += 1
        self.oldest = self.version
        self.history.clear()

    async def _store(self, collection: str, kind: str, key: tuple[str, str], obj: Object) -> None:
        self.version += 1
        stored = json.loads(json.dumps(obj))
        stored["metadata"]["resourceVersion"] = str(self.version)
        if kind == "DELETED":
            del self.objects[collection][key]
        else:
            self.objects[collection][key] = stored
        await self._announce(collection, kind, stored)

    async def _announce(self, collection: str, kind: str, obj: Object) -> None:
        self.history.append((self.version, collection, kind, obj))
        async with self._changed:
            self._changed.notify_all()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        if (refused := self.refuse(request)) is not None:
            return refused
        if request.path.endswith("/tokenreviews"):
            body = await request.json()
            token = body["spec"]["token"]
            status = self.tokens.get(token, {"authenticated": False, "error": "unknown token"})
            return web.json_response({**body, "status": status}, status=201)
        if request.path.endswith("/subjectaccessreviews"):
            body = await request.json()
            status = {"allowed": body["spec"]["user"] in self.secret_readers}
            return web.json_response({**body, "status": status}, status=201)
        if request.method == "GET":
            return await self._get(request)
        return await self._write(request)

    async def _write(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        collection, key = self._locate(request)
        if request.method == "POST":
            meta = body.setdefault("metadata", {})
            if "/namespaces/" in request.path:
                meta.setdefault("namespace", request.path.split("/namespaces/")[1].split("/")[0])
            key = (meta.get("namespace", ""), meta["name"])
            if key in self.objects.get(collection, {}):
                return self._status(409, "AlreadyExists")
        else:
            current = self.objects.get(collection, {}).get(key)
            if current is None:
                return self._status(404, "NotFound")
            if request.method == "DELETE":
                await self.remove(collection, *key)
                return self._status(200, "Deleted")
            if request.method == "PATCH":
                wanted = body.get("metadata", {}).get("resourceVersion")
                if wanted and wanted != current["metadata"]["resourceVersion"]:
                    return self._status(409, "Conflict")
                body = _merge(json.loads(json.dumps(current)), body)
            elif (want := body["metadata"].get("resourceVersion")) and want != current["metadata"][
                "resourceVersion"
            ]:
                return self._status(409, "Conflict")
        if "stringData" in body:
            import base64

            data = {
                k: base64.b64encode(v.encode()).decode() for k, v in body.pop("stringData").items()
            }
            body.setdefault("data", {}).update(data)
        await self.put(collection, body)
        return web.json_response(self.objects[collection][key], status=200)

    def _locate(self, request: web.Request) -> tuple[str, tuple[str, str]]:
        """Collection (all namespaces) and key of a path; subresources count as their object."""
        parts = request.path.strip("/").split("/")
        head = 2 if parts[0] == "api" else 3
        namespace = ""
        rest = parts[head:]
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        collection = "/" + "/".join([*parts[:head], rest[0]])
        return collection, (namespace, rest[1] if len(rest) > 1 else "")

    async def _get(self, request: web.Request) -> web.StreamResponse:
        collection, (namespace, name) = self._locate(request)
        held = self.objects.get(collection)
        if held is None:
            return self._status(404, "NotFound")
        if name:
            found = held.get((namespace, name))
            return web.json_response(found) if found else self._status(404, "NotFound")
        if request.query.get("watch"):
            return await self._watch(request, collection)
        items = [o for (ns, _), o in sorted(held.items()) if not namespace or ns == namespace]
        start = int(request.query.get("continue", "0"))
        limit = int(request.query.get("limit", "0")) or len(items)
        meta = {"resourceVersion": str(self.version)}
        if start + limit < len(items):
            meta["continue"] = str(start + limit)
        return web.json_response(
            {"kind": "List", "metadata": meta, "items": items[start : start + limit]}
        )

    async def _watch(self, request: web.Request, collection: str) -> web.StreamResponse:
        since = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse()
        await response.prepare(request)
        if since < self.oldest:
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            while True:
                for version, where, kind, obj in list(self.history):
                    if version > since and where == collection:
                        line = json.dumps({"type": kind, "object": obj})
                        await response.write(line.encode() + b"\n")
                since = max(since, self.version)
                async with self._changed:
                    await self._changed.wait()
        finally:
            self._streams.discard(task)

    def _status(self, code: int, reason: str) -> web.Response:
        body = {"kind": "Status", "code": code, "reason": reason, "message": reason}
        return web.json_response(body, status=code)


CORE = ("namespaces", "nodes", "services", "pods", "secrets", "configmaps")


async def started_cluster(*namespaces: str) -> KubeServer:
    """A server with every kind that istiod watches, and these namespaces."""
    server = await KubeServer().start()
    for plural in CORE:
        server.serve(f"/api/v1/{plural}")
    for kind, info in KINDS.items():
        if kind not in ("IstioOperator", "WasmPlugin"):
            server.serve(f"/apis/{info.group}/{info.storage}/{info.plural}")
    server.serve("/apis/discovery.k8s.io/v1/endpointslices")
    server.serve("/apis/coordination.k8s.io/v1/leases")
    server.serve("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
    for plural in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        server.serve(f"/apis/admissionregistration.k8s.io/v1/{plural}")
    for namespace in namespaces:
        await server.put("/api/v1/namespaces", {"metadata": {"name": namespace}})
    return server


def _merge(target: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = _merge(target.get(name), value)
    return target
