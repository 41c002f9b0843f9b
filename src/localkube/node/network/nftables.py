"""nf_tables as values: expressions, rules, maps and one atomic batch, encoded for netlink.

In: plain values. Out: bytes of one batch, and ``Connection.commit`` which gives them to the kernel:
all of a batch takes effect or nothing does. Pure but for ``Connection``.

pyroute2 encodes single rules, but has no maps (a set with data) and no batch that mixes tables,
chains, anonymous maps and elements; Service addresses need both. The format is that of
linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable

_NFNL_SUBSYS_NFTABLES = 10
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _DELTABLE = 0, 2
_NEWCHAIN, _DELCHAIN = 3, 5
_NEWRULE, _DELRULE = 6, 8
_NEWSET, _NEWSETELEM, _DELSETELEM = 9, 12, 14
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE, _NLM_F_APPEND = 1, 4, 0x400, 0x800
_NLMSG_ERROR = 2
_NESTED = 0x8000
IPV4 = 2

# Sixteen-byte registers; register 0 holds the verdict. 4-byte registers begin at 8.
VERDICT = 0
REG32_00 = 8

SET_ANONYMOUS, SET_CONSTANT, SET_MAP = 1, 2, 8
TYPE_VERDICT = 0xFFFFFF00

ACCEPT, DROP, JUMP, GOTO, RETURN = 1, 0, -3, -4, -5
HOOK_PREROUTING, HOOK_INPUT, HOOK_FORWARD, HOOK_OUTPUT, HOOK_POSTROUTING = range(5)


def attribute(kind: int, payload: bytes) -> bytes:
    """Encode one netlink attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nest(kind: int, *children: bytes) -> bytes:
    """Encode a nested attribute."""
    return attribute(kind | _NESTED, b"".join(children))


def _string(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nest(1, _string(1, name), nest(2, *attributes))  # NFTA_LIST_ELEM


def meta(key: int, register: int = REG32_00) -> bytes:
    """Load meta ``key`` (e.g. L4PROTO) into a register."""
    return _expression("meta", _u32(2, key), _u32(1, register))


META_MARK, META_L4PROTO, META_OIFNAME = 3, 16, 7


def payload(base: int, offset: int, length: int, register: int = REG32_00) -> bytes:
    """Load packet bytes: base 1 is the network header, 2 the transport header."""
    return _expression(
        "payload", _u32(1, register), _u32(2, base), _u32(3, offset), _u32(4, length)
    )


def ip_source(register: int = REG32_00) -> bytes:
    """Load the IPv4 source address."""
    return payload(1, 12, 4, register)


def ip_destination(register: int = REG32_00) -> bytes:
    """Load the IPv4 destination address."""
    return payload(1, 16, 4, register)


def destination_port(register: int = REG32_00) -> bytes:
    """Load the TCP, UDP or SCTP destination port."""
    return payload(2, 2, 2, register)


def mask(value: bytes, register: int = REG32_00) -> bytes:
    """And ``register`` with ``value``."""
    return _expression(
        "bitwise",
        _u32(1, register),
        _u32(2, register),
        _u32(3, len(value)),
        nest(4, attribute(1, value)),
        nest(5, attribute(1, b"\0" * len(value))),
    )


def equal(value: bytes, register: int = REG32_00) -> bytes:
    """Go on only if ``register`` holds ``value``."""
    return _expression("cmp", _u32(1, register), _u32(2, 0), nest(3, attribute(1, value)))


def verdict(code: int, chain: str = "") -> bytes:
    """End the rule with ``code``; JUMP and GOTO name a chain."""
    return _expression("immediate", _u32(1, VERDICT), nest(2, verdict_data(code, chain)))


def verdict_data(code: int, chain: str = "") -> bytes:
    """Encode a verdict as data (of a map element)."""
    return nest(2, _u32(1, code), *([_string(2, chain)] if chain else []))


def value_data(value: bytes) -> bytes:
    """Encode bytes as data (of a key or of a map element)."""
    return attribute(1, value)


def random_below(modulus: int, register: int = REG32_00) -> bytes:
    """Load a random number in 0..modulus-1, in host byte order."""
    return _expression("numgen", _u32(1, register), _u32(2, modulus), _u32(3, 1), _u32(4, 0))


def hash_source(modulus: int, register: int = REG32_00) -> bytes:
    """Load a number in 0..modulus-1 that depends on ``register``'s four bytes only."""
    return _expression(
        "hash",
        _u32(1, register),
        _u32(2, register),
        _u32(3, 4),
        _u32(4, modulus),
        _u32(5, 0x6D656C74),
        _u32(7, 0),
    )


def lookup(
    name: str, set_id: int = 0, source: int = REG32_00, destination: int | None = None
) -> bytes:
    """Look ``source`` up in a set (go on if found) or a map (put its data in ``destination``)."""
    parts = [_string(1, name), _u32(2, source)]
    if destination is not None:
        parts.append(_u32(3, destination))
    if set_id:
        parts.append(_u32(4, set_id))
    return _expression("lookup", *parts)


def dnat(address: int, port: int) -> bytes:
    """Rewrite the destination to the address and port held in two registers."""
    return _expression("nat", _u32(1, 1), _u32(2, IPV4), _u32(3, address), _u32(5, port))


def masquerade() -> bytes:
    """Rewrite the source to the outgoing interface's address."""
    return _expression("masq")


def reject_reset() -> bytes:
    """Answer with a TCP reset."""
    return _expression("reject", _u32(1, 1))


def reject_unreachable() -> bytes:
    """Answer with ICMP port unreachable."""
    return _expression("reject", _u32(1, 0), attribute(2, b"\x03"))


class Batch:
    """Collects changes of one table, in order."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._messages: list[tuple[int, int, bytes]] = []
        self._set_id = 0

    def __bool__(self) -> bool:
        return bool(self._messages)

    def _add(self, kind: int, flags: int, *attributes: bytes) -> None:
        self._messages.append((kind, flags, b"".join(attributes)))

    def add_table(self) -> None:
        """Make the table if it is not there."""
        self._add(_NEWTABLE, _NLM_F_CREATE, _string(1, self.table))

    def delete_table(self) -> None:
        """Delete the table with all it holds."""
        self._add(_DELTABLE, 0, _string(1, self.table))

    def add_chain(self, name: str) -> None:
        """Make a chain that rules and maps jump to, if it is not there."""
        self._add(_NEWCHAIN, _NLM_F_CREATE, _string(1, self.table), _string(3, name))

    def add_base_chain(self, name: str, kind: str, hook: int, priority: int) -> None:
        """Make a chain that the kernel calls at ``hook``; its policy is accept."""
        self._add(
            _NEWCHAIN,
            _NLM_F_CREATE,
            _string(1, self.table),
            _string(3, name),
            nest(4, _u32(1, hook), _u32(2, priority)),
            _u32(5, ACCEPT),
            _string(7, kind),
        )

    def flush_chain(self, name: str) -> None:
        """Delete all rules of a chain."""
        self._add(_DELRULE, 0, _string(1, self.table), _string(2, name))

    def delete_chain(self, name: str) -> None:
        """Delete an empty chain that nothing refers to."""
        self._add(_DELCHAIN, 0, _string(1, self.table), _string(3, name))

    def add_rule(self, chain: str, *expressions: bytes) -> None:
        """Append a rule."""
        self._add(
            _NEWRULE,
            _NLM_F_CREATE | _NLM_F_APPEND,
            _string(1, self.table),
            _string(2, chain),
            nest(4, *expressions),
        )

    def add_set(
        self,
        name: str,
        key_length: int,
        data: tuple[int, int] | None = None,
        anonymous: bool = False,
    ) -> int:
        """Make a set, or with ``data`` = (type, length) a map; return its number in this batch."""
        self._set_id += 1
        flags = (SET_MAP if data else 0) | ((SET_ANONYMOUS | SET_CONSTANT) if anonymous else 0)
        parts = [
            _string(1, self.table),
            _string(2, name),
            _u32(3, flags),
            _u32(4, 0),
            _u32(5, key_length),
            _u32(10, self._set_id),
        ]
        if data:
            parts += [_u32(6, data[0]), _u32(7, data[1])]
        self._add(_NEWSET, _NLM_F_CREATE, *parts)
        return self._set_id

    def add_elements(
        self, name: str, elements: Iterable[tuple[bytes, bytes]], set_id: int = 0
    ) -> None:
        """Add (key, encoded data or nothing) pairs to a set or map."""
        self._elements(_NEWSETELEM, _NLM_F_CREATE, name, elements, set_id)

    def delete_elements(self, name: str, keys: Iterable[bytes]) -> None:
        """Remove elements; each must be there."""
        self._elements(_DELSETELEM, 0, name, ((key, b"") for key in keys), 0)

    def _elements(
        self,
        kind: int,
        flags: int,
        name: str,
        elements: Iterable[tuple[bytes, bytes]],
        set_id: int,
    ) -> None:
        rows = list(elements)
        # An attribute's length is 16 bits: many elements go as several messages.
        for start in range(0, len(rows), 400):
            items = [
                nest(1, nest(1, value_data(key)), *([nest(2, data)] if data else []))
                for key, data in rows[start : start + 400]
            ]
            parts = [_string(1, self.table), _string(2, name), nest(3, *items)]
            if set_id:
                parts.append(_u32(4, set_id))
            self._add(kind, flags, *parts)

    def encode(self) -> tuple[bytes, int]:
        """Return the batch's bytes and the number of acknowledgements to expect."""
        # res_id of the begin and end messages names the subsystem.
        frame = struct.pack("!BBH", 0, 0, _NFNL_SUBSYS_NFTABLES)
        out = [_message(_BATCH_BEGIN, _NLM_F_REQUEST, 0, frame)]
        for sequence, (kind, flags, body) in enumerate(self._messages, start=1):
            head = struct.pack("!BBH", IPV4, 0, 0)
            number = _NFNL_SUBSYS_NFTABLES << 8 | kind
            wanted = _NLM_F_REQUEST | _NLM_F_ACK | flags
            out.append(_message(number, wanted, sequence, head + body))
        out.append(_message(_BATCH_END, _NLM_F_REQUEST, len(self._messages) + 1, frame))
        return b"".join(out), len(self._messages)


def _message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


class Connection:
    """A netfilter netlink socket in the network namespace in which it was made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self._socket.bind((0, 0))
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        self._socket.settimeout(10.0)

    def close(self) -> None:
        """Close the socket; the tables stay."""
        self._socket.close()

    def commit(self, batch: Batch) -> None:
        """Apply ``batch`` atomically; raise OSError naming the first refused message."""
        data, expected = batch.encode()
        self._socket.send(data)
        failure: OSError | None = None
        seen = 0
        while seen < expected:
            reply = self._socket.recv(1 << 18)
            while len(reply) >= 16:
                size, kind, _, sequence, _ = struct.unpack_from("=IHHII", reply)
                if kind == _NLMSG_ERROR:
                    seen += 1
                    (code,) = struct.unpack_from("=i", reply, 16)
                    if code and failure is None:
                        name = errno.errorcode.get(-code, str(code))
                        text = f"nftables message {sequence}: {name}: {os.strerror(-code)}"
                        failure = OSError(-code, text)
                    if code and sequence == 0:
                        seen = expected  # the batch as a whole was refused
                reply = reply[(size + 3) & ~3 :]
        if failure is not None:
            raise failure
