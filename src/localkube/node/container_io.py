"""A container's first process with its input and output: descriptors in, log lines out.

In: a way to start the process, and its log. Out: the process, the write end of its stdin if the pod
asks for one (the caller closes it), and a future that is done when the last output is in the log.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Final

from localkube.node.logs import LogFile, PipeReader
from localkube.node.runtime.processes import Process, ProcessSpec
from localkube.node.runtime.rootfs import Plan

# A background process that outlives its container may hold a pipe open; it is killed meanwhile.
_DRAIN_S: Final = 1.0

Start = Callable[[ProcessSpec, Plan, tuple[int, int, int] | None], Awaitable[Process]]
Spawned = tuple[Process, int | None, asyncio.Future[None]]


async def spawn_logged(
    start: Start, spec: ProcessSpec, plan: Plan, log: LogFile, wants_stdin: bool
) -> Spawned:
    """Start ``spec`` so that all it prints goes to ``log``. Raises StartError."""
    if spec.tty:
        process = await start(spec, plan, None)
        assert process.terminal is not None
        stdin = os.dup(process.terminal) if wants_stdin else None
        readers = [PipeReader(process.terminal, "stdout", log)]
        return process, stdin, asyncio.ensure_future(_finish(process, readers))
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    if wants_stdin:
        in_read, in_write = os.pipe2(os.O_CLOEXEC)
    else:
        in_read, in_write = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
    try:
        process = await start(spec, plan, (in_read, out_write, err_write))
    except BaseException:
        for fd in (out_read, err_read, in_write):
            if fd >= 0:
                os.close(fd)
        raise
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    stdin = in_write if in_write >= 0 else None
    readers = [PipeReader(out_read, "stdout", log), PipeReader(err_read, "stderr", log)]
    return process, stdin, asyncio.ensure_future(_finish(process, readers))


async def _finish(process: Process, readers: list[PipeReader]) -> None:
    await process.exited
    await asyncio.wait([reader.finished for reader in readers], timeout=_DRAIN_S)
    for reader in readers:
        reader.close()
