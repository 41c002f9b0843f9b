"""Policies and keys change while requests come without a pause: not one is lost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from policy.guard import Caller, Guard, policy
from policy.tokens import Issuer, key_set

pytestmark = pytest.mark.envoy
ISSUER = "https://issuer.example"
OLD, NEW = Issuer(ISSUER, "k1"), Issuer(ISSUER, "k2")
CALLER = policy(
    "{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]}",
    name="allow",
)
STRICT = policy("{mtls: {mode: STRICT}}", kind="PeerAuthentication")
REQUIRED = policy("{rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}")


@contextmanager
def load(guard: Guard, token: Callable[[], str] = str) -> Iterator[Callable[[], None]]:
    """Two callers without a pause. Gives a function that waits for more requests; in the end all were answered 200."""
    met: Counter[object] = Counter()
    over = threading.Event()

    def visit() -> None:
        while not over.wait(0.005):
            try:
                met[guard.send(Caller(), "/orders", token=token()).status] += 1
            except OSError as error:
                met[repr(error)] += 1

    threads = [threading.Thread(target=visit) for _ in range(2)]

    def more() -> None:
        wanted = met.total() + 10
        while met.total() < wanted and any(thread.is_alive() for thread in threads):
            over.wait(0.01)

    for thread in threads:
        thread.start()
    try:
        more()
        yield more
        more()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert set(met) == {200}, met


def test_a_change_of_policies_loses_no_request(guard: Guard) -> None:
    """Rules for what the callers do not do come, change and go; what they do is allowed throughout."""
    guard.apply(CALLER)
    with load(guard) as more:
        for number in range(2):
            paths = f"{{action: DENY, rules: [{{to: [{{operation: {{paths: [/p{number}]}}}}]}}]}}"
            guard.apply(CALLER + policy(paths, name="deny"))
            more()
            guard.apply(CALLER + STRICT)
            more()
            guard.apply()


def keys(*issuers: Issuer) -> str:
    """A RequestAuthentication that takes tokens signed with any of these keys, and a policy that wants one."""
    rules = f"{{jwtRules: [{{issuer: '{ISSUER}', jwks: '{key_set(*issuers)}'}}]}}"
    return REQUIRED + policy(rules, name="tokens", kind="RequestAuthentication")


def test_an_exchange_of_the_issuers_keys_loses_no_request(guard: Guard) -> None:
    """The new key beside the old one, then tokens of the new one, then the new key alone."""
    guard.apply(keys(OLD))
    token = [OLD.token()]
    with load(guard, lambda: token[0]) as more:
        guard.apply(keys(OLD, NEW))
        more()
        token[0] = NEW.token()
        more()
        guard.apply(keys(NEW))
    assert guard.send(Caller(), token=OLD.token()).status == 401
