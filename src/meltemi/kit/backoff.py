"""How long to wait before trying again.

In: failures and successes. Out: seconds. Doubling with full jitter in the upper half, so that clients that
failed together do not come back together.
"""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Pauses that grow from ``first`` to ``longest`` seconds, half of each random."""

    def __init__(
        self,
        first: float = 0.1,
        longest: float = 30.0,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._first = first
        self._longest = longest
        self._rand = rand
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        full = min(self._longest, self._first * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return full / 2 + full / 2 * self._rand()

    def reset(self) -> None:
        """Start anew: something worked."""
        self._failures = 0
