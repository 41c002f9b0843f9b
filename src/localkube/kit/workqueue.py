"""The queue of a controller: keys to reconcile, each at most once at a time.

In: keys, from informer handlers. Out: calls of the reconcile function. Promises: a key that is
added many times while it waits is processed once; a key added while it is processed is processed
again afterwards (never at the same time); a failing key is retried with growing jittered pauses
and does not hold up the others.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from localkube.kit.tasks import Tasks, backoff

_FIRST_RETRY: Final = 0.02  # seconds
_LONGEST_RETRY: Final = 30.0


class WorkQueue:
    """Calls `reconcile(key)` for every added key, with `workers` at the same time."""

    def __init__(
        self, name: str, reconcile: Callable[[str], Awaitable[float | None]], workers: int = 2
    ) -> None:
        """`reconcile` returns None, or the seconds after which it wants to see the key again."""
        self.name = name
        self._reconcile = reconcile
        self._workers = workers
        self._waiting: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks = Tasks(f"queue {name}")
        self._log = structlog.get_logger("localkube.controller").bind(controller=name)

    def start(self) -> None:
        """Begin to process keys."""
        for number in range(self._workers):
            self._tasks.spawn(f"{self.name} worker {number}", self._work, restart=True)

    async def close(self) -> None:
        """Stop; what waits is dropped (the next start lists everything anew)."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await self._tasks.close()

    def add(self, key: str) -> None:
        """Process `key` soon."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._waiting.put_nowait(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Process `key` after a while; the earlier of several such wishes wins."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        known = self._timers.get(key)
        if known is not None:
            if known.when() <= due:
                return
            known.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def idle(self) -> bool:
        """Whether nothing waits or runs now (timers do not count)."""
        return not (self._queued or self._active)

    def _due(self, key: str) -> None:
        self._timers.pop(key, None)
        self.add(key)

    async def _work(self) -> None:
        while True:
            key = await self._waiting.get()
            self._queued.discard(key)
            self._active.add(key)
            try:
                await self._one(key)
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _one(self, key: str) -> None:
        try:
            later = await self._reconcile(key)
        except Exception as error:  # noqa: BLE001 - one bad object must not stop the others
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            level = "debug" if count < 3 else "warning"
            getattr(self._log, level)("reconcile failed", key=key, error=repr(error), tries=count)
            if count == 5:
                self._log.exception("reconcile keeps failing", key=key)
            self.add_after(key, backoff(count, _FIRST_RETRY, _LONGEST_RETRY))
            return
        self._failures.pop(key, None)
        if later is not None:
            self.add_after(key, later)
