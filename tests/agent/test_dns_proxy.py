"""The DNS server of a pod with capture, on real sockets, with a resolver of our own behind it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import dns.asyncquery
import dns.message
import dns.rcode
import pytest

from meltemi.adapters.agent_dns import DnsProxy
from meltemi.agent.metrics import DnsCounters
from meltemi.agent.name_table import NameInfo, build_name_table

HOST = "127.0.0.1"


class Resolver(asyncio.DatagramProtocol):
    """Answers A questions with 192.0.2.1, over both transports; ``silent`` takes questions and says nothing."""

    def __init__(self) -> None:
        self.silent = False
        self.seen: list[str] = []
        self.port = 0

    async def start(self) -> Resolver:
        self.server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self.server.sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=(HOST, self.port)
        )
        return self

    def _reply(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        asked = query.question[0]
        self.seen.append(dns.rdatatype.to_text(asked.rdtype))
        response = dns.message.make_response(query)
        if asked.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(asked.name, 5, "IN", "A", "192.0.2.1"))
        else:
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        reply = self._reply(data)
        if not self.silent:
            self.transport.sendto(reply, addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!H", await reader.readexactly(2))
        reply = self._reply(await reader.readexactly(size))
        writer.write(struct.pack("!H", len(reply)) + reply)
        await writer.drain()
        writer.close()

    def close(self) -> None:
        self.server.close()
        self.transport.close()


class World:
    """A proxy, its resolver, and what they counted."""

    def __init__(self, resolver: Resolver, resolvers: tuple[str, ...] = (HOST,)) -> None:
        self.resolver = resolver
        self.counters = DnsCounters()
        self.proxy = DnsProxy(resolvers, self.counters, resolver_port=resolver.port)
        self.proxy.table = build_name_table({"api.example.com": NameInfo(("240.240.0.1",))}, "shop")
        self.port = 0

    async def start(self) -> World:
        self.port = await self.proxy.start(HOST, 0)
        return self

    async def ask(self, name: str, kind: str = "A", *, tcp: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, kind)
        send = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        return await send(query, HOST, port=self.port, timeout=10)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    resolver = await Resolver().start()
    made = await World(resolver).start()
    yield made
    await made.proxy.close()
    resolver.close()


def first_address(message: dns.message.Message) -> str:
    return str(message.answer[0][0])


@pytest.mark.parametrize("tcp", [False, True])
async def test_known_names_are_answered_here_and_others_by_the_resolver(
    world: World, tcp: bool
) -> None:
    assert first_address(await world.ask("api.example.com", tcp=tcp)) == "240.240.0.1"
    assert world.resolver.seen == []
    assert first_address(await world.ask("www.example.org", tcp=tcp)) == "192.0.2.1"
    assert (await world.ask("api.example.com", "HTTPS", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN
    assert world.resolver.seen == ["A", "HTTPS"]


async def test_a_new_table_counts_at_once(world: World) -> None:
    world.proxy.table = build_name_table({"new.example.com": NameInfo(("240.240.0.9",))}, "shop")
    assert first_address(await world.ask("new.example.com")) == "240.240.0.9"


async def test_a_silent_resolver_delays_nobody_else(world: World) -> None:
    """It is asked, and the table still answers meanwhile; in the end the client is told that nobody knows."""
    world.resolver.silent = True
    waiting = asyncio.ensure_future(world.ask("slow.example.org"))
    while not world.resolver.seen:
        await asyncio.sleep(0.01)
    assert first_address(await world.ask("api.example.com")) == "240.240.0.1"
    assert not waiting.done()
    assert (await waiting).rcode() == dns.rcode.SERVFAIL
    assert world.counters.upstream_failures == 1


async def test_the_next_resolver_is_asked_when_one_is_dead() -> None:
    """Nobody listens at 127.0.0.2; the kernel says so at once."""
    resolver = await Resolver().start()
    world = await World(resolver, ("127.0.0.2", HOST)).start()
    try:
        assert first_address(await world.ask("www.example.org")) == "192.0.2.1"
    finally:
        await world.proxy.close()
        resolver.close()


async def test_what_is_counted(world: World) -> None:
    await world.ask("api.example.com")
    await world.ask("www.example.org")
    text = "\n".join(world.counters.lines())
    assert "istio_agent_dns_requests_total 2" in text
    assert "istio_agent_dns_upstream_requests_total 1" in text
    assert "istio_agent_dns_upstream_failures_total 0" in text
    assert 'istio_agent_dns_upstream_request_duration_seconds_bucket{le="+Inf"} 1' in text
