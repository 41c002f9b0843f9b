"""Whatever happens on the way, a proxy ends up with exactly what it subscribes to."""

from __future__ import annotations

from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given
from hypothesis import strategies as st

from meltemi.discovery.protocol import WHOLE_TYPES, Mode, Request, Send, Snapshot
from meltemi.discovery.stream import Stream
from meltemi.model.names import CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE
from meltemi.model.resource import resource_of

NAMES = ("a", "b", "c")
TYPES = (CDS_TYPE, EDS_TYPE, LDS_TYPE, RDS_TYPE)
CONTENT = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["1", "2", "3"]))
WORLDS = st.fixed_dictionaries(dict.fromkeys(TYPES, CONTENT))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), WORLDS),
        st.tuples(st.just("subscribe"), st.sampled_from(NAMES)),
        st.tuples(st.just("unsubscribe"), st.sampled_from(NAMES)),
    ),
    max_size=12,
)


def snapshot(world: dict[str, dict[str, str]]) -> Snapshot:
    return Snapshot(
        "v",
        {t: {n: resource_of(n, (n + b).encode()) for n, b in c.items()} for t, c in world.items()},
    )


class Proxy:
    """Applies responses as Envoy does, and acknowledges them."""

    def __init__(self, mode: Mode) -> None:
        self.stream = Stream(mode)
        self.has: dict[str, dict[str, bytes]] = {t: {} for t in TYPES}
        self.names: dict[str, set[str]] = {t: set() for t in TYPES}
        self.nonce: dict[str, str] = {}
        self.current = snapshot({t: {} for t in TYPES})

    def begin(self) -> None:
        for type_url in TYPES:
            self.ask(type_url)

    def ask(
        self, type_url: str, subscribe: tuple[str, ...] = (), drop: tuple[str, ...] = ()
    ) -> None:
        self.names[type_url] |= set(subscribe)
        self.names[type_url] -= set(drop)
        for name in drop:
            self.has[type_url].pop(name, None)
        sotw = self.stream.mode is Mode.SOTW
        names = tuple(sorted(self.names[type_url])) if sotw else subscribe
        nonce = self.nonce.get(type_url, "")
        request = Request(type_url, names, () if sotw else drop, nonce)
        self.take(self.stream.receive(request, self.current).sends)

    def push(self, world: dict[str, dict[str, str]]) -> None:
        self.current = snapshot(world)
        self.take(tuple(self.stream.push(self.current)))

    def take(self, sends: tuple[Send, ...]) -> None:
        for send in sends:
            self.apply(send)
            self.nonce[send.type_url] = send.nonce
            sotw = self.stream.mode is Mode.SOTW
            names = tuple(sorted(self.names[send.type_url])) if sotw else ()
            more = self.stream.receive(
                Request(send.type_url, names, nonce=send.nonce), self.current
            )
            assert more.sends == ()

    def apply(self, send: Send) -> None:
        held = self.has[send.type_url]
        if self.stream.mode is Mode.SOTW:
            message = discovery_pb2.DiscoveryResponse.FromString(send.payload())
            if send.type_url in WHOLE_TYPES:
                held.clear()
            held.update({r.value[:1].decode(): r.value for r in message.resources})
            return
        delta = discovery_pb2.DeltaDiscoveryResponse.FromString(send.payload())
        held.update({r.name: r.resource.value for r in delta.resources})
        for name in delta.removed_resources:
            held.pop(name, None)

    def wanted(self, type_url: str) -> dict[str, bytes]:
        everything = type_url in WHOLE_TYPES
        return {
            name: resource.body
            for name, resource in self.current.types[type_url].items()
            if everything or name in self.names[type_url]
        }


@given(st.sampled_from(list(Mode)), STEPS)
def test_a_proxy_has_what_it_wants(mode: Mode, steps: list[tuple[str, object]]) -> None:
    """After any mix of pushes and subscriptions, held equals wanted, and another push sends nothing."""
    proxy = Proxy(mode)
    proxy.begin()
    for what, value in steps:
        if what == "push":
            proxy.push(value)  # type: ignore[arg-type]
            # An Envoy drops the endpoints of a cluster that is gone, and its subscription.
            gone = proxy.names[EDS_TYPE] - set(proxy.current.types[CDS_TYPE])
            if gone:
                proxy.ask(EDS_TYPE, drop=tuple(sorted(gone)))
        elif what == "subscribe":
            if value in proxy.current.types[CDS_TYPE] and value not in proxy.names[EDS_TYPE]:
                proxy.ask(EDS_TYPE, (str(value),))
            if value not in proxy.names[RDS_TYPE]:
                proxy.ask(RDS_TYPE, (str(value),))
        elif value in proxy.names[RDS_TYPE]:
            proxy.ask(RDS_TYPE, drop=(str(value),))
    for type_url in TYPES:
        held, wanted = proxy.has[type_url], proxy.wanted(type_url)
        if mode is Mode.SOTW and type_url not in WHOLE_TYPES:
            # SotW cannot remove single endpoints or routes: they go with their cluster or listener.
            held = {n: b for n, b in held.items() if n in proxy.current.types[type_url]}
        assert held == wanted
    assert (
        proxy.stream.push(
            snapshot(
                {
                    t: {n: r.body.decode()[1:] for n, r in c.items()}
                    for t, c in proxy.current.types.items()
                }
            )
        )
        == []
    )
