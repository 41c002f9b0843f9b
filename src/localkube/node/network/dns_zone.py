"""What the cluster's DNS answers, and DNS messages in bytes. Pure.

In: Services and EndpointSlices, then one query's bytes. Out: an answer's bytes, or None where the
question is not about this cluster (the server then asks the host's resolvers).
Names: https://github.com/kubernetes/dns/blob/master/docs/specification.md; messages: RFC 1035.
Written by hand and not with a DNS library because every outgoing connection of every pod waits for
it, up to five times along the search path: one answer takes about 20 us here.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

A, CNAME, SOA, PTR, AAAA, SRV, ANY = 1, 5, 6, 12, 28, 33, 255
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP = 0, 1, 2, 3, 4
TTL_S: Final = 5
_UDP_LIMIT: Final = 1232
_TRUNCATED: Final = 0x0200

Name = tuple[str, ...]
"""Labels in lower case, without the root."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query."""

    number: int
    flags: int
    name: Name
    kind: int
    raw: bytes  # the question section as it came (clients compare its letter case)
    udp_limit: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Response code and records (name, type, data)."""

    code: int
    records: tuple[tuple[Name, int, bytes], ...] = ()


@dataclass(slots=True)
class Zone:
    """All names of the cluster."""

    domain: Name
    addresses: dict[Name, list[str]] = field(default_factory=dict)
    services: dict[Name, list[tuple[int, Name]]] = field(default_factory=dict)
    aliases: dict[Name, Name] = field(default_factory=dict)
    pointers: dict[str, Name] = field(default_factory=dict)
    parents: set[Name] = field(default_factory=set)


def split_name(text: str) -> Name:
    """Return the labels of a name."""
    return tuple(label for label in text.lower().split(".") if label)


def build_zone(
    services: Iterable[Mapping[str, Any]], slices: Iterable[Mapping[str, Any]], domain: str
) -> Zone:
    """Return the zone for all Services."""
    by_service: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for item in slices:
        owner = (item["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
        if owner and item.get("addressType") == "IPv4":
            by_service.setdefault((item["metadata"]["namespace"], owner), []).append(item)
    zone = Zone(split_name(domain))
    for service in services:
        meta, spec = service["metadata"], service.get("spec") or {}
        name = (meta["name"], meta["namespace"], "svc", *zone.domain)
        if spec.get("type") == "ExternalName":
            zone.aliases[name] = split_name(spec.get("externalName") or "")
        elif spec.get("clusterIP") == "None":
            own = by_service.get((meta["namespace"], meta["name"]), [])
            publish = bool(spec.get("publishNotReadyAddresses"))
            _add_headless(zone, name, own, publish)
        elif spec.get("clusterIP") and ":" not in spec["clusterIP"]:
            zone.addresses[name] = [spec["clusterIP"]]
            zone.pointers[spec["clusterIP"]] = name
            for port in spec.get("ports") or []:
                _add_port(zone, name, port, int(port["port"]), name)
    for known in [*zone.addresses, *zone.services, *zone.aliases]:
        for cut in range(1, len(known)):
            zone.parents.add(known[cut:])
    return zone


def _add_port(zone: Zone, name: Name, port: Mapping[str, Any], number: int, host: Name) -> None:
    if port.get("name"):
        protocol = (port.get("protocol") or "TCP").lower()
        key = (f"_{port['name'].lower()}", f"_{protocol}", *name)
        zone.services.setdefault(key, []).append((number, host))


def _add_headless(
    zone: Zone, name: Name, slices: Iterable[Mapping[str, Any]], publish_unready: bool
) -> None:
    zone.addresses.setdefault(name, [])
    for item in slices:
        for endpoint in item.get("endpoints") or []:
            ready = (endpoint.get("conditions") or {}).get("ready") is not False
            if not (ready or publish_unready):
                continue
            for address in endpoint.get("addresses") or []:
                label = endpoint.get("hostname") or address.replace(".", "-")
                host = (label.lower(), *name)
                zone.addresses[name].append(address)
                zone.addresses.setdefault(host, []).append(address)
                if endpoint.get("hostname"):
                    zone.pointers[address] = host
                for port in item.get("ports") or []:
                    if port.get("port"):
                        _add_port(zone, name, port, int(port["port"]), host)


def resolve(zone: Zone, name: Name, kind: int, start: int = 0) -> Answer | None:
    """Answer from the zone; None if the name is not the cluster's. ``start`` rotates addresses."""
    if name[-2:] == ("in-addr", "arpa"):
        pointer = zone.pointers.get(".".join(reversed(name[:-2])))
        if pointer is None:
            return None
        records = ((name, PTR, encode_name(pointer)),) if kind in (PTR, ANY) else ()
        return Answer(NOERROR, records)
    size = len(zone.domain)
    if name[-size:] != zone.domain:
        return None
    alias = zone.aliases.get(name)
    if alias is not None:
        records = ((name, CNAME, encode_name(alias)),)
        inner = resolve(zone, alias, kind, start) if kind != CNAME else None
        return Answer(NOERROR, records + (inner.records if inner else ()))
    if name in zone.services:
        return _service_records(zone, name, kind)
    addresses = zone.addresses.get(name)
    if addresses is None:
        addresses = _pod_addresses(zone, name)
    if addresses is not None:
        found = []
        if kind in (A, ANY):
            turn = start % len(addresses) if addresses else 0
            for address in addresses[turn:] + addresses[:turn]:
                found.append((name, A, ipaddress.IPv4Address(address).packed))
        elif kind == SRV:
            return Answer(NOERROR)
        return Answer(NOERROR, tuple(found))
    return Answer(NOERROR if name in zone.parents or name == zone.domain else NXDOMAIN)


def _service_records(zone: Zone, name: Name, kind: int) -> Answer:
    if kind not in (SRV, ANY):
        return Answer(NOERROR)
    records = []
    for port, host in zone.services[name]:
        data = struct.pack("!HHH", 0, 100, port) + encode_name(host)
        records.append((name, SRV, data))
    for _, host in dict.fromkeys(zone.services[name]):
        for address in zone.addresses.get(host, []):
            records.append((host, A, ipaddress.IPv4Address(address).packed))
    return Answer(NOERROR, tuple(records))


def _pod_addresses(zone: Zone, name: Name) -> list[str] | None:
    """Return the address in ``a-b-c-d.NAMESPACE.pod.DOMAIN``."""
    head = name[: -len(zone.domain)]
    if len(head) != 3 or head[2] != "pod":
        return None
    try:
        return [str(ipaddress.IPv4Address(head[0].replace("-", ".")))]
    except ValueError:
        return None


def encode_name(name: Name) -> bytes:
    """Return a name in wire form."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name) + b"\0"


def decode_question(message: bytes) -> Question | None:
    """Return the question of a query; None if it is no well-formed query with one question."""
    if len(message) < 17:
        return None
    number, flags, questions, _, _, additional = struct.unpack_from("!6H", message)
    if flags & 0x8000 or questions != 1:
        return None
    labels, position = [], 12
    while True:
        if position >= len(message):
            return None
        size = message[position]
        if size == 0:
            break
        if size > 63 or position + 1 + size > len(message):
            return None
        labels.append(message[position + 1 : position + 1 + size])
        position += 1 + size
    end = position + 5
    if end > len(message):
        return None
    (kind,) = struct.unpack_from("!H", message, position + 1)
    limit = 512
    # An OPT record (EDNS) right after the question: root name, type 41, class = UDP size.
    if additional and message[end : end + 3] == b"\0\0\x29" and len(message) >= end + 5:
        limit = struct.unpack_from("!H", message, end + 3)[0]
    name = tuple(label.decode("latin-1").lower() for label in labels)
    return Question(number, flags, name, kind, message[12:end], max(512, min(limit, _UDP_LIMIT)))


def encode_answer(question: Question, answer: Answer, zone: Zone, udp: bool) -> bytes:
    """Return the response; over UDP, one that is too long is cut and marked."""
    body, count = bytearray(), 0
    truncated = 0
    limit = question.udp_limit if udp else 65535
    for name, kind, data in answer.records:
        # 0xC00C points to the name of the question.
        owner = b"\xc0\x0c" if name == question.name else encode_name(name)
        record = owner + struct.pack("!HHIH", kind, 1, TTL_S, len(data)) + data
        if 12 + len(question.raw) + len(body) + len(record) > limit:
            truncated = _TRUNCATED
            break
        body += record
        count += 1
    authority = b""
    if not answer.records and answer.code in (NOERROR, NXDOMAIN):
        authority = _soa(zone)
    # Response, authoritative, recursion desired as asked, recursion available.
    flags = 0x8400 | truncated | (question.flags & 0x0100) | 0x0080 | answer.code
    head = struct.pack("!6H", question.number, flags, 1, count, 1 if authority else 0, 0)
    return head + question.raw + bytes(body) + authority


def _soa(zone: Zone) -> bytes:
    """Return the record that says how long "no such name" may be remembered."""
    owner = encode_name(zone.domain)
    data = (
        encode_name(("ns", "dns", *zone.domain))
        + encode_name(("hostmaster", *zone.domain))
        + struct.pack("!5I", 1, 7200, 1800, 86400, TTL_S)
    )
    return owner + struct.pack("!HHIH", SOA, 1, TTL_S, len(data)) + data


def encode_failure(message: bytes, code: int) -> bytes:
    """Return a response with no records for any message that has a header."""
    number, flags = struct.unpack_from("!HH", message)
    question = decode_question(message)
    head = struct.pack(
        "!6H", number, 0x8080 | (flags & 0x7900) | code, 1 if question else 0, 0, 0, 0
    )
    return head + (question.raw if question else b"")
