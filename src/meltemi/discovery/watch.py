"""What one proxy wants of one resource type, and what it has been sent.

In: names it subscribes to, answers with nonces, responses that were sent. Out: which names differ from a
snapshot. Mutable; owned by one ``Stream``. The states and their only transitions are ``TRANSITIONS``.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from meltemi.discovery.protocol import NAME_LENGTH_MAX, NAMES_MAX, RemoteProtocolError
from meltemi.model.resource import Resource

OUTSTANDING_MAX = 1_000  # responses that wait for an answer; older ones are taken as answered


class State(enum.Enum):
    """Where the conversation about one type stands."""

    QUIET = "NOT SENT"  # subscribed, nothing sent yet
    WAITING = "STALE"  # sent, not answered
    SYNCED = "SYNCED"  # the last response was accepted
    REJECTED = "ERROR"  # the last response was refused


class Step(enum.Enum):
    """What can happen to it."""

    SEND = "send"
    ACK_LAST = "ack of the last response"
    ACK_EARLIER = "ack of an earlier response"
    NACK_LAST = "nack of the last response"
    NACK_EARLIER = "nack of an earlier response"


TRANSITIONS: Mapping[tuple[State, Step], State] = {
    (State.QUIET, Step.SEND): State.WAITING,
    (State.WAITING, Step.SEND): State.WAITING,
    (State.WAITING, Step.ACK_LAST): State.SYNCED,
    (State.WAITING, Step.ACK_EARLIER): State.WAITING,
    (State.WAITING, Step.NACK_LAST): State.REJECTED,
    (State.WAITING, Step.NACK_EARLIER): State.WAITING,
    (State.SYNCED, Step.SEND): State.WAITING,
    (State.SYNCED, Step.ACK_EARLIER): State.SYNCED,
    (State.SYNCED, Step.NACK_EARLIER): State.SYNCED,
    (State.REJECTED, Step.SEND): State.WAITING,
    (State.REJECTED, Step.ACK_EARLIER): State.REJECTED,
    (State.REJECTED, Step.NACK_EARLIER): State.REJECTED,
}


@dataclass(slots=True)
class Difference:
    """What has to be sent for a proxy to have the snapshot."""

    changed: list[Resource] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.removed)


@dataclass(slots=True)
class Watch:
    """The conversation about one type."""

    type_url: str
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    sent: dict[str, str] = field(default_factory=dict)  # name -> version that the proxy was sent
    state: State = State.QUIET
    last_nonce: str = ""
    acked_nonce: str = ""
    error: str = ""
    seen: Mapping[str, Resource] | None = None  # the mapping that the proxy is level with
    outstanding: OrderedDict[str, tuple[str, ...]] = field(default_factory=OrderedDict)

    def step(self, step: Step) -> None:
        """Move along the table. A step that it lacks is our own mistake."""
        self.state = TRANSITIONS[self.state, step]

    def note_sent(self, nonce: str, names: tuple[str, ...]) -> None:
        """A response has been handed out."""
        self.last_nonce = nonce
        self.outstanding[nonce] = names
        while len(self.outstanding) > OUTSTANDING_MAX:
            self.outstanding.popitem(last=False)
        self.step(Step.SEND)

    def add(self, names: Iterable[str]) -> tuple[str, ...]:
        """Subscribe; returns the names that were not subscribed before. Bounded."""
        fresh = tuple(name for name in dict.fromkeys(names) if name not in self.names)
        for name in fresh:
            if len(name) > NAME_LENGTH_MAX:
                raise RemoteProtocolError(
                    f"a resource name of {len(name)} characters; at most {NAME_LENGTH_MAX} are taken"
                )
        if len(self.names) + len(fresh) > NAMES_MAX:
            raise RemoteProtocolError(
                f"more than {NAMES_MAX} names subscribed for {self.type_url} on one stream"
            )
        self.names.update(fresh)
        return fresh

    def drop(self, names: Iterable[str]) -> tuple[str, ...]:
        """Unsubscribe; what the proxy was sent under these names is forgotten."""
        gone = tuple(name for name in names if name in self.names)
        for name in gone:
            self.names.discard(name)
            if not self.wildcard:
                self.sent.pop(name, None)
        return gone

    def wants(self, name: str) -> bool:
        """True when the proxy subscribes to ``name``."""
        return self.wildcard or name in self.names

    def difference(
        self,
        resources: Mapping[str, Resource],
        only: Iterable[str] | None = None,
        force: frozenset[str] = frozenset(),
    ) -> Difference:
        """What differs between ``resources`` and what was sent.

        ``only`` limits the comparison to these names; ``force`` are names sent even when unchanged.
        """
        found = Difference()
        if only is None and self.wildcard:
            sent = self.sent
            for name, resource in resources.items():
                if sent.get(name) != resource.version or name in force:
                    found.changed.append(resource)
            if len(sent) + len(found.changed) > len(resources):
                found.removed.extend(name for name in sent if name not in resources)
            return found
        for name in sorted(self.names if only is None else only):
            if not self.wants(name):
                continue
            resource_or_none = resources.get(name)
            if resource_or_none is None:
                if name in self.sent:
                    found.removed.append(name)
            elif self.sent.get(name) != resource_or_none.version or name in force:
                found.changed.append(resource_or_none)
        return found
