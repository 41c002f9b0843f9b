"""What the server serves: resources, and the table that finds them by path.

In: the built-in list (see `builtin_resources`) and CRDs as they appear and go. Out: `Resource`
values. Promises that a `Resource` is immutable, and that a lookup costs one dictionary access.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

ALL_VERBS: tuple[str, ...] = (
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
)


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """One of a CRD's additionalPrinterColumns; `json_path` begins with a dot."""

    name: str
    type: str
    json_path: str
    description: str = ""
    format: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One served resource in one version.

    `storage_version` is the version in which objects are stored; `storage` names the collection
    in the store and is the same for all versions of a resource (and for both Event groups).
    `schema_name` is the OpenAPI definition's name, None for a kind without a schema.
    `crd` is whatever the CRD part parsed from the CustomResourceDefinition, None for built-ins.
    `scale_paths` are the JSON paths (spec replicas, status replicas, label selector) of the scale
    subresource.
    """

    group: str
    version: str
    plural: str
    kind: str
    singular: str = ""
    list_kind: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    namespaced: bool = True
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: frozenset[str] = frozenset()
    storage_version: str = ""
    storage: str = ""
    schema_name: str | None = None
    printer_columns: tuple[PrinterColumn, ...] = ()
    scale_paths: tuple[str, str, str] | None = None
    crd: Any = None

    def __post_init__(self) -> None:
        given = object.__setattr__
        if not self.singular:
            given(self, "singular", self.kind.lower())
        if not self.list_kind:
            given(self, "list_kind", f"{self.kind}List")
        if not self.storage_version:
            given(self, "storage_version", self.version)
        if not self.storage:
            given(self, "storage", f"{self.plural}.{self.group}" if self.group else self.plural)

    @property
    def api_version(self) -> str:
        """`group/version`, or the version alone in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`plural.group`, or the plural alone in the core group."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(slots=True)
class ResourceTable:
    """All resources served now. Listeners are told after every change (discovery, OpenAPI)."""

    _by_path: dict[tuple[str, str, str], Resource] = field(default_factory=dict)
    _by_kind: dict[tuple[str, str, str], Resource] = field(default_factory=dict)
    _listeners: list[Callable[[], None]] = field(default_factory=list)
    generation: int = 0

    def lookup(self, group: str, version: str, plural: str) -> Resource | None:
        """Return the resource served at this path, None if there is none."""
        return self._by_path.get((group, version, plural))

    def for_kind(self, group: str, version: str, kind: str) -> Resource | None:
        """Return the resource of this kind, None if there is none."""
        return self._by_kind.get((group, version, kind))

    def versions(self, group: str, plural: str) -> list[Resource]:
        """Return the resource in each of its served versions."""
        return [r for r in self._by_path.values() if r.group == group and r.plural == plural]

    def add(self, *resources: Resource) -> None:
        """Serve these resources from now on; one of the same path is replaced."""
        for resource in resources:
            self._by_path[resource.group, resource.version, resource.plural] = resource
            self._by_kind[resource.group, resource.version, resource.kind] = resource
        self._changed()

    def remove(self, resources: Iterable[Resource]) -> None:
        """Stop serving these resources; unknown ones are ignored."""
        for resource in resources:
            self._by_path.pop((resource.group, resource.version, resource.plural), None)
            self._by_kind.pop((resource.group, resource.version, resource.kind), None)
        self._changed()

    def all(self) -> Iterator[Resource]:
        """Yield every served resource, in the order in which it was added."""
        return iter(tuple(self._by_path.values()))

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each later change."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        self.generation += 1
        for listener in self._listeners:
            listener()
