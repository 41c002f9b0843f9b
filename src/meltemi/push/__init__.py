"""Snapshots of the world, and who must hear of a change."""

from __future__ import annotations

from meltemi.push.affected import Affected, affected
from meltemi.push.classes import ProxyClass, class_key
from meltemi.push.context import PushContext, build_push_context
from meltemi.push.queue import PushQueue

__all__ = [
    "Affected",
    "ProxyClass",
    "PushContext",
    "PushQueue",
    "affected",
    "build_push_context",
    "class_key",
]
