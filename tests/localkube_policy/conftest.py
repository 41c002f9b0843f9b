"""Fixtures of the policy tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from localkube_policy.policy_world import World


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A cluster in memory; its connections are closed afterwards."""
    made = World()
    yield made
    await made.policy.close()
    made.store.close()
