"""One leader at a time, handed over cleanly or after silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from istiod.kube_server import KubeServer
from istiod.waiting import until
from meltemi.adapters import leader
from meltemi.adapters.kube_api import KubeApi
from meltemi.adapters.kube_connection import Connection
from meltemi.adapters.leader import Leader
from meltemi.kit.clock import SystemClock
from meltemi.kit.tasks import Tasks

LEASES = "/apis/coordination.k8s.io/v1/leases"


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KubeServer]:
    monkeypatch.setattr(leader, "RENEW_S", 0.02)
    monkeypatch.setattr(leader, "DURATION_S", 1)
    monkeypatch.setattr(leader, "GIVE_UP_S", 0.5)
    server = await KubeServer().start()
    server.serve(LEASES)
    yield server
    await server.stop()


def candidate(api: KubeApi, name: str) -> Leader:
    return Leader(api, SystemClock(), "istio-system", "istio-status-leader", name)


async def test_one_leads_and_hands_over(server: KubeServer) -> None:
    """Of three exactly one leads; when it ends in good order another follows at once."""
    async with KubeApi(Connection(server.url), "istiod") as api, Tasks("test") as tasks:
        candidates = [candidate(api, name) for name in "abc"]
        running = [tasks.spawn(f"leader {i}", c.run) for i, c in enumerate(candidates)]
        await until(lambda: any(c.leading for c in candidates))
        (first,) = [c for c in candidates if c.leading]
        running[candidates.index(first)].cancel()
        rest = [c for c in candidates if c is not first]
        await until(lambda: any(c.leading for c in rest))
        assert not first.leading
        assert sum(c.leading for c in rest) == 1


async def test_a_silent_leader_is_replaced(server: KubeServer) -> None:
    """A leader that died without a word is replaced after its lease was seen unchanged for its duration."""
    async with KubeApi(Connection(server.url), "istiod") as api, Tasks("test") as tasks:
        await server.put(
            LEASES,
            {
                "metadata": {"name": "istio-status-leader", "namespace": "istio-system"},
                "spec": {"holderIdentity": "dead", "leaseDurationSeconds": 1, "renewTime": "x"},
            },
        )
        next_one = candidate(api, "alive")
        tasks.spawn("leader", next_one.run)
        await until(
            lambda: (
                (
                    "GET",
                    f"{LEASES.replace('/leases', '/namespaces/istio-system/leases')}/istio-status-leader",
                    {},
                )
                in server.requests
            )
        )
        assert not next_one.leading
        await until(lambda: next_one.leading)


async def test_a_leader_cut_off_stops(server: KubeServer) -> None:
    """Without an API server it stops leading before others may begin."""
    async with KubeApi(Connection(server.url), "istiod") as api, Tasks("test") as tasks:
        one = candidate(api, "one")
        tasks.spawn("leader", one.run)
        await until(lambda: one.leading)
        await server.stop()
        await until(lambda: not one.leading)
        await asyncio.sleep(0)
