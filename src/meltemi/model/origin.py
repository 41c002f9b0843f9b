"""Where a value came from, and what is wrong with it.

Origins travel with every configuration value from the YAML line or the cluster object to the piece of
Envoy configuration that it produced. They never take part in equality or hashing, so that two equal
values from two places are the same value to every cache.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """One place in the user's configuration.

    ``path`` is a field path inside the object, in Kubernetes' notation: ``spec.http[0].route[1].weight``.
    ``source`` is a file name, or ``""`` for an object that was read from a cluster. ``line`` and
    ``column`` count from 1; 0 means unknown.
    """

    kind: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    source: str = ""
    line: int = 0
    column: int = 0
    resource_version: str = ""

    def __str__(self) -> str:
        """Render for people: ``file:line`` when known, the object and field otherwise."""
        where = f"{self.kind}/{self.name}" + (f".{self.namespace}" if self.namespace else "")
        if self.path:
            where += f" {self.path}"
        if self.source:
            return (
                f"{self.source}:{self.line} ({where})" if self.line else f"{self.source} ({where})"
            )
        return where


class Level(enum.Enum):
    """How bad a finding is; the order is that of Istio's analysis messages."""

    ERROR = "Error"
    WARNING = "Warning"
    INFO = "Info"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with the user's configuration: data, not an exception.

    ``code`` is stable and never reused (``IST0101`` style for Istio's own messages). ``text`` says what is
    wrong; ``remedy`` what to write instead.
    """

    code: str
    level: Level
    text: str
    origin: Origin = field(default_factory=Origin)
    remedy: str = ""

    def __str__(self) -> str:
        """Render on one line for people."""
        tail = f" ({self.remedy})" if self.remedy else ""
        return f"{self.level.value} [{self.code}] {self.origin}: {self.text}{tail}"
