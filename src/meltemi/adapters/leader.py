"""Elect one replica by a Lease.

In: an API server. Out: ``leading``. Promises: at most one leader as long as clocks run at about the same speed
(a lease is taken over only after it was *seen* unchanged for its whole duration, so clocks need not agree);
a leader that cannot renew in time stops leading before others may begin; a clean end gives the lease back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.kit.clock import Clock

log = structlog.get_logger("leader")
DURATION_S = 15
RENEW_S = 5.0
GIVE_UP_S = 10.0  # a leader that has not renewed for so long stops; others begin after DURATION_S


class Leader:
    """One candidate for one Lease."""

    def __init__(
        self, api: KubeApi, clock: Clock, namespace: str, name: str, identity: str
    ) -> None:
        self._api = api
        self._clock = clock
        self._path = collection("coordination.k8s.io/v1", "leases", namespace)
        self._name = name
        self._identity = identity
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._lease: dict[str, Any] = {}
        self.became = asyncio.Event()

    @property
    def leading(self) -> bool:
        """True while this replica holds the lease."""
        return self.became.is_set()

    async def run(self) -> None:
        """Try to lead until cancelled; then give the lease back."""
        try:
            while True:
                try:
                    await self._try()
                except KubeError as error:
                    log.warning("lease not renewed", lease=self._name, error=str(error))
                overdue = self._clock.monotonic() - self._renewed_at > GIVE_UP_S
                if self.leading and overdue:
                    log.warning("leadership given up", lease=self._name)
                    self.became.clear()
                await asyncio.sleep(RENEW_S)
        finally:
            await self._release()

    async def _try(self) -> None:
        now = self._clock.monotonic()
        lease = await self._read()
        if lease is None:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": self._spec({}),
            }
            await self._won(self._write("POST", self._path, body), now)
            return
        spec = lease.get("spec") or {}
        record = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if record != self._seen:
            self._seen, self._seen_at = record, now
        holder = spec.get("holderIdentity") or ""
        length = float(spec.get("leaseDurationSeconds") or DURATION_S)
        if holder in ("", self._identity) or now - self._seen_at >= length:
            lease["spec"] = self._spec(spec)
            await self._won(self._write("PUT", f"{self._path}/{self._name}", lease), now)
        elif self.leading:
            log.warning("another replica leads", lease=self._name, holder=holder)
            self.became.clear()

    async def _won(self, writing: Any, now: float) -> None:
        written = await writing
        if written is None:
            self.became.clear()
            return
        self._lease = written
        self._renewed_at = now
        if not self.leading:
            log.info("leading", lease=self._name, identity=self._identity)
            self.became.set()

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        stamp = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION_S,
            "acquireTime": before.get("acquireTime", stamp) if ours else stamp,
            "renewTime": stamp,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if ours else 1),
        }

    async def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._api.json("GET", f"{self._path}/{self._name}")
        except KubeError as error:
            if error.code == 404:
                return None
            raise
        return found

    async def _write(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """The lease as written; None when another replica was faster."""
        try:
            written: dict[str, Any] = await self._api.json(method, path, body=body)
        except KubeError as error:
            if error.code == 409:
                return None
            raise
        return written

    async def _release(self) -> None:
        if not self.leading:
            return
        self.became.clear()
        spec = {**(self._lease.get("spec") or {}), "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            async with asyncio.timeout(1.0):
                path = f"{self._path}/{self._name}"
                await self._write("PUT", path, {**self._lease, "spec": spec})
        except (KubeError, TimeoutError) as error:
            log.info("lease not given back; it runs out by itself", error=str(error))
