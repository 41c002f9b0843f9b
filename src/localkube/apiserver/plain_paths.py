"""Paths that are not resources: discovery, OpenAPI, version, health, metrics, token keys.

In: a path and the request. Out: the document, or ApiError 404.
"""

from __future__ import annotations

import platform
from typing import Any

import msgspec
from aiohttp import web

from localkube.apiserver import errors, openapi_protobuf
from localkube.apiserver.context import Server
from localkube.apiserver.discovery import (
    AGGREGATED,
    AGGREGATED_GROUP,
    Discovery,
    wanted_aggregation,
)
from localkube.apiserver.metrics import RequestMetrics
from localkube.apiserver.responses import respond

JsonObject = dict[str, Any]

GIT_VERSION = "v1.37.0+localkube"
_HEALTH = ("/healthz", "/livez", "/readyz")
_CHECKS = ("ping", "log", "store")


class PlainPaths:
    """Answers GET requests for everything but resources."""

    def __init__(self, server: Server, discovery: Discovery, metrics: RequestMetrics) -> None:
        self._server = server
        self._discovery = discovery
        self._metrics = metrics

    def answer(self, request: web.Request, path: str) -> web.StreamResponse:
        """Return the document at `path`. Raises ApiError 404, 405."""
        if request.method not in ("GET", "HEAD"):
            raise errors.ApiError(
                405, "MethodNotAllowed", f"{request.method} is not supported on {path}"
            )
        stripped = path.rstrip("/") or "/"
        if stripped == "/api" or stripped.startswith(("/api/", "/apis")):
            return self._discover(request, stripped)
        if stripped.startswith("/openapi/"):
            return self._openapi(request, stripped)
        for root in _HEALTH:
            if stripped == root or stripped.startswith(f"{root}/"):
                return self._health(request, stripped, root)
        match stripped:
            case "/version":
                return respond(msgspec.json.encode(version_document()))
            case "/metrics":
                text = self._metrics.render()
                return respond(
                    text.encode(), content_type="text/plain; version=0.0.4; charset=utf-8"
                )
            case "/.well-known/openid-configuration":
                uri = f"https://{request.host}/openid/v1/jwks"
                document = self._server.policy.openid_configuration(uri)
                return respond(msgspec.json.encode(document))
            case "/openid/v1/jwks":
                return respond(
                    msgspec.json.encode(self._server.policy.jwks()),
                    content_type="application/jwk-set+json",
                )
            case "/":
                return respond(msgspec.json.encode({"paths": self._paths()}))
        raise errors.no_such_path()

    def _paths(self) -> list[str]:
        versions = sorted(
            {
                f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}"
                for resource in self._server.table.all()
            }
        )
        return [
            "/api",
            "/apis",
            *versions,
            *_HEALTH,
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/version",
        ]

    def _discover(self, request: web.Request, path: str) -> web.StreamResponse:
        aggregated = ""
        if path in ("/api", "/apis"):
            aggregated = wanted_aggregation(request.headers.get("Accept", ""))
        found = self._discovery.document(path, aggregated=aggregated)
        if found is None:
            raise errors.no_such_path()
        body, etag = found
        content_type = "application/json"
        if aggregated:
            content_type += f";g={AGGREGATED_GROUP};v={aggregated};as={AGGREGATED}"
        headers = {"Vary": "Accept"}
        if aggregated:
            headers["ETag"] = etag
            if request.headers.get("If-None-Match") == etag:
                return web.Response(status=304, headers=headers)
        return respond(body, content_type=content_type, headers=headers)

    def _openapi(self, request: web.Request, path: str) -> web.StreamResponse:
        policy = self._server.policy
        if path == "/openapi/v2":
            accept = request.headers.get("Accept", "")
            offered = [part.split(";")[0].strip() for part in accept.split(",")]
            if not accept or {"application/json", "application/*", "*/*"} & set(offered):
                return respond(policy.openapi_v2())
            if set(openapi_protobuf.MEDIA_TYPES) & set(offered):
                content_type = openapi_protobuf.MEDIA_TYPE
                return respond(policy.openapi_v2_protobuf(), content_type=content_type)
            raise errors.not_acceptable(("application/json", openapi_protobuf.MEDIA_TYPE))
        if path == "/openapi/v3":
            return respond(policy.openapi_v3_index())
        document = policy.openapi_v3(path.removeprefix("/openapi/v3/"))
        if document is None:
            raise errors.no_such_path()
        if "hash" in request.query:
            # The hash names the content, so clients may keep it for as long as they like.
            response = respond(document)
            response.headers["Cache-Control"] = "public, immutable"
            return response
        return respond(document)

    def _health(self, request: web.Request, path: str, root: str) -> web.StreamResponse:
        one = path.removeprefix(root).lstrip("/")
        if one and one not in _CHECKS:
            raise errors.no_such_path()
        if self._server.closing.is_set() and root == "/readyz":
            return respond(b"[-]shutdown failed", 500, content_type="text/plain; charset=utf-8")
        text = "ok"
        if "verbose" in request.query:
            lines = [f"[+]{check} ok" for check in _CHECKS]
            text = "\n".join([*lines, f"{root.lstrip('/')} check passed"]) + "\n"
        return respond(text.encode(), content_type="text/plain; charset=utf-8")


def version_document() -> JsonObject:
    """Return what /version says."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "major": "1",
        "minor": "37",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": f"python{platform.python_version()}",
        "compiler": platform.python_implementation().lower(),
        "platform": f"linux/{machine}",
    }
