"""The one place that reads the clock, so that everything else can be given the time.

Out: aware UTC datetimes and Kubernetes' time strings.
"""

import time
from datetime import UTC, datetime


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)  # noqa: TID251 - this is the wrapper the rule asks for


def monotonic() -> float:
    """Seconds on a clock that never goes back; only differences mean anything."""
    return time.monotonic()


def rfc3339(moment: datetime) -> str:
    """metav1.Time: whole seconds, `2026-01-02T03:04:05Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(moment: datetime) -> str:
    """metav1.MicroTime: `2026-01-02T03:04:05.000006Z` (Leases and Events use it)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime:
    """Time or MicroTime text -> aware datetime. Raises ValueError if it is neither."""
    return datetime.fromisoformat(text)
