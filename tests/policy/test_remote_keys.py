"""Key sets at an address, fetched by the proxy or by istiod: unreachable at first, exchanged under load, unreachable again."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from envoy_rig import wait_for
from meltemi.adapters.issuer_discovery import IssuerDiscovery
from meltemi.adapters.metrics import Metrics
from meltemi.adapters.world import Change, World
from meltemi.kit.clock import SystemClock
from meltemi.model.config import Key
from meltemi.push.issuer_keys import NO_ISSUER_KEYS, IssuerKeys
from policy.guard import Caller, Guard, policy
from policy.test_changes_under_load import NEW, OLD, REQUIRED, load
from policy.tokens import Issuer, KeyServer, key_set

pytestmark = pytest.mark.envoy
REFRESH_S = 0.2


@contextmanager
def istiod(guard: Guard, rules: str) -> Iterator[None]:
    """istiod's part: it asks the issuers all the time, and the proxy gets what it found."""
    world = World(issuer_keys=IssuerKeys(by_proxies=False))
    for number, config in enumerate(guard.build(rules).context.configs["RequestAuthentication"]):
        world.put_config(Key(config.kind, "default", str(number)), config)
    finder = IssuerDiscovery(world, Metrics(), SystemClock(), REFRESH_S)

    def tell(_: Change) -> None:
        guard.issuer_keys = world.issuer_keys
        guard.apply(rules)

    world.listener = tell
    loop = asyncio.new_event_loop()
    task = loop.create_task(finder.run())
    thread = threading.Thread(target=loop.run_forever)
    guard.issuer_keys = world.issuer_keys
    guard.apply(rules)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        guard.issuer_keys = NO_ISSUER_KEYS


@contextmanager
def proxy(guard: Guard, rules: str) -> Iterator[None]:
    """The proxy does it alone."""
    guard.issuer_keys = IssuerKeys(refresh_s=REFRESH_S)
    guard.apply(rules)
    try:
        yield
    finally:
        guard.issuer_keys = NO_ISSUER_KEYS


def accepted(guard: Guard, issuer: Issuer) -> bool:
    """A token that this key signed is good."""
    return guard.send(Caller(), token=issuer.token()).status == 200


# Every filter chain of the three ports asks for itself.
@pytest.mark.parametrize(
    ("fetches", "askers"), [(proxy, 6), (istiod, 1)], ids=["proxies fetch", "istiod fetches"]
)
def test_an_exchange_of_keys_loses_no_request(
    guard: Guard, issuer_server: KeyServer, fetches: Any, askers: int
) -> None:
    """Nobody answers at first, then the old key, both, and the new key alone; tokens of both are used while both hold.

    An issuer that does not answer afterwards takes nothing away.
    """
    address = f"{issuer_server.url}/keys"
    rules = REQUIRED + policy(
        f"{{jwtRules: [{{issuer: '{OLD.name}', jwksUri: '{address}'}}]}}",
        name="tokens",
        kind="RequestAuthentication",
    )
    tokens = itertools.cycle([OLD.token()])
    with fetches(guard, rules):
        assert not accepted(guard, OLD)
        assert guard.send(Caller()).status == 403
        issuer_server.keys = OLD.keys.encode()
        wait_for("the first keys", lambda: accepted(guard, OLD))
        with load(guard, lambda: next(tokens)) as more:
            issuer_server.keys = key_set(OLD, NEW).encode()
            wait_for("the new key", lambda: accepted(guard, NEW))
            tokens = itertools.cycle([OLD.token(), NEW.token()])
            more()
            tokens = itertools.cycle([NEW.token()])
            more()
            issuer_server.keys = NEW.keys.encode()
            wait_for("the end of the old key", lambda: not accepted(guard, OLD))
            more()
            issuer_server.keys = b""
            asked = issuer_server.asked
            wait_for("questions in vain", lambda: issuer_server.asked > asked + askers)
            more()
