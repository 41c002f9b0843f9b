"""Background work that cannot vanish: every task is named, referenced, and its failure is logged.

In: a name and a coroutine function. Out: a running task. Promises: an exception in a task is logged once
with its traceback, and then ends the task or, with ``restart``, starts it again after a growing, jittered
pause; ``close`` cancels everything and waits for it. This is the only broad ``except`` of a program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

import structlog

from meltemi.kit.backoff import Backoff

_HEALTHY_AFTER_S = 60.0  # a run this long starts the back-off anew


class Tasks:
    """A set of background tasks with one owner. Use it as an async context manager, or ``close`` it."""

    def __init__(self, owner: str) -> None:
        self._log = structlog.get_logger("tasks").bind(owner=owner)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def spawn(
        self, name: str, work: Callable[[], Awaitable[None]], *, restart: bool = False
    ) -> asyncio.Task[None]:
        """Run ``work()`` in the background; with ``restart``, again whenever it fails."""
        assert not self._closed, f"task {name!r} started after its owner was closed"
        task = asyncio.get_running_loop().create_task(self._guard(name, work, restart), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        self._closed = True
        current = asyncio.current_task()
        pending = [task for task in self._tasks if task is not current]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)

    async def __aenter__(self) -> Tasks:
        """The set itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def _guard(self, name: str, work: Callable[[], Awaitable[None]], restart: bool) -> None:
        backoff = Backoff()
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await work()
                return
            except asyncio.CancelledError:
                raise
            except Exception:  # noqa: BLE001 - the task guard
                self._log.exception("task failed", task=name, restart=restart)
            if not restart:
                return
            if loop.time() - started > _HEALTHY_AFTER_S:
                backoff.reset()
            await asyncio.sleep(backoff.next())
