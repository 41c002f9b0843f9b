"""Debounce and merge, with a hand-moved clock."""

from __future__ import annotations

from meltemi.model.config import Key
from meltemi.push.queue import Debounce, PushQueue, PushRequest


def _request(name: str, *, full: bool = True, since: float = 0.0) -> PushRequest:
    return PushRequest(
        frozenset({Key("VirtualService", "d", name)}), full, frozenset({name}), since
    )


def test_a_quiet_period_ends_the_wait() -> None:
    """Each change starts the quiet period anew; the changes come out as one."""
    debounce = Debounce()
    debounce.add(_request("a", since=0.0), 0.0)
    debounce.add(_request("b", since=0.05), 0.05)
    assert debounce.take(0.1) is None
    taken = debounce.take(0.16)
    assert taken is not None
    assert {key.name for key in taken.change if isinstance(key, Key)} == {"a", "b"}
    assert taken.since_s == 0.0
    assert debounce.due_s() is None


def test_constant_change_cannot_starve_the_proxies() -> None:
    """After the longest wait the push goes out, quiet or not."""
    debounce = Debounce(after_s=0.1, max_s=1.0)
    now = 0.0
    while debounce.take(now) is None:
        debounce.add(_request("a"), now)
        now += 0.05
        assert now <= 1.1
    assert now >= 1.0


def test_one_pending_request_per_proxy_first_come_first_served() -> None:
    """Requests for a waiting proxy are merged into its place in the queue."""
    queue = PushQueue()
    queue.put("p1", _request("a", full=False))
    queue.put("p2", _request("a"))
    queue.put("p1", _request("b"))
    assert len(queue) == 2
    first = queue.take()
    assert first is not None
    assert first[0] == "p1"
    assert first[1].full
    assert first[1].reasons == {"a", "b"}


def test_changes_while_a_proxy_is_served_wait_for_it() -> None:
    """No proxy is served twice at once, and nothing is lost."""
    queue = PushQueue()
    queue.put("p1", _request("a"))
    assert queue.take() is not None
    queue.put("p1", _request("b"))
    assert queue.take() is None
    queue.done("p1")
    again = queue.take()
    assert again is not None
    assert again[1].reasons == {"b"}


def test_a_gone_proxy_is_forgotten() -> None:
    """Nothing waits for a closed connection."""
    queue = PushQueue()
    queue.put("p1", _request("a"))
    queue.forget("p1")
    assert queue.take() is None
    queue.done("p1")
