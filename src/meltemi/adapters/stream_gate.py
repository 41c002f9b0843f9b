"""Who may open a stream, how many, how fast, and whether it carries Secrets.

In: verified callers and what their nodes claim. Out: the reason for a refusal, or "". Promises: one pod cannot use up what is there
for all; a reconnecting mesh is let in at a pace that the process can serve, not refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from meltemi.adapters.secret_access import SecretAccess
from meltemi.ca.identity import Identity
from meltemi.discovery.node import mismatch
from meltemi.kit.clock import Clock
from meltemi.kit.limits import TokenBucket
from meltemi.model.proxy import Proxy

STREAMS_PER_CALLER = 16  # a proxy has one; an old one may linger until its keepalive fails
_WAIT_MAX_S = 30.0
# Messages that one stream may send: a proxy answers what it gets, and asks for what is new to it.
MESSAGES_PER_S, MESSAGES_BURST = 200.0, 5_000.0


class StreamGate:
    """One per server. ``per_second`` 0 lets everybody in at once."""

    def __init__(self, clock: Clock, access: SecretAccess, per_second: float = 0.0) -> None:
        self._clock = clock
        self._access = access
        self._pace = TokenBucket(per_second, per_second) if per_second > 0 else None
        self._open: Counter[str] = Counter()

    async def pace(self) -> bool:
        """Wait for this stream's turn; False when that would take too long."""
        wait_s = self._pace.wait_s(self._clock.monotonic()) if self._pace else 0.0
        if wait_s > _WAIT_MAX_S:
            return False
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return True

    def refusal(self, proxy: Proxy, who: Identity | None) -> str:
        """Why this caller may not be this proxy; "" when it may."""
        if who is None:
            return ""
        if why := mismatch(proxy, who.namespace, who.service_account):
            return why
        pod = proxy.id.rpartition(".")[0]
        if who.pod and who.pod != pod:
            return f"the node claims pod {pod!r}, the caller's token is of pod {who.pod!r}"
        return ""

    def enter(self, proxy: Proxy, who: Identity | None) -> bool:
        """Count one more stream; False when this caller has too many."""
        caller = _caller(proxy, who)
        if self._open[caller] >= STREAMS_PER_CALLER:
            return False
        self._open[caller] += 1
        return True

    def leave(self, proxy: Proxy, who: Identity | None) -> None:
        """A stream that entered has ended."""
        caller = _caller(proxy, who)
        self._open[caller] -= 1
        if self._open[caller] <= 0:
            del self._open[caller]

    async def may_have_secrets(self, who: Identity | None) -> bool:
        """Whether Secrets go over this caller's streams."""
        return await self._access.allowed(who)


def _caller(proxy: Proxy, who: Identity | None) -> str:
    return f"{who.spiffe if who else ''}/{proxy.id}"


def message_bucket() -> TokenBucket:
    """For one stream."""
    return TokenBucket(MESSAGES_PER_S, MESSAGES_BURST)
