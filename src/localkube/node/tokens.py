"""Service account tokens of pods, requested from the API server and renewed before they expire.

In: pod, audience, lifetime. Out: the token's bytes. Promises: a token is replaced when 80 % of its
life is over, or after 24 hours (the kubelet's rule); if that fails the old one stays in use.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError
from localkube.client.resources import SERVICE_ACCOUNTS
from localkube.kit import clock
from localkube.node.volumes import VolumeError

_RENEW_AT: Final = 0.8
_OLDEST_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class _Token:
    value: bytes
    renew_at: float  # monotonic seconds


class PodTokens:
    """The tokens of one pod."""

    def __init__(self, client: ApiClient, pod: Mapping[str, Any]) -> None:
        self._client = client
        meta = pod["metadata"]
        self._namespace, self._account = (
            meta["namespace"],
            pod["spec"].get("serviceAccountName") or "default",
        )
        self._bound = {
            "kind": "Pod",
            "apiVersion": "v1",
            "name": meta["name"],
            "uid": meta["uid"],
        }
        self._tokens: dict[tuple[str, int], _Token] = {}
        self._log = structlog.get_logger("localkube.node.tokens")

    async def get(self, audience: str, lifetime_s: int) -> bytes:
        """Return a token that is fresh enough; raise VolumeError if there is none at all."""
        key = (audience, lifetime_s)
        known = self._tokens.get(key)
        if known is not None and clock.monotonic() < known.renew_at:
            return known.value
        try:
            token = await self._request(audience, lifetime_s)
        except (ApiStatusError, ApiConnectionError) as error:
            if known is not None:
                self._log.warning("token not renewed, will retry", error=str(error))
                return known.value
            raise VolumeError(f"failed to fetch token: {error}") from error
        self._tokens[key] = token
        return token.value

    @property
    def due(self) -> bool:
        """Whether a token should be renewed now."""
        now = clock.monotonic()
        return any(now >= token.renew_at for token in self._tokens.values())

    async def _request(self, audience: str, lifetime_s: int) -> _Token:
        spec: dict[str, Any] = {"expirationSeconds": lifetime_s, "boundObjectRef": self._bound}
        if audience:
            spec["audiences"] = [audience]
        answer = await self._client.create(
            SERVICE_ACCOUNTS,
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
            namespace=self._namespace,
            name=self._account,
            subresource="token",
        )
        status = answer["status"]
        life = lifetime_s
        if status.get("expirationTimestamp"):
            end = clock.parse_time(status["expirationTimestamp"])
            life = max(1, int((end - clock.now()).total_seconds()))
        # The jitter keeps all pods from renewing at the same moment.
        renew_in = min(_OLDEST_S, life * _RENEW_AT) - random.uniform(0, 0.02 * life)  # noqa: S311
        return _Token(status["token"].encode(), clock.monotonic() + renew_in)
