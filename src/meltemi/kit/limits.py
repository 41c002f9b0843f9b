"""Bounds: how often something may happen, and how much may be remembered.

Sans-I/O: the caller passes the time in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TokenBucket:
    """At most ``rate`` events a second on average, ``burst`` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Take one token: seconds until it may be used; 0.0 means at once."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1.0
        return 0.0 if self._tokens >= 0 else -self._tokens / self._rate

    def take(self, now: float) -> bool:
        """Take one token if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class ExpiringMap(Generic[K, V]):
    """Remember values for a while, at most ``limit`` of them; the oldest leave first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K, now: float) -> V | None:
        """The value, unless it has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= now:
            del self._entries[key]
            return None
        return entry[1]

    def put(self, key: K, value: V, expires: float) -> None:
        """Remember ``value`` until the time ``expires``."""
        self._entries[key] = (expires, value)
        self._entries.move_to_end(key)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def __len__(self) -> int:
        """Entries held, expired ones included."""
        return len(self._entries)


class TokenBuckets(Generic[K]):
    """A bucket of its own for each key; at most ``limit`` are remembered, and a forgotten one is full again."""

    def __init__(self, rate: float, burst: float, limit: int = 20_000) -> None:
        self._rate, self._burst = rate, burst
        # After this long without use a bucket is full anyway.
        self._idle_s = burst / rate
        self._buckets: ExpiringMap[K, TokenBucket] = ExpiringMap(limit)

    def take(self, key: K, now: float) -> bool:
        """Take one token of this key's bucket if there is one."""
        bucket = self._buckets.get(key, now) or TokenBucket(self._rate, self._burst)
        self._buckets.put(key, bucket, now + self._idle_s)
        return bucket.take(now)
