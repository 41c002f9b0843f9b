"""Waiting times between attempts: exponential, bounded, spread.

In: how many attempts failed, and a random number from outside. Out: seconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """``base_s`` doubles with each failure up to ``max_s``; ``spread`` is the share that chance adds."""

    base_s: float
    max_s: float
    spread: float = 0.25

    def delay_s(self, failures: int, chance: float) -> float:
        """Seconds to wait after this many failures (from 1); ``chance`` is in [0, 1)."""
        plain = min(self.max_s, self.base_s * 2.0 ** max(0, min(failures, 32) - 1))
        return plain * (1.0 + self.spread * chance)
