"""The server's own background work: old Events go, recent ones stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from localkube.apiserver.context import Server
from localkube.apiserver.store import Store
from localkube.apiserver.upkeep import expire_events
from localkube.kit import clock

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def _event(name: str, age: timedelta, **more: Any) -> dict[str, Any]:
    created = clock.rfc3339(NOW - age)
    return {"metadata": {"name": name, "creationTimestamp": created}, **more}


def test_events_expire_by_their_last_occurrence() -> None:
    store = Store(None)
    recent = clock.rfc3339(NOW - timedelta(minutes=1))
    day = timedelta(days=1)
    for event in (
        _event("old", day),
        _event("old-but-repeated", day, lastTimestamp=recent),
        _event("series", day, series={"count": 2, "lastObservedTime": recent}),
        _event("broken-time", day, lastTimestamp="yesterday"),
        _event("new", timedelta(minutes=5)),
    ):
        store.create("events", "a", event["metadata"]["name"], event)
    server = cast(Server, SimpleNamespace(store=store, now=lambda: NOW))
    assert expire_events(server, 3600) == 2
    left = [one.name for one in store.list("events")]
    assert left == ["new", "old-but-repeated", "series"]
    store.close()
