"""Tell what becomes of a request before it is sent: listener, chain, route, cluster, and the lines that caused each.

In: a ``ProxyIR`` and a pretend ``Request``. Out: an ``Explanation``. Nothing is asked of a running proxy.
"""

from __future__ import annotations

from meltemi.explain.request import Explanation, Request, Step
from meltemi.explain.walk import explain

__all__ = ["Explanation", "Request", "Step", "explain"]
