"""A program with a health page, for the samples of probes.

``python -m meltemi_samples.programs.health [port]`` (8001): ``GET /foo`` and ``GET /healthz`` answer 200 until
``POST /fail`` was called, then 500.
"""

from __future__ import annotations

import argparse

from aiohttp import web

from meltemi_samples.programs import serving

PORT = 8001


def make_app() -> web.Application:
    """The whole server."""
    healthy = True

    async def look(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n" if healthy else "failed\n", status=200 if healthy else 500)

    async def fail(_request: web.Request) -> web.Response:
        nonlocal healthy
        healthy = False
        return web.Response(text="from now on the health page fails\n")

    app = web.Application()
    app.add_routes([web.get("/foo", look), web.get("/healthz", look), web.post("/fail", fail)])
    return app


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="health")
    parser.add_argument("port", nargs="?", type=int, default=PORT)
    serving.run(make_app(), parser.parse_args().port)


if __name__ == "__main__":
    main()
