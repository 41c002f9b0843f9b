"""PodDisruptionBudget status: how many pods may be evicted now. The API server enforces it.

In: a budget and the pods of its namespace. Out: the status.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from localkube.client.resources import POD_DISRUPTION_BUDGETS, PODS
from localkube.controllers.actions import Plan, status_patch
from localkube.controllers.cache import BY_NAMESPACE, Cache
from localkube.controllers.labels import matches
from localkube.controllers.loop import Controller
from localkube.controllers.pods import is_active, is_ready, labels_of, with_condition
from localkube.controllers.rollout import resolve_percentage
from localkube.kit import clock

Object = dict[str, Any]


def plan_budget(budget: Object, pods: Iterable[Object], now: datetime) -> Plan:
    """Decide. Percentages round up, as the documentation says."""
    spec = budget["spec"]
    selected = [p for p in pods if is_active(p) and matches(spec.get("selector"), labels_of(p))]
    expected = len(selected)
    healthy = sum(is_ready(pod) for pod in selected)
    if spec.get("minAvailable") is not None:
        desired = resolve_percentage(spec["minAvailable"], expected, round_up=True)
    else:
        gone = resolve_percentage(spec.get("maxUnavailable"), expected, round_up=True)
        desired = max(0, expected - gone)
    allowed = max(0, healthy - desired) if expected else 0
    entry = {
        "type": "DisruptionAllowed",
        "status": "True" if allowed else "False",
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
        "observedGeneration": budget["metadata"].get("generation", 1),
    }
    old = budget.get("status") or {}
    conditions = old.get("conditions") or []
    status = {
        **old,
        "observedGeneration": budget["metadata"].get("generation", 1),
        "expectedPods": expected,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "disruptionsAllowed": allowed,
        "conditions": with_condition(conditions, entry, clock.rfc3339(now)),
    }
    patch = status_patch(POD_DISRUPTION_BUDGETS, budget, status)
    return Plan([patch] if patch is not None else [])


class DisruptionController(Controller):
    """Keeps the status of PodDisruptionBudgets."""

    name = "disruption"
    resource = POD_DISRUPTION_BUDGETS

    def watch(self, cache: Cache) -> None:
        """Budgets, and pods that they select."""
        cache.of(POD_DISRUPTION_BUDGETS).on_change(self.enqueue)
        cache.of(PODS).on_change(self._on_pod)

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        pod = new if new is not None else old
        if pod is None:
            return
        namespace = pod["metadata"]["namespace"]
        for budget in self.cache.of(POD_DISRUPTION_BUDGETS).by_index(BY_NAMESPACE, namespace):
            if matches(budget["spec"].get("selector"), labels_of(pod)):
                self.enqueue(None, budget)

    def plan(self, key: str) -> Plan | None:
        """Decide about one budget."""
        budget = self.cache.of(POD_DISRUPTION_BUDGETS).by_key(key)
        if budget is None:
            return None
        pods = self.cache.of(PODS).by_index(BY_NAMESPACE, key.partition("/")[0])
        return plan_budget(budget, pods, clock.now())
