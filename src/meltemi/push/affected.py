"""Which proxies, and which resource types, a change can concern.

In: the keys of changed objects and the hostnames of changed services. Out: a predicate over proxies and a set of
xDS types. Errs on the safe side: a proxy that is named here without need costs a translation of its (shared)
class, and the comparison of versions keeps it off the wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meltemi.model.config import Key
from meltemi.model.names import CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE
from meltemi.model.proxy import NodeType, Proxy
from meltemi.push.context import PushContext

ALL_TYPES = frozenset({CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE})
_BY_KIND: dict[str, frozenset[str]] = {
    "VirtualService": frozenset({LDS_TYPE, RDS_TYPE}),
    # Consistent hashing puts a policy on routes; subsets and localities change endpoints.
    "DestinationRule": frozenset({CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE}),
    "Gateway": frozenset({LDS_TYPE, RDS_TYPE, SDS_TYPE, CDS_TYPE}),
    "PeerAuthentication": frozenset({LDS_TYPE, CDS_TYPE, EDS_TYPE}),
    "AuthorizationPolicy": frozenset({LDS_TYPE}),
    "RequestAuthentication": frozenset({LDS_TYPE, RDS_TYPE, CDS_TYPE}),
    "Telemetry": frozenset({LDS_TYPE, RDS_TYPE}),
    "Secret": frozenset({SDS_TYPE}),
}
# Kinds that apply to the proxies of their own namespace only (all namespaces, when it is the root namespace).
_LOCAL = frozenset(
    {
        "AuthorizationPolicy",
        "RequestAuthentication",
        "Telemetry",
        "EnvoyFilter",
        "Sidecar",
        "WasmPlugin",
    }
)
_NONE_FOR_PROXIES = frozenset({"WorkloadGroup", "ProxyConfig"})


@dataclass(frozen=True, slots=True)
class Affected:
    """The answer. ``namespaces`` None means all."""

    types: frozenset[str] = frozenset()
    namespaces: frozenset[str] | None = frozenset()
    node_types: frozenset[NodeType] = frozenset(NodeType)
    router_namespaces: frozenset[str] | None = frozenset()

    def concerns(self, proxy: Proxy) -> bool:
        """Whether this proxy must be looked at."""
        if proxy.type is NodeType.ROUTER and self.router_namespaces is None:
            return True
        if proxy.type is NodeType.ROUTER and proxy.namespace in (self.router_namespaces or ()):
            return True
        return self.namespaces is None or proxy.namespace in self.namespaces

    def __or__(self, other: Affected) -> Affected:
        """Both changes together."""
        return Affected(
            types=self.types | other.types,
            namespaces=_union(self.namespaces, other.namespaces),
            router_namespaces=_union(self.router_namespaces, other.router_namespaces),
        )


def _union(one: frozenset[str] | None, two: frozenset[str] | None) -> frozenset[str] | None:
    return None if one is None or two is None else one | two


NOBODY = Affected()
EVERYBODY = Affected(types=ALL_TYPES, namespaces=None, router_namespaces=None)


def _of_key(key: Key, context: PushContext) -> Affected:
    if key.kind in _NONE_FOR_PROXIES:
        return NOBODY
    types = _BY_KIND.get(key.kind, ALL_TYPES)
    if key.kind == "Gateway":
        return Affected(types=types, router_namespaces=None)
    if key.kind == "Secret":
        here = frozenset({key.namespace})
        sidecars = here if _names_secrets(context, key.namespace) else frozenset()
        return Affected(types=types, namespaces=sidecars, router_namespaces=here)
    if key.kind in _LOCAL and key.namespace != context.root_namespace:
        return Affected(types=types, namespaces=frozenset({key.namespace}))
    return Affected(types=types, namespaces=None, router_namespaces=None)


def _names_secrets(context: PushContext, namespace: str) -> bool:
    """Whether sidecars of a namespace may have Secrets: a rule that selects them may name some."""
    return any(
        rule.meta.namespace == namespace and rule.spec.workload_selector is not None
        for rule in context.destination_rules
    )


def affected(change: Iterable[Key | str], context: PushContext) -> Affected:
    """Who must hear of ``change``: keys of objects, hostnames of services."""
    answer = NOBODY
    for entry in change:
        if isinstance(entry, str):
            return EVERYBODY
        answer |= _of_key(entry, context)
    return answer
