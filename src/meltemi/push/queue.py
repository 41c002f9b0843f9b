"""Debounce and merge, without I/O or clock.

In: changes, each with the time at which it came. Out: when to build the next snapshot, and the merged change; then, per
proxy, at most one pending request. Promises: a quiet period of ``debounce_after_s`` or, under constant change,
``debounce_max_s`` at the latest; first come, first served; nothing is lost by merging.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from meltemi.model.config import Key

DEBOUNCE_AFTER_S = 0.1  # PILOT_DEBOUNCE_AFTER
DEBOUNCE_MAX_S = 10.0  # PILOT_DEBOUNCE_MAX

Change = frozenset[Key | str]


@dataclass(frozen=True, slots=True)
class PushRequest:
    """What waits for one proxy. ``full`` means that a new snapshot exists; otherwise only endpoints changed.

    ``since_s`` is when the oldest change came, for the convergence time.
    """

    change: Change = frozenset()
    full: bool = False
    reasons: frozenset[str] = frozenset()
    since_s: float = 0.0

    def merge(self, later: PushRequest) -> PushRequest:
        """Both requests in one."""
        return PushRequest(
            change=self.change | later.change,
            full=self.full or later.full,
            reasons=self.reasons | later.reasons,
            since_s=min(self.since_s, later.since_s),
        )


@dataclass
class Debounce:
    """Collects changes until they calm down. The caller owns the clock."""

    after_s: float = DEBOUNCE_AFTER_S
    max_s: float = DEBOUNCE_MAX_S
    _pending: PushRequest | None = field(default=None, init=False)
    _first_s: float = field(default=0.0, init=False)
    _last_s: float = field(default=0.0, init=False)

    def add(self, request: PushRequest, now_s: float) -> None:
        """A change came."""
        if self._pending is None:
            self._first_s = now_s
            self._pending = request
        else:
            self._pending = self._pending.merge(request)
        self._last_s = now_s

    def due_s(self) -> float | None:
        """When ``take`` will have something, or None when nothing waits."""
        if self._pending is None:
            return None
        return min(self._last_s + self.after_s, self._first_s + self.max_s)

    def take(self, now_s: float) -> PushRequest | None:
        """The merged change, once it is due."""
        due = self.due_s()
        if due is None or now_s < due:
            return None
        taken, self._pending = self._pending, None
        return taken


class PushQueue:
    """At most one merged request per proxy, in order of arrival.

    A proxy that is being served (``take`` until ``done``) collects what comes meanwhile and queues again after.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._waiting: dict[Hashable, PushRequest] = {}
        self._serving: dict[Hashable, PushRequest | None] = {}

    def __len__(self) -> int:
        """How many proxies wait."""
        return len(self._waiting)

    def put(self, proxy: Hashable, request: PushRequest) -> None:
        """Queue a request, merging it with what waits."""
        if proxy in self._serving:
            held = self._serving[proxy]
            self._serving[proxy] = request if held is None else held.merge(request)
            return
        known = self._waiting.get(proxy)
        self._waiting[proxy] = request if known is None else known.merge(request)

    def take(self) -> tuple[Hashable, PushRequest] | None:
        """The proxy that has waited longest, or None."""
        if not self._waiting:
            return None
        proxy = next(iter(self._waiting))
        self._serving[proxy] = None
        return proxy, self._waiting.pop(proxy)

    def done(self, proxy: Hashable) -> None:
        """The proxy was served; what came meanwhile queues now."""
        held = self._serving.pop(proxy, None)
        if held is not None:
            self.put(proxy, held)

    def forget(self, proxy: Hashable) -> None:
        """The proxy is gone."""
        self._waiting.pop(proxy, None)
        self._serving.pop(proxy, None)
