"""Aggregated ClusterRoles: the rules of the roles that they select, written down.

In: ClusterRoles. Out: `rules` of those with an aggregationRule. Authorization does not wait for
this (the API server aggregates when it decides); it is for those who read the role.
Source: the Kubernetes documentation "Using RBAC Authorization", section "Aggregated ClusterRoles".
"""

from typing import Any

from localkube.apiserver.rbac import aggregate_rules
from localkube.client.resources import CLUSTER_ROLES
from localkube.controllers.actions import Patch, Plan
from localkube.controllers.loop import Controller

Object = dict[str, Any]


class AggregatedRolesController(Controller):
    """See the module's docstring."""

    name = "clusterrole-aggregation"
    resource = CLUSTER_ROLES

    def enqueue(self, old: Object | None, new: Object | None) -> None:
        """Any role may be part of any aggregate; there are few of them."""
        for role in self.cache.of(CLUSTER_ROLES).items():
            if role.get("aggregationRule"):
                self.queue.add(role["metadata"]["name"])

    def plan(self, key: str) -> Plan | None:
        """Decide about one role."""
        roles = sorted(self.cache.of(CLUSTER_ROLES).items(), key=lambda r: r["metadata"]["name"])
        role = self.cache.of(CLUSTER_ROLES).by_key(key)
        if role is None or not role.get("aggregationRule"):
            return None
        rules = [rule.encode() for rule in aggregate_rules(role, roles)]
        if _as_set(rules) == _as_set(role.get("rules") or []):
            return None
        return Plan([Patch(CLUSTER_ROLES, role, {"rules": rules})])


def _as_set(rules: list[Object]) -> set[str]:
    return {repr(sorted(rule.items())) for rule in rules}
