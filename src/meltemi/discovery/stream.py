"""One proxy's xDS conversation, without sockets, tasks or time.

In: requests, and snapshots of what the proxy should have. Out: responses in the order in which they must be
written, and events to note (accepted, refused). Promises:

* State-of-the-world and Delta are two encodings of the same machine;
* clusters leave before endpoints, listeners before routes; Delta removes clusters last, so that no route
  points at one that is gone (https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol,
  "eventual consistency considerations");
* a cluster that was sent is followed by its endpoints, changed or not: Envoy warms the new cluster until
  they come, and does not ask for a name that it is already subscribed to;
* what the proxy has is never sent again, unless it asks for the name anew.

Does not build resources, wait, or write; the adapter does (``adapters.discovery_grpc``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from meltemi.discovery import wire
from meltemi.discovery.protocol import (
    ANSWER_MISSING,
    RESPONSE_BYTES_MAX,
    TYPES_MAX,
    WHOLE_TYPES,
    WILDCARD_TYPES,
    Acked,
    Event,
    Mode,
    Reaction,
    Rejected,
    RemoteProtocolError,
    Request,
    Send,
    Snapshot,
    Stale,
    Subscribed,
)
from meltemi.discovery.watch import Step, Watch
from meltemi.model.names import CDS_TYPE, EDS_TYPE, PUSH_ORDER
from meltemi.model.resource import Resource

_NOTHING: Mapping[str, Resource] = {}
_RANK = {type_url: rank for rank, type_url in enumerate(PUSH_ORDER)}


class Stream:
    """The machine. Single owner; every method returns at once."""

    def __init__(self, mode: Mode, entries: wire.Entries | None = None) -> None:
        self.mode = mode
        self._entries = entries if entries is not None else wire.Entries()
        self._watches: dict[str, Watch] = {}
        self._owed: set[str] = set()  # clusters sent whose endpoints must follow
        self._nonces = 0

    @property
    def watches(self) -> Mapping[str, Watch]:
        """The conversation per type, for debug output; not to be changed."""
        return self._watches

    def subscriptions(self, type_url: str) -> Collection[str]:
        """The names subscribed to for a type."""
        watch = self._watches.get(type_url)
        return watch.names if watch else ()

    def receive(self, request: Request, snapshot: Snapshot) -> Reaction:
        """Take one request. Raises RemoteProtocolError when the peer breaks the protocol."""
        if not request.type_url:
            raise RemoteProtocolError(
                "a discovery request without type_url on an aggregated stream"
            )
        watch = self._watches.get(request.type_url)
        first = watch is None
        if watch is None:
            if len(self._watches) >= TYPES_MAX:
                raise RemoteProtocolError(f"more than {TYPES_MAX} resource types on one stream")
            watch = Watch(request.type_url)
            self._watches[request.type_url] = watch
        take = self._receive_delta if self.mode is Mode.DELTA else self._receive_sotw
        return take(watch, request, snapshot, first)

    def push(
        self, snapshot: Snapshot, only: Mapping[str, frozenset[str]] | None = None
    ) -> list[Send]:
        """Bring the proxy level with ``snapshot``.

        ``only`` names the resources that can have changed, by type (an endpoint change); None compares all.
        """
        sends: list[Send] = []
        departed: list[str] = []
        for type_url in sorted(self._watches, key=lambda t: _RANK.get(t, len(_RANK))):
            watch = self._watches[type_url]
            names = None if only is None else only.get(type_url)
            owed = self._due(watch)
            if only is not None and names is None and not owed:
                continue
            resources = snapshot.types.get(type_url, _NOTHING)
            if only is None and watch.seen is resources and not owed:
                continue
            limit = None if only is None else frozenset(names or ()) | owed
            sends += self._send_difference(watch, snapshot, limit, owed, departed)
            if only is None:
                watch.seen = resources
        if departed:
            sends.append(self._emit_delta(self._watches[CDS_TYPE], snapshot, (), departed))
        return sends

    # --- state of the world -------------------------------------------------------------------------

    def _receive_sotw(
        self, watch: Watch, request: Request, snapshot: Snapshot, first: bool
    ) -> Reaction:
        events: list[Event] = []
        if not first:
            answer = self._note_answer(watch, request)
            events.append(answer)
            if isinstance(answer, Stale):
                return Reaction(tuple(events))
        added, removed = self._set_sotw_interest(watch, request.names, first)
        if added or removed:
            events.append(Subscribed(watch.type_url, added, removed))
        if not first and not added:
            return Reaction(tuple(events))
        return Reaction(tuple(events), tuple(self._answer_sotw(watch, snapshot, added, first)))

    def _set_sotw_interest(
        self, watch: Watch, names: tuple[str, ...], first: bool
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """SotW repeats all names in every request.

        A wildcard stays one even when single names follow (Envoy's on-demand clusters come so): answering
        with those alone would delete every other cluster.
        """
        if (first and not names and watch.type_url in WILDCARD_TYPES) or "*" in names:
            watch.wildcard = True
        wanted = set(names) - {"*"}
        removed = watch.drop(sorted(watch.names - wanted))
        return watch.add(name for name in names if name != "*"), removed

    def _answer_sotw(
        self, watch: Watch, snapshot: Snapshot, added: tuple[str, ...], first: bool
    ) -> list[Send]:
        resources = snapshot.types.get(watch.type_url, _NOTHING)
        for name in added:
            watch.sent.pop(name, None)
        owed = self._due(watch)
        found = watch.difference(resources, None if first or watch.wildcard else added, owed)
        if first:
            watch.seen = resources
        elif not found.changed and watch.type_url in WHOLE_TYPES:
            return []
        return [self._emit_sotw(watch, snapshot, found.changed, found.removed)]

    def _emit_sotw(
        self, watch: Watch, snapshot: Snapshot, changed: list[Resource], removed: list[str]
    ) -> Send:
        self._record(watch, changed, removed)
        resources: Iterable[Resource] = changed
        if watch.type_url in WHOLE_TYPES:
            mapping = snapshot.types.get(watch.type_url, _NOTHING)
            resources = [mapping[name] for name in watch.sent if name in mapping]
        nonce = self._next_nonce()
        entries = [self._entries.sotw(watch.type_url, resource) for resource in resources]
        names = tuple(resource.name for resource in changed)
        parts = wire.sotw_parts(watch.type_url, snapshot.version, nonce, entries)
        watch.note_sent(nonce, names)
        return Send(watch.type_url, nonce, tuple(parts), names, tuple(removed))

    # --- Delta --------------------------------------------------------------------------------------

    def _receive_delta(
        self, watch: Watch, request: Request, snapshot: Snapshot, first: bool
    ) -> Reaction:
        events: list[Event] = []
        if first:
            watch.sent.update(request.initial_versions)
            if not request.names and watch.type_url in WILDCARD_TYPES:
                watch.wildcard = True
        elif request.nonce:
            # Unlike SotW, a Delta request may carry a stale nonce and a subscription: both count.
            events.append(self._note_answer(watch, request))
        if "*" in request.names:
            watch.wildcard = True
        if "*" in request.unsubscribe:
            watch.wildcard = False
        named = tuple(name for name in request.names if name != "*")
        added = watch.add(named)
        removed = watch.drop(request.unsubscribe)
        if added or removed:
            events.append(Subscribed(watch.type_url, added, removed))
        if not first:
            # Naming a subscribed resource again asks for it again, whatever was sent.
            for name in named:
                watch.sent.pop(name, None)
        asked = first or bool(named) or "*" in request.names
        if not asked:
            return Reaction(tuple(events))
        return Reaction(tuple(events), tuple(self._answer_delta(watch, request, snapshot, first)))

    def _answer_delta(
        self, watch: Watch, request: Request, snapshot: Snapshot, first: bool
    ) -> list[Send]:
        resources = snapshot.types.get(watch.type_url, _NOTHING)
        named = tuple(name for name in request.names if name != "*")
        everything = first or "*" in request.names
        found = watch.difference(resources, None if everything else named, self._due(watch))
        known = set(found.removed)
        if watch.type_url in ANSWER_MISSING or watch.type_url not in snapshot.types:
            found.removed += [n for n in named if n not in known and resources.get(n) is None]
        if everything:
            watch.seen = resources
        unanswered = first and not request.initial_versions and not named
        if not found and not unanswered:
            return []
        return self._split_delta(watch, snapshot, found.changed, found.removed)

    def _split_delta(
        self, watch: Watch, snapshot: Snapshot, changed: list[Resource], removed: list[str]
    ) -> list[Send]:
        """Responses of about ``RESPONSE_BYTES_MAX`` each; removals go with the last one."""
        sends: list[Send] = []
        batch: list[Resource] = []
        size = 0
        for resource in changed:
            if batch and size + len(resource.body) > RESPONSE_BYTES_MAX:
                sends.append(self._emit_delta(watch, snapshot, batch, ()))
                batch, size = [], 0
            batch.append(resource)
            size += len(resource.body)
        sends.append(self._emit_delta(watch, snapshot, batch, removed))
        return sends

    def _emit_delta(
        self,
        watch: Watch,
        snapshot: Snapshot,
        changed: Iterable[Resource],
        removed: Iterable[str],
    ) -> Send:
        changed, removed = list(changed), list(removed)
        self._record(watch, changed, removed)
        nonce = self._next_nonce()
        entries = [self._entries.delta(watch.type_url, resource) for resource in changed]
        parts = wire.delta_parts(watch.type_url, snapshot.version, nonce, entries, removed)
        names = tuple(resource.name for resource in changed)
        watch.note_sent(nonce, names)
        return Send(watch.type_url, nonce, tuple(parts), names, tuple(removed))

    # --- both ---------------------------------------------------------------------------------------

    def _send_difference(
        self,
        watch: Watch,
        snapshot: Snapshot,
        only: Iterable[str] | None,
        force: frozenset[str],
        departed: list[str],
    ) -> list[Send]:
        """Responses for one type in a push; Delta's removed clusters are left in ``departed``."""
        resources = snapshot.types.get(watch.type_url, _NOTHING)
        found = watch.difference(resources, only, force)
        if not found:
            return []
        if self.mode is Mode.SOTW:
            if not found.changed and watch.type_url not in WHOLE_TYPES:
                self._record(watch, [], found.removed)
                return []
            return [self._emit_sotw(watch, snapshot, found.changed, found.removed)]
        if watch.type_url == CDS_TYPE:
            departed += found.removed
            found.removed = []
        elif watch.type_url == EDS_TYPE and departed:
            # The proxy drops these itself with their clusters; until then they keep serving.
            gone = set(departed)
            self._record(watch, [], [name for name in found.removed if name in gone])
            found.removed = [name for name in found.removed if name not in gone]
        if not found:
            return []
        return self._split_delta(watch, snapshot, found.changed, found.removed)

    def _note_answer(self, watch: Watch, request: Request) -> Event:
        """Match an answer to the response that it is for."""
        last = request.nonce == watch.last_nonce
        names = watch.outstanding.pop(request.nonce, None)
        if names is None or (self.mode is Mode.SOTW and not last):
            # A repeated acknowledgement of the last response is how SotW changes its names.
            if self.mode is Mode.SOTW and last and request.error is None:
                return Acked(watch.type_url, request.nonce)
            return Stale(watch.type_url, request.nonce)
        if request.error is not None:
            watch.error = request.error
            watch.step(Step.NACK_LAST if last else Step.NACK_EARLIER)
            return Rejected(watch.type_url, request.nonce, request.error, names)
        watch.acked_nonce = request.nonce
        if last:
            watch.error = ""
        watch.step(Step.ACK_LAST if last else Step.ACK_EARLIER)
        return Acked(watch.type_url, request.nonce)

    def _due(self, watch: Watch) -> frozenset[str]:
        """Endpoints that must go out although they did not change; asking settles the debt."""
        if watch.type_url != EDS_TYPE or not self._owed:
            return frozenset()
        due = frozenset(name for name in self._owed if watch.wants(name))
        # Other clusters take no endpoints, or their names have yet to be subscribed to, and are then sent.
        self._owed.clear()
        return due

    def _record(self, watch: Watch, changed: Iterable[Resource], removed: Iterable[str]) -> None:
        for resource in changed:
            watch.sent[resource.name] = resource.version
            if watch.type_url == CDS_TYPE:
                self._owed.add(resource.name)
            elif watch.type_url == EDS_TYPE:
                self._owed.discard(resource.name)
        for name in removed:
            watch.sent.pop(name, None)
            if watch.type_url == CDS_TYPE:
                self._owed.discard(name)

    def _next_nonce(self) -> str:
        self._nonces += 1
        return f"{self._nonces:x}"
