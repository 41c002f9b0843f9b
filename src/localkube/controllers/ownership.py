"""The graph of owners and dependents that garbage collection works on. Pure bookkeeping.

In: objects as they appear, change and go. Out: who depends on whom, by uid.
"""

from dataclasses import dataclass
from typing import Any, Final

from localkube.client import ResourceType

Object = dict[str, Any]
FOREGROUND: Final = "foregroundDeletion"
ORPHAN: Final = "orphan"


@dataclass(frozen=True)
class Node:
    """An object in the graph."""

    resource: ResourceType
    object: Object

    @property
    def uid(self) -> str:
        """metadata.uid."""
        return str(self.object["metadata"]["uid"])

    @property
    def owners(self) -> list[Object]:
        """metadata.ownerReferences."""
        return list(self.object["metadata"].get("ownerReferences") or [])

    @property
    def finalizers(self) -> list[str]:
        """metadata.finalizers."""
        return list(self.object["metadata"].get("finalizers") or [])

    @property
    def deleting(self) -> bool:
        """Whether its deletion has been asked for."""
        return bool(self.object["metadata"].get("deletionTimestamp"))

    @property
    def waits_for_dependents(self) -> bool:
        """Deleted in the foreground: it stays until what blocks it is gone."""
        return self.deleting and FOREGROUND in self.finalizers

    @property
    def orphans_dependents(self) -> bool:
        """Deleted with the wish that its dependents stay."""
        return self.deleting and ORPHAN in self.finalizers


class OwnerGraph:
    """All known objects by uid, and the dependents of each uid."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._dependents: dict[str, set[str]] = {}

    def put(self, resource: ResourceType, obj: Object) -> None:
        """An object has appeared or changed."""
        node = Node(resource, obj)
        self.remove(node.uid)
        self._nodes[node.uid] = node
        for owner in node.owners:
            self._dependents.setdefault(owner["uid"], set()).add(node.uid)

    def remove(self, uid: str) -> None:
        """An object is gone."""
        node = self._nodes.pop(uid, None)
        for owner in node.owners if node is not None else []:
            dependents = self._dependents.get(owner["uid"])
            if dependents is not None:
                dependents.discard(uid)
                if not dependents:
                    del self._dependents[owner["uid"]]

    def get(self, uid: str) -> Node | None:
        """The object of a uid."""
        return self._nodes.get(uid)

    def dependents(self, uid: str) -> list[Node]:
        """The objects that name this uid as an owner."""
        return [self._nodes[dependent] for dependent in sorted(self._dependents.get(uid, ()))]

    def owned(self) -> list[Node]:
        """Every object that has an owner."""
        return [node for node in self._nodes.values() if node.owners]


def blocks(dependent: Node, owner_uid: str) -> bool:
    """Whether the dependent holds up its owner's foreground deletion."""
    return any(
        ref["uid"] == owner_uid and ref.get("blockOwnerDeletion") for ref in dependent.owners
    )


def sort_owners(
    dependent: Node, graph: OwnerGraph, absent: set[str]
) -> tuple[list[Object], list[Object], list[Object]]:
    """A dependent's owner references: (solid, dangling, waiting for their dependents).

    `absent`: uids that are proven not to exist.
    """
    solid: list[Object] = []
    dangling: list[Object] = []
    waiting: list[Object] = []
    for reference in dependent.owners:
        owner = graph.get(reference["uid"])
        if owner is None:
            (dangling if reference["uid"] in absent else solid).append(reference)
        elif owner.waits_for_dependents:
            waiting.append(reference)
        else:
            solid.append(reference)
    return solid, dangling, waiting
