"""A page that counts over a WebSocket, for the sample of WebSockets through a gateway.

``python -m meltemi_samples.programs.websockets [port]`` (8888): ``/`` is the page, ``/ws`` the WebSocket: it sends a
number a second, and every message back.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools

from aiohttp import web

from meltemi_samples.programs import serving

PORT = 8888
INTERVAL_S = 1.0
PAGE = """<!DOCTYPE html>
<html><head><title>WebSocket sample</title></head>
<body><h1>The server counts: <span id="n">-</span></h1>
<script>
  const where = location.href.replace(/^http/, "ws").replace(/[^/]*$/, "ws");
  new WebSocket(where).onmessage = (event) => { document.getElementById("n").textContent = event.data; };
</script></body></html>
"""


async def page(_request: web.Request) -> web.Response:
    """``GET /``."""
    return web.Response(text=PAGE, content_type="text/html")


async def count(request: web.Request) -> web.WebSocketResponse:
    """``GET /ws``, until the client leaves."""
    connection = web.WebSocketResponse()
    await connection.prepare(request)

    async def numbers() -> None:
        with contextlib.suppress(ConnectionError):  # the client left; the loop below sees it too
            for number in itertools.count():
                await connection.send_str(str(number))
                await asyncio.sleep(INTERVAL_S)

    async with asyncio.TaskGroup() as tasks:
        counting = tasks.create_task(numbers())
        async for message in connection:
            if message.type is web.WSMsgType.TEXT:
                await connection.send_str(message.data)
        counting.cancel()
    return connection


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="websockets")
    parser.add_argument("port", nargs="?", type=int, default=PORT)
    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/ws", count)])
    serving.run(app, parser.parse_args().port)


if __name__ == "__main__":
    main()
