"""Which callers may have their namespace's Secrets: those that the cluster itself would let read them.

In: a verified identity. Out: yes or no, from a SubjectAccessReview ("may this service account list Secrets in its own namespace?"), as
Istio asks it. A workload that merely calls itself a gateway has no such right, whatever labels it claims. Answers are kept for a minute; while the API server is away the last answer holds, and who has none gets nothing.
"""

from __future__ import annotations

from typing import Any

import structlog

from meltemi.adapters.kube_api import KubeApi, KubeError
from meltemi.ca.identity import Identity
from meltemi.kit.clock import Clock
from meltemi.kit.limits import ExpiringMap

REVIEW_PATH = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
KEEP_S = 60.0
_REMEMBER_S = 24 * 3600.0
_ACCOUNTS_MAX = 10_000
Account = tuple[str, str]

log = structlog.get_logger("ads")


class SecretAccess:
    """Asks the API server, once per account and minute. Without one (files, tests) every verified caller may."""

    def __init__(self, api: KubeApi | None, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._known: ExpiringMap[Account, tuple[float, bool]] = ExpiringMap(_ACCOUNTS_MAX)

    async def allowed(self, who: Identity | None) -> bool:
        """Whether this caller may have the Secrets of its namespace that its configuration names."""
        if who is None or self._api is None:
            return who is not None
        account = (who.namespace, who.service_account)
        now = self._clock.monotonic()
        known = self._known.get(account, now)
        if known is not None and now - known[0] < KEEP_S:
            return known[1]
        try:
            found = await self._ask(self._api, account)
        except KubeError as error:
            log.warning("access to Secrets not reviewed", account=account, error=str(error))
            return known is not None and known[1]
        if known is None or known[1] != found:
            log.info("access to Secrets reviewed", account=account, allowed=found)
        self._known.put(account, (now, found), now + _REMEMBER_S)
        return found

    async def _ask(self, api: KubeApi, account: Account) -> bool:
        namespace, name = account
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{name}",
                "groups": [
                    "system:authenticated",
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{namespace}",
                ],
                "resourceAttributes": {
                    "namespace": namespace,
                    "verb": "list",
                    "resource": "secrets",
                },
            },
        }
        answer: dict[str, Any] = await api.json("POST", REVIEW_PATH, body=body)
        return (answer.get("status") or {}).get("allowed") is True
