"""From an authorized request for a resource to the function that answers it.

In: a `Call`. Out: a response. Which verb and subresource goes where is decided here and nowhere
else; a request for what the resource does not have is 404 or 405 as kube-apiserver answers.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from localkube.apiserver import deletion, errors, reading, subresources
from localkube.apiserver.bodies import read_object, read_options
from localkube.apiserver.context import Call, Server, write_options
from localkube.apiserver.http_proxy import proxy_http
from localkube.apiserver.node_proxy import NodeProxy
from localkube.apiserver.patching import patch_object
from localkube.apiserver.responses import respond
from localkube.apiserver.selectors import build_predicate
from localkube.apiserver.watching import watch_objects
from localkube.apiserver.writing import ObjectWriter

JsonObject = dict[str, Any]

# Subresources that are the object itself, written through another door.
_OWN_OBJECT = frozenset({"status", "finalize", "approval"})
_STREAMS = frozenset({"log", "exec", "attach", "portforward"})
_REVIEW_GROUPS = frozenset({"authentication.k8s.io", "authorization.k8s.io"})


class Handlers:
    """Answers requests for resources."""

    def __init__(self, server: Server, writer: ObjectWriter, proxy: NodeProxy) -> None:
        self._server = server
        self._writer = writer
        self._proxy = proxy

    async def answer(self, call: Call) -> web.StreamResponse:
        """Answer one request. Raises ApiError."""
        resource, info = call.resource, call.info
        if info.subresource:
            if info.subresource not in resource.subresources:
                raise errors.no_such_path()
            return await self._subresource(call)
        verb = info.verb
        if verb not in resource.verbs:
            raise errors.method_not_allowed(resource.plural, verb, resource.group)
        if verb in ("update", "patch") and not info.name:
            raise errors.method_not_allowed(resource.plural, verb, resource.group)
        if resource.namespaced and not info.namespace and verb not in ("list", "watch"):
            raise errors.bad_request("the path names no namespace")
        match verb:
            case "get":
                return reading.get_object(call)
            case "list":
                return reading.list_objects(call)
            case "watch":
                return await watch_objects(call)
            case "create":
                return await self._create(call)
            case "update":
                return await self._update(call)
            case "patch":
                return await self._patch(call)
            case "delete":
                return await self._delete(call)
            case _:
                return await self._delete_collection(call)

    async def _create(self, call: Call) -> web.StreamResponse:
        resource = call.resource
        if resource.group in _REVIEW_GROUPS:
            review = await read_object(call.request, call.warnings)
            review.setdefault("kind", resource.kind)
            review.setdefault("apiVersion", resource.api_version)
            answered = await self._server.policy.review(resource, review, call.user, call.namespace)
            return reading.respond_object(call, answered, 201)
        if resource.storage == "bindings":
            bound = await subresources.create_binding(call, self._writer)
            return reading.respond_object(call, bound, 201)
        obj = await read_object(call.request, call.warnings)
        if call.name:
            raise errors.method_not_allowed(resource.plural, "create", resource.group)
        created = await self._writer.create(resource, call.namespace, obj, write_options(call))
        return reading.respond_object(call, created, 201)

    async def _update(self, call: Call) -> web.StreamResponse:
        body = msgspec.json.encode(await read_object(call.request, call.warnings))

        def transform(_old: JsonObject) -> JsonObject:
            # Decoded anew for each attempt: admission changes what it gets.
            new: JsonObject = msgspec.json.decode(body)
            return new

        updated = await self._writer.update(
            call.resource,
            call.namespace,
            call.name,
            transform,
            write_options(call),
            subresource=call.info.subresource,
            whole=True,
        )
        return reading.respond_object(call, updated)

    async def _patch(self, call: Call) -> web.StreamResponse:
        patched, created = await patch_object(call, self._writer, call.info.subresource)
        return reading.respond_object(call, patched, 201 if created else 200)

    async def _delete(self, call: Call) -> web.StreamResponse:
        options = deletion.delete_options(call, await read_options(call.request, call.warnings))
        last, gone = await deletion.delete_object(
            self._server, call.resource, call.namespace, call.name, options, write_options(call)
        )
        if gone:
            status = deletion.success_status(call.resource, last)
            return respond(msgspec.json.encode(status), warnings=call.warnings)
        return reading.respond_object(call, last)

    async def _delete_collection(self, call: Call) -> web.StreamResponse:
        resource, store = call.resource, self._server.store
        options = deletion.delete_options(call, await read_options(call.request, call.warnings))
        predicate = build_predicate(
            call.option("labelSelector"), call.option("fieldSelector"), resource
        )
        write = write_options(call)
        deleted: list[JsonObject] = []
        for stored in store.list(resource.storage, call.namespace or None):
            if not predicate(stored.object):
                continue
            try:
                last, _ = await deletion.delete_object(
                    self._server, resource, stored.namespace, stored.name, options, write
                )
            except errors.ApiError as error:
                if error.code != 404:  # somebody else deleted it: that is fine
                    raise
            else:
                deleted.append(last)
        body = {
            "kind": resource.list_kind,
            "apiVersion": resource.api_version,
            "metadata": {"resourceVersion": str(store.revision)},
            "items": deleted,
        }
        return respond(msgspec.json.encode(body), warnings=call.warnings)

    # -- subresources -----------------------------------------------------------------------

    async def _subresource(self, call: Call) -> web.StreamResponse:
        name, method = call.info.subresource, call.request.method
        if name in _OWN_OBJECT:
            match method:
                case "GET" | "HEAD":
                    return reading.get_object(call)
                case "PUT":
                    return await self._update(call)
                case "PATCH":
                    return await self._patch(call)
        elif name == "scale":
            if method in ("GET", "HEAD"):
                return reading.respond_object(call, subresources.get_scale(call))
            if method in ("PUT", "PATCH"):
                scale = await subresources.write_scale(call, self._writer)
                return reading.respond_object(call, scale)
        elif name in _STREAMS:
            if method == "GET" or (method == "POST" and name != "log"):
                return await self._proxy.answer(call, name)
        elif name == "proxy":
            return await proxy_http(call, self._proxy)
        elif method == "POST":
            return await self._post_subresource(call, name)
        raise errors.method_not_allowed(
            f"{call.resource.plural}/{name}", call.info.verb, call.resource.group
        )

    async def _post_subresource(self, call: Call, name: str) -> web.StreamResponse:
        if name == "binding":
            answered = await subresources.bind_pod(call, self._writer, call.name)
        elif name == "eviction":
            answered = await subresources.evict_pod(call)
        else:
            answered = await subresources.create_token(call)
        return reading.respond_object(call, answered, 201)
