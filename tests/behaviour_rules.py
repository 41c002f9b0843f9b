"""YAML that behaviour tests share."""

from __future__ import annotations

import time
from collections.abc import Callable

# Eject what fails once, at once and for long.
OUTLIER = "outlierDetection: {consecutive5xxErrors: 1, interval: 0.05s, baseEjectionTime: 60s, maxEjectionPercent: 100}"


def two_routes(*matches: str) -> str:
    """A VirtualService for ``reviews`` whose route ``chosen`` has these matches; ``rest`` takes what is left."""
    lines = "".join(f"    - {match}\n" for match in matches)
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: reviews}}
spec:
  hosts: [reviews]
  http:
  - name: chosen
    match:
{lines}    directResponse: {{status: 201}}
  - name: rest
    directResponse: {{status: 202}}
"""


def eventually(check: Callable[[], bool], seconds: float = 5.0) -> None:
    """Fail when ``check`` does not become true in time."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
