"""What several tests of istiod share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web


@pytest.fixture
async def backends() -> AsyncIterator[dict[str, int]]:
    """Two HTTP servers that say who they are."""
    runners, ports = [], {}
    for name in ("one", "two"):

        async def answer(_: web.Request, name: str = name) -> web.Response:
            return web.Response(text=name)

        app = web.Application()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        ports[name] = runner.addresses[0][1]
    yield ports
    for runner in runners:
        await runner.cleanup()
