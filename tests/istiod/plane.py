"""A whole control plane in this process, on free ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from istiod.waiting import until
from meltemi.adapters.kube_connection import Connection
from meltemi.programs.control_plane import ControlPlane
from meltemi.programs.control_plane_options import Options

ANY = "127.0.0.1:0"
LOCAL = Options(
    http=ANY,
    monitoring=ANY,
    https=ANY,
    grpc=ANY,
    secure_grpc=ANY,
    mtls_grpc=ANY,
    registries=(),
    cacerts=Path("/nonexistent"),
    shutdown_s=2.0,
    debounce_after_s=0.01,
)


@asynccontextmanager
async def running(
    options: Options = LOCAL, kube: Connection | None = None
) -> AsyncIterator[ControlPlane]:
    """Start, wait until it is ready, stop."""
    stop = asyncio.Event()
    plane = ControlPlane(options, kube)
    task = asyncio.ensure_future(plane.run(stop))
    try:
        await until(lambda: task.done() or plane.ready)
        if task.done():
            task.result()
        yield plane
    finally:
        stop.set()
        async with asyncio.timeout(20):
            await task


def files(folder: Path, **changes: object) -> Options:
    """Options for a folder of YAML."""
    return replace(LOCAL, config_dir=folder, **changes)  # type: ignore[arg-type]
