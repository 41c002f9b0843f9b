"""Background work that cannot vanish: every task is named, referenced, and its failure is logged.

In: a name and a coroutine function. Out: a running task. Promises: an exception in a task is
logged once, with its traceback, and then either ends the task or, with `restart=True`, starts it
again after a growing, jittered pause; `close` cancels everything and waits for it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self

import structlog

_FIRST_PAUSE: Final = 0.1  # seconds
_LONGEST_PAUSE: Final = 30.0
_HEALTHY_AFTER: Final = 60.0  # a run this long starts the back-off anew


def backoff(attempt: int, first: float = _FIRST_PAUSE, longest: float = _LONGEST_PAUSE) -> float:
    """Seconds to wait before attempt number `attempt` (0, 1, ...): doubling, half of it random.

    The random half keeps clients that failed together from coming back together.
    """
    full = float(min(longest, first * 2 ** min(attempt, 30)))
    return full / 2 + random.uniform(0, full / 2)  # noqa: S311 - jitter, not a secret


class Tasks:
    """A set of background tasks with one owner. Use it as an async context manager, or `close` it."""

    def __init__(self, owner: str) -> None:
        self._log = structlog.get_logger("localkube.tasks").bind(owner=owner)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def spawn(
        self, name: str, work: Callable[[], Awaitable[None]], *, restart: bool = False
    ) -> asyncio.Task[None]:
        """Run `work()` in the background; with `restart`, again whenever it fails."""
        if self._closed:
            raise RuntimeError(f"task {name!r} started after its owner was closed")
        guarded = self._guard(name, work, restart)
        task = asyncio.get_running_loop().create_task(guarded, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Like `spawn`, for a coroutine that runs once."""
        return self.spawn(name, lambda: work)

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        self._closed = True
        current = asyncio.current_task()
        pending = [task for task in self._tasks if task is not current]
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.gather(*pending, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _guard(self, name: str, work: Callable[[], Awaitable[None]], restart: bool) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await work()
                return
            except asyncio.CancelledError:
                raise
            except Exception:  # noqa: BLE001 - the guard exists to report whatever happens
                self._log.exception("background task failed", task=name, restart=restart)
            if not restart:
                return
            if loop.time() - started > _HEALTHY_AFTER:
                attempt = 0
            await asyncio.sleep(backoff(attempt))
            attempt += 1
