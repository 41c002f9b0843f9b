"""Decide whether a user may do what a request asks.

In: a user, the request's attributes and the stored RBAC objects. Out: a Decision. Promises to read
only, to allow members of system:masters everything, and to answer from an index that is rebuilt
only after an RBAC object changed. The rules of roles are in `rbac`, those of nodes in `rbac_node`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from localkube.apiserver import rbac, rbac_node

if TYPE_CHECKING:
    from localkube.apiserver.admission_contract import ObjectReader
    from localkube.apiserver.authn import User

MASTERS_GROUP = "system:masters"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a request wants. `path` is set (and the rest empty) for non-resource requests.

    `name` of a list or watch is the one that a `metadata.name=` field selector asks for.
    """

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def qualified_resource(self) -> str:
        """`pods` or `pods/log`, as rules write it."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str = ""


class Authorizer:
    """RBAC, node and superuser authorization over one store."""

    def __init__(self, reader: ObjectReader) -> None:
        self._reader = reader
        self._index: rbac.RbacIndex | None = None
        for plural in rbac.PLURALS:
            reader.on_change(rbac.GROUP, plural, self._forget_index)

    def _forget_index(self) -> None:
        self._index = None

    @property
    def index(self) -> rbac.RbacIndex:
        """The current RBAC index, rebuilt here after a change."""
        if self._index is None:
            self._index = rbac.RbacIndex.build(self._reader)
        return self._index

    def authorize(self, user: User, attributes: Attributes) -> Decision:
        """The decision; `reason` says which binding allowed it, or why a node may not."""
        if MASTERS_GROUP in user.groups:
            return Decision(True)
        node_reason = ""
        node = rbac_node.node_of(user)
        if node is not None:
            allowed, node_reason = rbac_node.authorize_node(self._reader, node, attributes)
            if allowed:
                return Decision(True)
        reason = self.index.allows(user, attributes)
        if reason is not None:
            return Decision(True, reason)
        return Decision(False, node_reason)


def denial_message(user: User, attributes: Attributes, reason: str = "") -> str:
    """Kubernetes' text for a 403, e.g. `pods "a" is forbidden: User "jane" cannot get resource ...`.

    https://kubernetes.io/docs/reference/access-authn-authz/authorization/ shows the wording.
    """
    suffix = f": {reason}" if reason else ""
    if attributes.path:
        return f'forbidden: User "{user.name}" cannot {attributes.verb} path "{attributes.path}"{suffix}'
    where = (
        f'in the namespace "{attributes.namespace}"'
        if attributes.namespace
        else "at the cluster scope"
    )
    qualified = attributes.resource
    if attributes.group:
        qualified += f".{attributes.group}"
    subject = f'{qualified} "{attributes.name}"' if attributes.name else qualified
    return (
        f'{subject} is forbidden: User "{user.name}" cannot {attributes.verb} resource '
        f'"{attributes.qualified_resource}" in API group "{attributes.group}" {where}{suffix}'
    )
