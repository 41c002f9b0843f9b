"""The agent's log: Istio's line format, or JSON, on stdout.

In: level and text. Out: one line each. The standard library only, because the agent must stay small.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

_LEVELS = {"debug": 0, "info": 1, "warning": 2, "warn": 2, "error": 3, "none": 4}


def parse_level(text: str) -> int:
    """The threshold of ``--log_output_level`` (``default:info``, ``info``, ``scope:debug,default:warn``)."""
    chosen = "info"
    for part in text.split(","):
        scope, sign, level = part.rpartition(":")
        if not sign or scope in ("default", "all"):
            chosen = level
    return _LEVELS.get(chosen.strip().lower(), 1)


def make_log(level: str = "info", as_json: bool = False) -> Callable[[str, str], None]:
    """A function ``log(level, text)``."""
    threshold = parse_level(level)

    def log(severity: str, text: str) -> None:
        if _LEVELS.get(severity, 1) < threshold:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        name = "warn" if severity == "warning" else severity
        if as_json:
            line = json.dumps({"level": name, "time": stamp, "msg": text})
        else:
            line = f"{stamp}\t{name}\t{text}"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    return log
