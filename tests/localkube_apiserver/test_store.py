"""The store: revisions, durability, the window of changes, and full disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from localkube.apiserver.store import (
    AlreadyExistsError,
    ExpiredError,
    MissingError,
    StaleError,
    StorageFullError,
    Store,
    UnreadableStateError,
)


def _object(name: str, **more: object) -> dict[str, object]:
    return {"metadata": {"name": name}, **more}


def test_every_write_takes_the_next_revision() -> None:
    store = Store(None)
    first = store.create("pods", "a", "x", _object("x"))
    second = store.update("pods", "a", "x", _object("x", n=1), first.revision)
    last = store.delete("pods", "a", "x", second.revision)
    assert (first.revision, second.revision, last.revision) == (1, 2, 3)
    assert last.object["metadata"]["resourceVersion"] == "3"
    assert store.get("pods", "a", "x") is None
    store.close()


def test_writes_check_what_they_expect() -> None:
    store = Store(None)
    store.create("pods", "a", "x", _object("x"))
    with pytest.raises(AlreadyExistsError):
        store.create("pods", "a", "x", _object("x"))
    with pytest.raises(StaleError):
        store.update("pods", "a", "x", _object("x"), 7)
    with pytest.raises(StaleError):
        store.delete("pods", "a", "x", 7)
    with pytest.raises(MissingError):
        store.update("pods", "a", "y", _object("y"))
    assert store.revision == 1
    store.close()


def test_state_and_revision_survive_reopening(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = Store(path)
    store.create("pods", "a", "x", _object("x", spec={"n": [1, None, "é"]}))
    store.create("pods", "a", "gone", _object("gone"))
    store.delete("pods", "a", "gone")
    before = store.get("pods", "a", "x")
    store.close()
    again = Store(path)
    assert again.revision == 3
    assert again.get("pods", "a", "x") == before
    assert [one.name for one in again.list("pods")] == ["x"]
    with pytest.raises(ExpiredError):
        again.subscribe("pods", 2, lambda: None)
    again.close()


def test_lists_are_sorted_and_can_be_had_as_of_a_revision() -> None:
    store = Store(None)
    for namespace, name in (("b", "x"), ("a", "z"), ("a", "y")):
        store.create("pods", namespace, name, _object(name, n=0))
    store.update("pods", "a", "y", _object("y", n=1))
    store.delete("pods", "b", "x")
    store.create("pods", "a", "w", _object("w"))
    places = [(one.namespace, one.name) for one in store.list("pods")]
    assert places == [("a", "w"), ("a", "y"), ("a", "z")]
    then = store.list_at("pods", None, 3)
    assert [(one.namespace, one.name) for one in then] == [("a", "y"), ("a", "z"), ("b", "x")]
    assert then[0].object["n"] == 0
    assert [one.name for one in store.list_at("pods", "b", 4)] == ["x"]
    store.close()


def test_a_subscription_sees_each_change_once_and_in_order() -> None:
    store = Store(None)
    store.create("pods", "a", "old", _object("old"))
    woken: list[int] = []
    subscription = store.subscribe("pods", 1, lambda: woken.append(store.revision))
    store.create("pods", "a", "x", _object("x"))
    store.create("services", "a", "other", _object("other"))
    store.update("pods", "a", "x", _object("x", n=1))
    changes = subscription.take()
    assert [(one.type, one.revision) for one in changes] == [("ADDED", 2), ("MODIFIED", 4)]
    assert subscription.take() == []
    store.delete("pods", "a", "x")
    assert [one.type for one in subscription.take()] == ["DELETED"]
    assert woken == [2, 4, 5]
    subscription.close()
    store.create("pods", "a", "y", _object("y"))
    assert woken == [2, 4, 5]
    store.close()


def test_who_falls_out_of_the_window_is_told() -> None:
    store = Store(None, window_changes=3)
    slow = store.subscribe("pods", 0, lambda: None)
    for number in range(4):
        store.create("pods", "a", f"p{number}", _object(f"p{number}"))
    with pytest.raises(ExpiredError) as caught:
        slow.take()
    assert caught.value.oldest == 1
    with pytest.raises(ExpiredError):
        store.subscribe("pods", 0, lambda: None)
    with pytest.raises(ExpiredError):
        store.list_at("pods", None, 0)
    assert len(store.subscribe("pods", 1, lambda: None).take()) == 3
    store.close()


def test_a_full_disk_changes_nothing_and_is_recovered_from(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.db")
    store.create("pods", "a", "x", _object("x"))
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    subscription = store.subscribe("pods", store.revision, lambda: None)
    with pytest.raises(StorageFullError, match="full"):
        store.create("pods", "a", "big", _object("big", data="x" * 200_000))
    assert store.get("pods", "a", "big") is None
    assert subscription.take() == []
    assert store.revision == 1
    store._db.execute("PRAGMA max_page_count = 1000000")
    assert store.create("pods", "a", "big", _object("big", data="x" * 200_000)).revision == 2
    store.close()
    again = Store(tmp_path / "state.db")
    assert [one.name for one in again.list("pods")] == ["big", "x"]
    again.close()


def test_a_file_that_is_no_state_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"this is not a database, and long enough to be read as one" * 100)
    with pytest.raises(UnreadableStateError, match="localkube reset"):
        Store(path)
