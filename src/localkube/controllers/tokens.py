"""Secrets of type kubernetes.io/service-account-token: filled with a token, removed with the account.

In: such Secrets and the ServiceAccounts they name. Out: data token, ca.crt and namespace. Kept for
programs that still ask for long-lived tokens; pods get projected ones from the node.
"""

import base64
from typing import Any, Final

from localkube.client import ApiStatusError
from localkube.client.resources import SECRETS, SERVICE_ACCOUNTS
from localkube.controllers.actions import Delete, Executor, Patch, Plan
from localkube.controllers.cache import BY_NAMESPACE, Cache
from localkube.controllers.loop import Controller
from localkube.controllers.pods import is_terminating

Object = dict[str, Any]
TYPE: Final = "kubernetes.io/service-account-token"
ACCOUNT: Final = "kubernetes.io/service-account.name"
ACCOUNT_UID: Final = "kubernetes.io/service-account.uid"
_LIFETIME: Final = 10 * 365 * 24 * 3600  # seconds; "long-lived" is what these are for


class TokenSecretController(Controller):
    """See the module's docstring."""

    name = "token-secrets"
    resource = SECRETS

    def __init__(self, cache: Cache, executor: Executor, ca_pem: str) -> None:
        self._ca_pem = ca_pem
        super().__init__(cache, executor)

    def watch(self, cache: Cache) -> None:
        """Token Secrets, and ServiceAccounts that come or go."""
        cache.of(SECRETS).on_change(self._on_secret)
        cache.of(SERVICE_ACCOUNTS).on_change(self._on_account)

    def _on_secret(self, old: Object | None, new: Object | None) -> None:
        if new is not None and new.get("type") == TYPE:
            self.enqueue(old, new)

    def _on_account(self, old: Object | None, new: Object | None) -> None:
        if old is not None and new is not None:
            return
        namespace = (new or old or {})["metadata"]["namespace"]
        for secret in self.cache.of(SECRETS).by_index(BY_NAMESPACE, namespace):
            self._on_secret(None, secret)

    def plan(self, key: str) -> Plan | None:
        """Remove a Secret whose account is gone; None if it has to be filled or is right."""
        secret = self.cache.of(SECRETS).by_key(key)
        if secret is None or is_terminating(secret):
            return None
        account = self._account(secret)
        known = (secret["metadata"].get("annotations") or {}).get(ACCOUNT_UID)
        if known and (account is None or account["metadata"]["uid"] != known):
            return Plan([Delete(SECRETS, secret)])
        return None

    def _account(self, secret: Object) -> Object | None:
        name = (secret["metadata"].get("annotations") or {}).get(ACCOUNT)
        namespace = secret["metadata"]["namespace"]
        return self.cache.of(SERVICE_ACCOUNTS).get(name, namespace) if name else None

    async def reconcile(self, key: str) -> float | None:
        """Remove, or fill."""
        plan = self.plan(key)
        if plan is not None:
            await self.executor.run(plan.actions)
            return None
        secret = self.cache.of(SECRETS).by_key(key)
        account = self._account(secret) if secret is not None else None
        if secret is None or account is None or (secret.get("data") or {}).get("token"):
            return None
        meta = account["metadata"]
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": _LIFETIME},
        }
        try:
            answer = await self.executor.client.create(
                SERVICE_ACCOUNTS,
                request,
                namespace=meta["namespace"],
                name=meta["name"],
                subresource="token",
            )
        except ApiStatusError as error:
            if error.not_found:
                return None
            raise
        values = {
            "token": answer["status"]["token"],
            "ca.crt": self._ca_pem,
            "namespace": meta["namespace"],
        }
        data = {name: base64.b64encode(v.encode()).decode() for name, v in values.items()}
        patch = {"metadata": {"annotations": {ACCOUNT_UID: meta["uid"]}}, "data": data}
        await self.executor.run([Patch(SECRETS, secret, patch)])
        return None
