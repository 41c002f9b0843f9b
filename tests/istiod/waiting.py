"""Wait for something that will become true, with a deadline; never for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(what: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until ``what()`` is truthy and return it."""
    deadline = time.monotonic() + seconds
    while True:
        if value := what():
            return value
        assert time.monotonic() < deadline, f"did not happen within {seconds} s: {what}"
        await asyncio.sleep(0.01)
