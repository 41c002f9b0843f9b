"""Conversations: what a proxy says, what we answer."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from meltemi.discovery.protocol import (
    NAME_LENGTH_MAX,
    TYPES_MAX,
    Acked,
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
from meltemi.discovery.stream import Stream
from meltemi.discovery.watch import TRANSITIONS, State, Step
from meltemi.model.names import CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE, SDS_TYPE
from meltemi.model.resource import Resource, resource_of

SHORT = {CDS_TYPE: "CDS", EDS_TYPE: "EDS", LDS_TYPE: "LDS", RDS_TYPE: "RDS", SDS_TYPE: "SDS"}
BOTH = pytest.mark.parametrize("mode", [Mode.SOTW, Mode.DELTA])


def resources(**bodies: str) -> dict[str, Resource]:
    return {name: resource_of(name, body.encode()) for name, body in bodies.items()}


def snapshot(
    cds: Mapping[str, Resource] | None = None,
    eds: Mapping[str, Resource] | None = None,
    lds: Mapping[str, Resource] | None = None,
    rds: Mapping[str, Resource] | None = None,
) -> Snapshot:
    types = {CDS_TYPE: cds or {}, EDS_TYPE: eds or {}, LDS_TYPE: lds or {}, RDS_TYPE: rds or {}}
    return Snapshot("v1", types)


FULL = snapshot(
    cds=resources(a="1", b="1"),
    eds=resources(a="1", b="1"),
    lds=resources(l="1"),
    rds=resources(r="1", s="1"),
)


def told(sends: tuple[Send, ...] | list[Send]) -> list[str]:
    """Responses for people: ``CDS a b -c``."""
    return [
        " ".join([SHORT.get(s.type_url, s.type_url), *s.names, *(f"-{n}" for n in s.removed)])
        for s in sends
    ]


class Talk:
    """A proxy's side of the conversation: it accepts what it gets unless told otherwise."""

    def __init__(self, mode: Mode) -> None:
        self.stream = Stream(mode)
        self.names: dict[str, set[str]] = {}
        self.nonces: dict[str, str] = {}

    def ask(self, type_url: str, *names: str, snap: Snapshot = FULL, **fields: object) -> list[str]:
        """First request, or a change of subscription."""
        return told(self.react(type_url, *names, snap=snap, **fields).sends)

    def react(
        self, type_url: str, *names: str, snap: Snapshot = FULL, **fields: object
    ) -> Reaction:
        fields.setdefault("nonce", self.nonces.get(type_url, ""))
        if self.stream.mode is Mode.SOTW:
            known = self.names.setdefault(type_url, set())
            known |= set(names)
            names = tuple(sorted(known))
        reaction = self.stream.receive(Request(type_url, tuple(names), **fields), snap)  # type: ignore[arg-type]
        for send in reaction.sends:
            self.accept(send)
        return reaction

    def accept(self, send: Send) -> Reaction:
        self.nonces[send.type_url] = send.nonce
        names = ()
        if self.stream.mode is Mode.SOTW:
            names = tuple(sorted(self.names.get(send.type_url, ())))
        return self.stream.receive(Request(send.type_url, names, nonce=send.nonce), FULL)

    def push(self, snap: Snapshot, only: Mapping[str, frozenset[str]] | None = None) -> list[str]:
        sends = self.stream.push(snap, only)
        for send in sends:
            self.accept(send)
        return told(sends)

    def settle(self) -> Talk:
        """Subscribe as a sidecar does."""
        self.ask(CDS_TYPE)
        self.ask(EDS_TYPE, "a", "b")
        self.ask(LDS_TYPE)
        self.ask(RDS_TYPE, "r")
        return self


@BOTH
def test_a_proxy_starts(mode: Mode) -> None:
    """Whole types answer with everything, named ones with what was named."""
    talk = Talk(mode)
    assert talk.ask(CDS_TYPE) == ["CDS a b"]
    assert talk.ask(EDS_TYPE, "a", "b") == ["EDS a b"]
    assert talk.ask(LDS_TYPE) == ["LDS l"]
    assert talk.ask(RDS_TYPE, "r") == ["RDS r"]
    assert talk.push(FULL) == []


@BOTH
def test_first_request_is_always_answered(mode: Mode) -> None:
    """An empty mesh is an answer: Envoy's initialisation waits for it."""
    assert Talk(mode).ask(CDS_TYPE, snap=snapshot()) == ["CDS"]


@BOTH
def test_unknown_type_is_answered_empty(mode: Mode) -> None:
    """A type that we do not serve gets an empty response, not silence."""
    wanted = ["x/unknown"] if mode is Mode.SOTW else ["x/unknown -n"]
    assert Talk(mode).ask("x/unknown", "n") == wanted


@BOTH
def test_only_changed_resources_are_sent(mode: Mode) -> None:
    """One route changed: that one leaves, and nothing else."""
    talk = Talk(mode).settle()
    after = snapshot(
        FULL.types[CDS_TYPE], FULL.types[EDS_TYPE], FULL.types[LDS_TYPE], resources(r="2", s="2")
    )
    assert talk.push(after) == ["RDS r"]
    assert talk.push(after) == []


@BOTH
def test_order_and_warming(mode: Mode) -> None:
    """Clusters, endpoints, listeners, routes; a changed cluster's endpoints follow it unchanged."""
    talk = Talk(mode).settle()
    after = snapshot(
        resources(a="2", b="1"), FULL.types[EDS_TYPE], resources(l="2"), resources(r="2", s="1")
    )
    assert talk.push(after) == ["CDS a", "EDS a", "LDS l", "RDS r"]


def test_delta_removes_clusters_last() -> None:
    """No route may point at a cluster that is gone."""
    talk = Talk(Mode.DELTA).settle()
    after = snapshot(resources(a="1"), resources(a="1"), resources(l="1"), resources(r="2"))
    assert talk.push(after) == ["RDS r", "CDS -b"]


def test_sotw_replaces_the_whole_type() -> None:
    """A SotW cluster response holds every cluster, else Envoy would delete the rest."""
    talk = Talk(Mode.SOTW).settle()
    sends = talk.stream.push(snapshot(resources(a="2", b="1"), FULL.types[EDS_TYPE]))
    from envoy.service.discovery.v3 import discovery_pb2

    message = discovery_pb2.DiscoveryResponse.FromString(sends[0].payload())
    assert [r.value for r in message.resources] == [b"2", b"1"]


def test_sotw_on_demand_cluster_keeps_the_others() -> None:
    """A single name after a wildcard does not narrow the subscription."""
    talk = Talk(Mode.SOTW).settle()
    assert talk.ask(CDS_TYPE, "lazy") == []
    types = {**FULL.types, CDS_TYPE: resources(a="1", b="1", lazy="1")}
    assert talk.push(Snapshot("v2", types)) == ["CDS lazy"]


@BOTH
def test_new_name_is_answered_alone(mode: Mode) -> None:
    """Subscribing to one more route sends that route."""
    assert Talk(mode).settle().ask(RDS_TYPE, "s") == ["RDS s"]


def test_delta_naming_again_sends_again() -> None:
    """The proxy may have dropped what it had; a name repeated is a request."""
    talk = Talk(Mode.DELTA).settle()
    assert talk.ask(EDS_TYPE, "a") == ["EDS a"]


def test_delta_unsubscribed_names_are_silent() -> None:
    """After unsubscribing, changes of that name are not sent."""
    talk = Talk(Mode.DELTA).settle()
    assert talk.ask(EDS_TYPE, unsubscribe=("a",)) == []
    assert talk.push(snapshot(FULL.types[CDS_TYPE], resources(a="2", b="2"))) == [
        "EDS b",
        "LDS -l",
        "RDS -r",
    ]


def test_delta_missing_names() -> None:
    """Missing clusters and endpoints are answered removed; missing routes with silence."""
    talk = Talk(Mode.DELTA).settle()
    assert talk.ask(EDS_TYPE, "nope") == ["EDS -nope"]
    assert talk.ask(RDS_TYPE, "nope") == []
    appeared = {**FULL.types[RDS_TYPE], **resources(nope="1")}
    types = {**FULL.types, RDS_TYPE: appeared}
    assert talk.push(Snapshot("v2", types)) == ["RDS nope"]


def test_delta_reconnect_sends_only_the_difference() -> None:
    """What the proxy says that it has is not sent again; what is gone is removed."""
    versions = {name: r.version for name, r in FULL.types[CDS_TYPE].items()}
    assert Talk(Mode.DELTA).ask(CDS_TYPE, initial_versions=versions) == []
    stale = {**versions, "a": "old", "gone": "x"}
    assert Talk(Mode.DELTA).ask(CDS_TYPE, initial_versions=stale) == ["CDS a -gone"]


def test_delta_reconnect_warms_changed_clusters() -> None:
    """Endpoints of a cluster that changed meanwhile are sent although the proxy has them."""
    talk = Talk(Mode.DELTA)
    versions = {name: r.version for name, r in FULL.types[CDS_TYPE].items()}
    assert talk.ask(CDS_TYPE, initial_versions={**versions, "a": "old"}) == ["CDS a"]
    has = {name: r.version for name, r in FULL.types[EDS_TYPE].items()}
    assert talk.ask(EDS_TYPE, "a", "b", initial_versions=has) == ["EDS a"]


@BOTH
def test_endpoint_change_bypasses_the_rest(mode: Mode) -> None:
    """With ``only``, other types and names are not even compared."""
    talk = Talk(mode).settle()
    after = snapshot({}, resources(a="2", b="2"))
    assert talk.push(after, {EDS_TYPE: frozenset({"a", "other"})}) == ["EDS a"]


@BOTH
def test_rejection_is_reported_and_not_repeated(mode: Mode) -> None:
    """A refused response is noted with its names; it is sent again only after a change."""
    talk = Talk(mode).settle()
    after = Snapshot("v2", {**FULL.types, RDS_TYPE: resources(r="bad", s="1")})
    (send,) = talk.stream.push(after)
    names = ("r",) if mode is Mode.SOTW else ()
    reaction = talk.stream.receive(
        Request(RDS_TYPE, names, nonce=send.nonce, error="duplicate domain"), after
    )
    assert reaction.events == (Rejected(RDS_TYPE, send.nonce, "duplicate domain", ("r",)),)
    assert talk.stream.watches[RDS_TYPE].state is State.REJECTED
    assert talk.push(after) == []
    fixed = Snapshot("v3", {**FULL.types, RDS_TYPE: resources(r="good", s="1")})
    assert talk.push(fixed) == ["RDS r"]
    assert talk.stream.watches[RDS_TYPE].state is State.SYNCED


def test_sotw_stale_nonce_is_ignored() -> None:
    """An answer to a response that was overtaken changes nothing."""
    talk = Talk(Mode.SOTW).settle()
    old = talk.nonces[RDS_TYPE]
    after = Snapshot("v2", {**FULL.types, RDS_TYPE: resources(r="2", s="1")})
    assert talk.push(after) == ["RDS r"]
    reaction = talk.stream.receive(Request(RDS_TYPE, ("r", "s"), nonce=old), after)
    assert reaction == Reaction((Stale(RDS_TYPE, old),))


def test_delta_stale_nonce_still_subscribes() -> None:
    """Delta applies subscriptions whatever nonce they ride on."""
    talk = Talk(Mode.DELTA).settle()
    reaction = talk.react(RDS_TYPE, "s", nonce="long ago")
    assert Stale(RDS_TYPE, "long ago") in reaction.events
    assert Subscribed(RDS_TYPE, ("s",), ()) in reaction.events
    assert told(reaction.sends) == ["RDS s"]


def test_delta_splits_large_responses() -> None:
    """About a megabyte each; every part has its own nonce and is acknowledged on its own."""
    big = {f"c{i}": resource_of(f"c{i}", bytes([i]) * 400_000) for i in range(5)}
    stream = Stream(Mode.DELTA)
    reaction = stream.receive(Request(CDS_TYPE), snapshot(big))
    assert told(reaction.sends) == ["CDS c0 c1", "CDS c2 c3", "CDS c4"]
    first, second, third = (s.nonce for s in reaction.sends)
    assert stream.receive(Request(CDS_TYPE, nonce=first), FULL).events == (Acked(CDS_TYPE, first),)
    assert stream.watches[CDS_TYPE].state is State.WAITING
    stream.receive(Request(CDS_TYPE, nonce=second), FULL)
    stream.receive(Request(CDS_TYPE, nonce=third), FULL)
    assert stream.watches[CDS_TYPE].state is State.SYNCED


def test_unchanged_mapping_is_not_compared() -> None:
    """A push with the same mapping object skips the type without looking."""

    class Counting(dict[str, Resource]):
        looks = 0

        def items(self):  # type: ignore[no-untyped-def]
            self.looks += 1
            return super().items()

    clusters = Counting(resources(a="1"))
    talk = Talk(Mode.DELTA)
    talk.ask(CDS_TYPE, snap=snapshot(clusters))
    before = clusters.looks
    talk.push(Snapshot("v2", {CDS_TYPE: clusters}))
    assert clusters.looks == before


@BOTH
def test_bounds(mode: Mode) -> None:
    """Overlong names, too many types and a missing type are refused with a reason."""
    with pytest.raises(RemoteProtocolError, match="characters"):
        Talk(mode).ask(EDS_TYPE, "x" * (NAME_LENGTH_MAX + 1))
    with pytest.raises(RemoteProtocolError, match="type_url"):
        Talk(mode).ask("")
    talk = Talk(mode)
    with pytest.raises(RemoteProtocolError, match="resource types"):
        for index in range(TYPES_MAX + 1):
            talk.ask(f"t{index}")


def test_every_state_can_send_and_answers_need_a_response() -> None:
    """The table is complete for what the machine does: sending is always possible."""
    assert all((state, Step.SEND) in TRANSITIONS for state in State)
    assert (State.QUIET, Step.ACK_LAST) not in TRANSITIONS
