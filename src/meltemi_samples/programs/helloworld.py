"""helloworld: says which version and which instance it is.

``python -m meltemi_samples.programs.helloworld [port]`` (5000): ``GET /hello``, ``GET /health``. Environment:
SERVICE_VERSION (v1).
"""

from __future__ import annotations

import argparse
import os
import socket

from aiohttp import web

from meltemi_samples.programs import serving

PORT = 5000


async def hello(_request: web.Request) -> web.Response:
    """``GET /hello``."""
    version = os.environ.get("SERVICE_VERSION", "v1")
    instance = os.environ.get("HOSTNAME", socket.gethostname())
    return web.Response(text=f"Hello version: {version}, instance: {instance}\n")


async def health(_request: web.Request) -> web.Response:
    """``GET /health``."""
    return web.Response(text="Helloworld is healthy\n")


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(prog="helloworld")
    parser.add_argument("port", nargs="?", type=int, default=PORT)
    app = web.Application()
    app.add_routes([web.get("/hello", hello), web.get("/health", health)])
    serving.run(app, parser.parse_args().port)


if __name__ == "__main__":
    main()
