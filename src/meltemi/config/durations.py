"""Durations as Istio's API writes them (Go's notation: ``1h2m3.5s``, ``250ms``).

``parse_duration``: text -> seconds, or None when it is no duration. ``format_duration`` is its inverse for whole
nanoseconds. Source of the notation: Go's time.ParseDuration, which Kubernetes' CEL ``duration()`` follows.
"""

from __future__ import annotations

import re

_UNITS = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ns": 1e-9,
}
_PART = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ms|us|µs|μs|ns|h|m|s)")
# The same as one anchored pattern, for schemas.
DURATION_PATTERN = r"^-?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ms|us|µs|ns|h|m|s))+$|^0$"
_MAX_S = 315_576_000_000.0  # google.protobuf.Duration: about 10,000 years


def parse_duration(text: str) -> float | None:
    """Seconds; None when ``text`` is not a duration or is out of protobuf's range."""
    if len(text) > 64:
        return None
    body = text.strip()
    sign = 1.0
    if body[:1] in ("-", "+"):
        sign = -1.0 if body[0] == "-" else 1.0
        body = body[1:]
    if body == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(body):
        found = _PART.match(body, at)
        if found is None:
            return None
        total += float(found[1]) * _UNITS[found[2]]
        at = found.end()
    if at == 0 or total > _MAX_S:
        return None
    return sign * round(total, 9)


def format_duration(seconds: float) -> str:
    """``90.0`` -> ``90s``; ``0.25`` -> ``250ms``: for people and for JSON."""
    if seconds != int(seconds) and round(seconds * 1000, 6) == int(seconds * 1000):
        return f"{int(seconds * 1000)}ms"
    text = f"{seconds:.9f}".rstrip("0").rstrip(".")
    return f"{text}s"
