"""One configuration object, whatever it came from.

``Config`` is what leaves the config stage: metadata, a typed frozen ``spec`` (see ``traffic``, ``security``,
``telemetry``, ``mesh``; for Kubernetes objects ``kubernetes``) and the lines that its values stood on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from meltemi.model.frozen import FrozenMap
from meltemi.model.origin import Origin

SpecT = TypeVar("SpecT", covariant=True)

EMPTY: Mapping[str, str] = FrozenMap()


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Identity of a configuration object. ``kind`` is the CamelCase kind; groups never clash here."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Meta:
    """The part of Kubernetes metadata that the mesh reads.

    ``created`` is seconds since the epoch (0.0 when unknown): Istio's precedence is oldest first, then by
    name, then by namespace. ``generation`` feeds ``status.observedGeneration``.
    """

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    annotations: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    created: float = 0.0
    generation: int = 0
    resource_version: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """The part of an object's status that the mesh itself reads.

    ``addresses``: (host, address) that a ServiceEntry was given before; they stay its own. ``healthy``: what the agent of
    a WorkloadEntry found, None when it has not said.
    """

    addresses: tuple[tuple[str, str], ...] = ()
    healthy: bool | None = None


NO_STATUS = Status()


@dataclass(frozen=True, slots=True)
class SourceMap:
    """Lines of one object: field path -> (line, column). Empty for objects from a cluster."""

    source: str = ""
    lines: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config(Generic[SpecT]):
    """A valid, defaulted configuration object.

    Equality ignores ``resource_version`` only where the stores choose to (see push); ``source_map`` never
    takes part in it.
    """

    kind: str
    meta: Meta
    spec: SpecT
    source_map: SourceMap = field(default_factory=SourceMap, compare=False, repr=False)
    # Set on objects that were converted (from an Ingress, a Gateway API route): what people wrote.
    written_as: Origin | None = field(default=None, compare=False, repr=False)
    status: Status = NO_STATUS
    # Set on objects that were joined from several: where a field's parts were written, by its path.
    joined: Mapping[str, tuple[Origin, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def key(self) -> Key:
        """The identity of this object."""
        return Key(self.kind, self.meta.namespace, self.meta.name)

    def origins(self, path: str) -> tuple[Origin, ...]:
        """All places of a field, the most telling first: several where objects were joined."""
        return self.joined.get(path) or (self.origin(path),)

    def origin(self, path: str = "spec") -> Origin:
        """The place of a field. Falls back to the nearest enclosing field whose line is known."""
        if self.written_as is not None:
            return self.written_as
        line, column = 0, 0
        probe = path
        while probe:
            if probe in self.source_map.lines:
                line, column = self.source_map.lines[probe]
                break
            cut = max(probe.rfind("."), probe.rfind("["))
            probe = probe[:cut] if cut > 0 else ""
        return Origin(
            kind=self.kind,
            namespace=self.meta.namespace,
            name=self.meta.name,
            path=path,
            source=self.source_map.source,
            line=line,
            column=column,
            resource_version=self.meta.resource_version,
        )


AnyConfig = Config[Any]
