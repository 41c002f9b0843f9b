"""Serve ``/ready``, ``/debug`` (8080, 15014), ``/metrics`` and ``/version`` (15014) over HTTP.

Debug pages show the mesh's whole configuration, so they answer on loopback (port-forward, exec) or to a bearer
token of the mesh's own namespace.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web

from meltemi.adapters.authenticate import CannotReview, Reviewer, bearer_of
from meltemi.adapters.debug_pages import DebugPages, NoSuchPage
from meltemi.adapters.metrics import CONTENT_TYPE, Metrics
from meltemi.ca.identity import NotAuthenticated
from meltemi.kit import logs

log = structlog.get_logger("debug")
GO_LIKE = {"version": "", "revision": "", "golang_version": "", "status": "Clean", "tag": ""}


class DebugHttp:
    """The handlers of both ports."""

    def __init__(
        self,
        pages: DebugPages,
        metrics: Metrics,
        ready: Callable[[], bool],
        reviewer: Reviewer | None,
        namespace: str,
        version: str,
        refresh: Callable[[], None],
    ) -> None:
        """``refresh`` updates gauges that are computed when somebody looks."""
        self._pages = pages
        self._metrics = metrics
        self._ready = ready
        self._reviewer = reviewer
        self._namespace = namespace
        self._version = version
        self._refresh = refresh

    def main_application(self) -> web.Application:
        """Port 8080."""
        app = web.Application()
        app.router.add_get("/ready", self._get_ready)
        self._add_debug(app)
        return app

    def monitoring_application(self) -> web.Application:
        """Port 15014."""
        app = web.Application()
        app.router.add_get("/metrics", self._get_metrics)
        app.router.add_get("/version", self._get_version)
        self._add_debug(app)
        return app

    def _add_debug(self, app: web.Application) -> None:
        app.router.add_get("/debug", self._get_debug)
        app.router.add_get("/debug/{page:.*}", self._get_debug)
        app.router.add_get("/scopej/{rest:.*}", self._get_scopes)
        app.router.add_put("/scopej/{scope}", self._put_scope)

    async def _get_ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._ready() else 503)

    async def _get_metrics(self, _: web.Request) -> web.Response:
        self._refresh()
        return web.Response(body=self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})

    async def _get_version(self, _: web.Request) -> web.Response:
        info = {**GO_LIKE, "version": self._version, "tag": self._version}
        return web.json_response(info)

    async def _refused(self, request: web.Request) -> web.Response | None:
        if ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
            return None
        token = bearer_of([("authorization", request.headers.get("Authorization", ""))])
        if not token or self._reviewer is None:
            return web.Response(status=401, text="debug pages need loopback or a bearer token\n")
        try:
            who = await self._reviewer.review(token)
        except NotAuthenticated as error:
            return web.Response(status=401, text=f"{error}\n")
        except CannotReview as error:
            return web.Response(status=503, text=f"{error}\n")
        if who.namespace != self._namespace:
            text = f"debug pages need a service account of namespace {self._namespace}\n"
            return web.Response(status=403, text=text)
        return None

    async def _get_debug(self, request: web.Request) -> web.Response:
        if (refused := await self._refused(request)) is not None:
            return refused
        name = request.match_info.get("page", "")
        if not name:
            index = {f"/debug/{n}": page.text for n, page in self._pages.pages.items()}
            return web.json_response(index)
        try:
            body = self._pages.render(f"{name}?{request.query_string}")
        except NoSuchPage as error:
            return web.Response(status=404, text=f"{error}\n")
        return web.Response(body=body, content_type="application/json")

    async def _get_scopes(self, request: web.Request) -> web.Response:
        if (refused := await self._refused(request)) is not None:
            return refused
        return web.json_response(
            [{"name": n, "level": v} for n, v in sorted(logs.levels().items())]
        )

    async def _put_scope(self, request: web.Request) -> web.Response:
        """Change a scope's log level: ``{"output_level": "debug"}``, as istioctl admin log does."""
        if (refused := await self._refused(request)) is not None:
            return refused
        try:
            body: Any = await request.json()
            level = str(body.get("output_level", ""))
            logs.set_levels(logs.parse_levels(f"{request.match_info['scope']}:{level}"))
        except (ValueError, AttributeError) as error:
            return web.Response(status=400, text=f"{error}\n")
        return web.Response(status=202)
