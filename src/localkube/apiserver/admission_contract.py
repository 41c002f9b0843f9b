"""What the policy parts read of the API server: stored objects, and the operation being decided.

Nothing here does anything: these are the types at which policy and the HTTP core meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from localkube.apiserver.authn import User
    from localkube.apiserver.store import Store

Object = dict[str, Any]
"""A Kubernetes object, or a part of one, as decoded from JSON."""


class ObjectReader(Protocol):
    """Read access to what is stored, by group and plural; the version is the stored one."""

    def read(self, group: str, plural: str, namespace: str | None, name: str) -> Object | None:
        """The object, or None. `namespace` is None for cluster-scoped resources."""

    def read_all(self, group: str, plural: str, namespace: str | None = None) -> Iterable[Object]:
        """All objects of a resource; of one namespace when it is given."""

    def on_change(self, group: str, plural: str, listener: Callable[[], None]) -> None:
        """Call `listener` after every later write to this resource."""


class StoreReader:
    """ObjectReader over the API server's own store. What it returns is shared: never change it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, group: str, plural: str, namespace: str | None, name: str) -> Object | None:
        stored = self._store.get(_storage(group, plural), namespace or "", name)
        return None if stored is None else stored.object

    def read_all(self, group: str, plural: str, namespace: str | None = None) -> Iterable[Object]:
        return [stored.object for stored in self._store.list(_storage(group, plural), namespace)]

    def on_change(self, group: str, plural: str, listener: Callable[[], None]) -> None:
        self._store.subscribe(_storage(group, plural), self._store.revision, listener)


def _storage(group: str, plural: str) -> str:
    return f"{plural}.{group}" if group else plural


class ResourceNames(Protocol):
    """The part of `resources.Resource` that policy needs."""

    @property
    def group(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def plural(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def namespaced(self) -> bool: ...


@dataclass(slots=True)
class Operation:
    """One request that changes something, between authorization and storage.

    `object` is the object as it would be stored (None for DELETE); `old_object` the stored one
    (None for CREATE). `warnings` collects texts for HTTP `Warning: 299` headers.
    """

    verb: str
    """CREATE, UPDATE, DELETE or CONNECT."""
    resource: ResourceNames
    subresource: str
    namespace: str | None
    name: str
    object: Object | None
    old_object: Object | None
    user: User
    dry_run: bool = False
    options: Object = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
