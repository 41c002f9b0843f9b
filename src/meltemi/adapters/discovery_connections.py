"""Open streams: what each proxy has, the one push that waits for it, and how all are woken."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from meltemi.ca.identity import Identity
from meltemi.discovery.protocol import Rejected, Snapshot
from meltemi.discovery.stream import Stream
from meltemi.model.names import (
    BOOTSTRAP_TYPE,
    HEALTH_TYPE,
    NDS_TYPE,
    SDS_FILE_CERT,
    SDS_FILE_ROOT,
    SDS_TYPE,
)
from meltemi.model.proxy import Proxy

WAKE_AT_ONCE = 8  # measured: keeps the loop within 2-20 ms at a thousand streams
WAKE_PAUSE_S = 0.0001


_FILES = (SDS_FILE_ROOT, SDS_FILE_CERT)


def has_secrets(snapshot: Snapshot) -> bool:
    """Whether there is more in it than names of the proxy's own files."""
    return any(not name.startswith(_FILES) for name in snapshot.types.get(SDS_TYPE) or ())


@dataclass(slots=True)
class Pending:
    """The one push that waits for a stream: these names at least, everything when ``full``."""

    snapshot: Snapshot
    full: bool
    only: dict[str, frozenset[str]]
    since_s: float

    def merge(self, later: Pending) -> Pending:
        """Both in one: the newer snapshot, the older wait.

        Names are kept beside a full push: endpoints that changed keep their mapping object, which a full
        comparison takes as unchanged.
        """
        only = dict(self.only)
        for type_url, names in later.only.items():
            only[type_url] = only.get(type_url, frozenset()) | names
        full = self.full or later.full
        return Pending(later.snapshot, full, only, min(self.since_s, later.since_s))


@dataclass(eq=False, slots=True)
class Connection:
    """One proxy's stream."""

    id: str
    proxy: Proxy
    identity: Identity | None
    peer: str
    stream: Stream
    connected_at: float
    first_type: str = ""  # what was asked for first
    snapshot: Snapshot = field(default_factory=lambda: Snapshot("", {}))
    pending: Pending | None = None
    closing: bool = False
    secrets: bool = False
    rejections: dict[str, Rejected] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_agents(self) -> bool:
        """Whether this is no Envoy's stream but one of the agent beside it: for names or its bootstrap, or to report health."""
        return self.first_type in (NDS_TYPE, BOOTSTRAP_TYPE, HEALTH_TYPE)

    def offer(
        self, snapshot: Snapshot, only: dict[str, frozenset[str]] | None, since_s: float
    ) -> None:
        """Let the stream know of a newer snapshot; it is woken by ``Connections.wake``."""
        later = Pending(snapshot, only is None, only or {}, since_s)
        self.pending = later if self.pending is None else self.pending.merge(later)

    def visible(self, snapshot: Snapshot) -> Snapshot:
        """Secrets are for callers that have proven that they may read them; names of their own files are for all."""
        if self.secrets or not has_secrets(snapshot):
            return snapshot
        files = {
            name: resource
            for name, resource in snapshot.types[SDS_TYPE].items()
            if name.startswith(_FILES)
        }
        return Snapshot(snapshot.version, {**snapshot.types, SDS_TYPE: files})


class Connections:
    """All streams of this process."""

    def __init__(self) -> None:
        self._all: dict[str, Connection] = {}
        self.empty = asyncio.Event()
        self.empty.set()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Any:
        return iter(list(self._all.values()))

    def add(self, connection: Connection) -> None:
        """A stream has begun."""
        self._all[connection.id] = connection
        self.empty.clear()

    def remove(self, connection: Connection) -> None:
        """A stream has ended."""
        self._all.pop(connection.id, None)
        if not self._all:
            self.empty.set()

    def of_proxy(self, proxy_id: str) -> Connection | None:
        """The stream of ``pod.namespace``'s Envoy, the newest when there are two."""
        found = None
        for connection in self._all.values():
            if connection.proxy.id == proxy_id and not connection.is_agents:
                found = connection
        return found

    async def wake(self, chosen: Iterable[Connection]) -> None:
        """Wake streams, a few at a time."""
        for index, connection in enumerate(chosen, start=1):
            connection.wake.set()
            if index % WAKE_AT_ONCE == 0:
                await asyncio.sleep(WAKE_PAUSE_S)
