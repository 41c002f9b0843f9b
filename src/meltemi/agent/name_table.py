"""DNS answers from the mesh's name table, and which questions are not ours.

In: the table that istiod sends, and questions as bytes. Out: answers as bytes, or None: the question is for the
platform's resolvers. Promises what a resolver expects: a known name without an address of the asked family is an
empty answer and not NXDOMAIN (https://www.rfc-editor.org/rfc/rfc2308, "NODATA"); types other than A and AAAA go to
the resolvers, which may know them; names compare in any case and come back as they were written; an answer that
does not fit is truncated, so that the client comes again over TCP. A name that the search list made longer is
answered with an alias to the name that was meant, which spares the client its further tries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

TTL_S = 30  # Istio's: short, as addresses of services change
_UDP_BYTES = 512  # without EDNS (RFC 1035)
_UDP_BYTES_MAX = 4096
_FAMILY = {
    dns.rdatatype.A: ".",
    dns.rdatatype.AAAA: ":",
}  # what tells the family in an address's text


@dataclass(frozen=True, slots=True)
class NameInfo:
    """What one host stands for; ``shortname`` and ``namespace`` are a Kubernetes service's."""

    addresses: tuple[str, ...]
    shortname: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Addresses of a name, and the name that was meant when the search list had made it longer."""

    addresses: tuple[str, ...]
    alias_of: str = ""


@dataclass(frozen=True, slots=True)
class NameTable:
    """All names that this pod resolves itself, each form of a service's name among them."""

    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    search: tuple[str, ...] = ()

    def look_up(self, name: str) -> Found | None:
        """What a name in lower case without final dot stands for; None when it is not in the table."""
        addresses = self._exact_or_wildcard(name)
        if addresses is not None:
            return Found(addresses)
        for domain in self.search:
            meant = name.removesuffix(f".{domain}")
            if meant != name and (addresses := self._exact_or_wildcard(meant)) is not None:
                return Found(addresses, meant)
        return None

    def _exact_or_wildcard(self, name: str) -> tuple[str, ...] | None:
        found = self.names.get(name)
        rest = name
        while found is None:
            _, dot, rest = rest.partition(".")
            if not dot:
                return None
            found = self.names.get(f"*.{rest}")
        return found


def build_name_table(
    hosts: Mapping[str, NameInfo], namespace: str, search: Iterable[str] = ()
) -> NameTable:
    """The table of a pod in ``namespace``; ``search`` is the list of its /etc/resolv.conf.

    A full host name wins over another service's short form.
    """
    names: dict[str, tuple[str, ...]] = {}
    for host, info in hosts.items():
        if info.shortname:
            short = f"{info.shortname}.{info.namespace}".lower()
            if host.startswith(f"{short}.svc."):
                names[short] = names[f"{short}.svc"] = info.addresses
                if info.namespace == namespace:
                    names[info.shortname.lower()] = info.addresses
    names.update({host.lower(): info.addresses for host, info in hosts.items()})
    return NameTable(names, tuple(domain.lower().strip(".") for domain in search))


def answer(table: NameTable, question: bytes, *, stream: bool = False) -> bytes | None:
    """The answer to one message, or None when the resolvers should have it.

    ``stream`` is True over TCP. Addresses come in another order each time (dnspython shuffles what it writes).
    """
    try:
        query = dns.message.from_wire(question)
    except dns.exception.DNSException:
        return None
    if query.opcode() != dns.opcode.QUERY or len(query.question) != 1:
        return None
    asked = query.question[0]
    if asked.rdclass != dns.rdataclass.IN or asked.rdtype not in _FAMILY:
        return None
    found = table.look_up(asked.name.to_text(omit_final_dot=True).lower())
    if found is None:
        return None
    response = dns.message.make_response(query, recursion_available=True)
    response.flags |= dns.flags.AA
    owner = asked.name
    if found.alias_of:
        owner = dns.name.from_text(found.alias_of)
        alias = dns.rrset.from_text(asked.name, TTL_S, "IN", "CNAME", owner.to_text())
        response.answer.append(alias)
    mark = _FAMILY[asked.rdtype]
    if addresses := [address for address in found.addresses if mark in address]:
        kind = dns.rdatatype.to_text(asked.rdtype)
        response.answer.append(dns.rrset.from_text_list(owner, TTL_S, "IN", kind, addresses))
    return _fit(response, query, stream)


def refuse(question: bytes) -> bytes | None:
    """SERVFAIL for a question that no resolver answered; None when it cannot even be read."""
    try:
        query = dns.message.from_wire(question)
        response = dns.message.make_response(query, recursion_available=True)
    except dns.exception.DNSException:
        return None
    response.set_rcode(dns.rcode.SERVFAIL)
    return response.to_wire()


def _fit(response: dns.message.Message, query: dns.message.Message, stream: bool) -> bytes:
    if stream:
        return response.to_wire(max_size=65535)
    size = min(max(query.payload, _UDP_BYTES), _UDP_BYTES_MAX) if query.edns >= 0 else _UDP_BYTES
    return response.to_wire(max_size=size, prefer_truncation=True)
