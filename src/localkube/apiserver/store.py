"""The cluster's state: objects in SQLite, an index of them in memory, and a window of changes.

In: plain JSON objects under (storage, namespace, name). Out: `Stored` values, shared and therefore
never to be changed by readers, and `Change` records for watchers. Promises:

- one global, strictly increasing revision, which survives restarts; every write takes the next;
- a write is in SQLite (WAL) before memory or any watcher sees it, and a write that fails changes
  nothing anywhere (a full disk is `StorageFullError`, and the next write may succeed again);
- reads cost no I/O; changes older than the window are gone (`ExpiredError`), never skipped.

Knows nothing of HTTP, selectors or API semantics. Belongs to one event loop; not thread-safe.
WAL with synchronous=NORMAL loses nothing when a process dies; only a power cut may lose the last
moments, and then cleanly.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from localkube.kit.program import PROGRAM

JsonObject = dict[str, Any]
StoredList = list["Stored"]

# How many changes per collection a watcher or a paged list may lag behind.
WINDOW_CHANGES = 2048

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    storage TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    revision INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (storage, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('revision', 0);
INSERT OR IGNORE INTO meta VALUES ('format', 1);
"""
_FORMAT = 1


class StoreError(Exception):
    """A write that the store refused; nothing has changed."""


class AlreadyExistsError(StoreError):
    """There is an object of this name."""


class MissingError(StoreError):
    """There is no object of this name."""


class StaleError(StoreError):
    """The object is not at the expected revision."""


class ExpiredError(StoreError):
    """The asked revision is older than the window; `oldest` is the first still known."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"changes before revision {oldest} are no longer known")
        self.oldest = oldest


class StorageFullError(StoreError):
    """The disk is full or cannot be written; the state on it is as before."""


class UnreadableStateError(Exception):
    """The state file cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object at one revision: decoded, and as JSON. Never change `object`: it is shared."""

    namespace: str
    name: str
    revision: int
    object: JsonObject
    data: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One write: `current` is the object now, or its last state if it was deleted."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    revision: int
    current: Stored
    previous: Stored | None


@dataclass(slots=True)
class _Collection:
    objects: dict[str, dict[str, Stored]] = field(default_factory=dict)
    changes: deque[Change] = field(default_factory=deque)
    # Changes at or below this revision are not in the window.
    floor: int = 0
    # Position of changes[0] in the sequence of all changes of this collection.
    first: int = 0
    listeners: set[Callable[[], None]] = field(default_factory=set)


class Store:
    """See the module's docstring. `path` is a file, or None for a store in memory only."""

    def __init__(self, path: Path | None, *, window_changes: int = WINDOW_CHANGES) -> None:
        self._window = window_changes
        self._collections: dict[str, _Collection] = {}
        try:
            self._db = sqlite3.connect(
                ":memory:" if path is None else str(path), isolation_level=None, timeout=5.0
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._load()
        except (sqlite3.Error, msgspec.DecodeError) as error:
            raise UnreadableStateError(
                f"cannot use the state in {path}: {error}; free space or repair access, "
                f"or delete the state with `{PROGRAM} reset`"
            ) from error

    def _load(self) -> None:
        meta = dict(self._db.execute("SELECT key, value FROM meta").fetchall())
        if meta["format"] != _FORMAT:
            raise sqlite3.DatabaseError(
                f"its format is {meta['format']}, this program writes format {_FORMAT}"
            )
        self._revision: int = meta["revision"]
        decode = msgspec.json.decode
        rows = self._db.execute("SELECT storage, namespace, name, revision, data FROM objects")
        for storage, namespace, name, revision, data in rows:
            collection = self._collection(storage)
            stored = Stored(namespace, name, revision, decode(data), data)
            collection.objects.setdefault(namespace, {})[name] = stored

    def _collection(self, storage: str) -> _Collection:
        collection = self._collections.get(storage)
        if collection is None:
            # Nothing was ever written to a new collection, except before this process started.
            collection = self._collections[storage] = _Collection(floor=self._revision)
        return collection

    def close(self) -> None:
        """Close the database; the store must not be used afterwards."""
        self._db.close()

    # -- reads ------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The revision of the latest write."""
        return self._revision

    def get(self, storage: str, namespace: str, name: str) -> Stored | None:
        """Return one object; `namespace` is "" for cluster-scoped ones."""
        collection = self._collections.get(storage)
        if collection is None:
            return None
        return collection.objects.get(namespace, {}).get(name)

    def list(self, storage: str, namespace: str | None = None) -> StoredList:
        """Return the objects of one namespace, or of all (None), sorted by namespace and name."""
        collection = self._collections.get(storage)
        if collection is None:
            return []
        spaces = sorted(collection.objects) if namespace is None else (namespace,)
        found: list[Stored] = []
        for space in spaces:
            names = collection.objects.get(space)
            if names:
                found.extend(names[name] for name in sorted(names))
        return found

    def list_at(self, storage: str, namespace: str | None, revision: int) -> StoredList:
        """Return the objects as they were at `revision`. Raises ExpiredError."""
        collection = self._collection(storage)
        if revision >= self._revision:
            return self.list(storage, namespace)
        if revision < collection.floor:
            raise ExpiredError(collection.floor)
        then: dict[tuple[str, str], Stored] = {
            (stored.namespace, stored.name): stored for stored in self.list(storage, namespace)
        }
        for change in reversed(collection.changes):
            if change.revision <= revision:
                break
            current = change.current
            if namespace is not None and current.namespace != namespace:
                continue
            if change.previous is None:
                then.pop((current.namespace, current.name), None)
            else:
                then[current.namespace, current.name] = change.previous
        return [then[key] for key in sorted(then)]

    def storages(self) -> Iterator[str]:
        """Yield the names of all collections that hold or held objects."""
        return iter(tuple(self._collections))

    # -- writes -----------------------------------------------------------------------------

    def create(self, storage: str, namespace: str, name: str, obj: JsonObject) -> Stored:
        """Store a new object. Raises AlreadyExistsError, StorageFullError."""
        if self.get(storage, namespace, name) is not None:
            raise AlreadyExistsError(name)
        return self._put(storage, namespace, name, obj, None)

    def update(
        self, storage: str, namespace: str, name: str, obj: JsonObject, expected: int | None = None
    ) -> Stored:
        """Replace an object, if it is at revision `expected` (None: at any).

        Raises MissingError, StaleError, StorageFullError.
        """
        previous = self.get(storage, namespace, name)
        if previous is None:
            raise MissingError(name)
        if expected is not None and previous.revision != expected:
            raise StaleError(name)
        return self._put(storage, namespace, name, obj, previous)

    def delete(
        self,
        storage: str,
        namespace: str,
        name: str,
        expected: int | None = None,
        final: JsonObject | None = None,
    ) -> Stored:
        """Remove an object and return its last state, which is `final` if given.

        Raises MissingError, StaleError, StorageFullError.
        """
        previous = self.get(storage, namespace, name)
        if previous is None:
            raise MissingError(name)
        if expected is not None and previous.revision != expected:
            raise StaleError(name)
        revision = self._revision + 1
        last = self._encode(namespace, name, revision, final or previous.object)
        self._write(
            "DELETE FROM objects WHERE storage = ? AND namespace = ? AND name = ?",
            (storage, namespace, name),
            revision,
        )
        collection = self._collection(storage)
        names = collection.objects[namespace]
        del names[name]
        if not names:
            del collection.objects[namespace]
        self._record(collection, Change("DELETED", revision, last, previous))
        return last

    def _put(
        self, storage: str, namespace: str, name: str, obj: JsonObject, previous: Stored | None
    ) -> Stored:
        revision = self._revision + 1
        stored = self._encode(namespace, name, revision, obj)
        collection = self._collection(storage)
        self._write(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)",
            (storage, namespace, name, revision, stored.data),
            revision,
        )
        collection.objects.setdefault(namespace, {})[name] = stored
        change = Change("MODIFIED" if previous else "ADDED", revision, stored, previous)
        self._record(collection, change)
        return stored

    @staticmethod
    def _encode(namespace: str, name: str, revision: int, obj: JsonObject) -> Stored:
        metadata = {**obj.get("metadata", {}), "resourceVersion": str(revision)}
        obj = {**obj, "metadata": metadata}
        return Stored(namespace, name, revision, obj, msgspec.json.encode(obj))

    def _write(self, statement: str, values: tuple[Any, ...], revision: int) -> None:
        database = self._db
        try:
            database.execute("BEGIN IMMEDIATE")
            database.execute(statement, values)
            database.execute("UPDATE meta SET value = ? WHERE key = 'revision'", (revision,))
            database.execute("COMMIT")
        except sqlite3.Error as error:
            if database.in_transaction:
                try:
                    database.execute("ROLLBACK")
                except sqlite3.Error:  # the journal rolls back by itself when next opened
                    pass
            raise StorageFullError(f"the state could not be written: {error}") from error
        self._revision = revision

    def _record(self, collection: _Collection, change: Change) -> None:
        changes = collection.changes
        changes.append(change)
        if len(changes) > self._window:
            collection.floor = changes.popleft().revision
            collection.first += 1
        for listener in tuple(collection.listeners):
            listener()

    # -- changes ----------------------------------------------------------------------------

    def subscribe(self, storage: str, revision: int, listener: Callable[[], None]) -> Subscription:
        """Follow a collection's changes after `revision`; `listener` is called at each change.

        Raises ExpiredError if changes after `revision` are no longer all known.
        """
        collection = self._collection(storage)
        if revision < collection.floor:
            raise ExpiredError(collection.floor)
        position = collection.first
        for change in collection.changes:
            if change.revision > revision:
                break
            position += 1
        collection.listeners.add(listener)
        return Subscription(collection, position, listener)


class Subscription:
    """A place in a collection's sequence of changes.

    It holds no queue: a reader that falls out of the window gets ExpiredError from `take`, so a
    slow watcher costs no memory.
    """

    def __init__(
        self, collection: _Collection, position: int, listener: Callable[[], None]
    ) -> None:
        self._collection = collection
        self._position = position
        self._listener = listener

    def take(self, limit: int = 256) -> list[Change]:
        """Return up to `limit` changes that were not taken yet. Raises ExpiredError."""
        collection = self._collection
        offset = self._position - collection.first
        if offset < 0:
            raise ExpiredError(collection.floor)
        if offset >= len(collection.changes):
            return []
        if offset == len(collection.changes) - 1:
            taken = [collection.changes[-1]]
        else:
            stop = min(offset + limit, len(collection.changes))
            taken = [collection.changes[index] for index in range(offset, stop)]
        self._position += len(taken)
        return taken

    def close(self) -> None:
        """Stop being told of changes; closing twice is allowed."""
        self._collection.listeners.discard(self._listener)
