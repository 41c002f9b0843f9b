"""Protobuf wire format by hand, for the few messages where it pays (endpoints, spliced lists).

Concatenating encoded fields is a legal message, so cached parts can be joined without building objects.
"""

from __future__ import annotations

# Nearly every number here is a small tag or length.
_SHORT = tuple(bytes((number,)) for number in range(0x80))


def varint(number: int) -> bytes:
    """The base-128 encoding of a non-negative integer."""
    if number <= 0x7F:
        return _SHORT[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field_bytes(number: int, body: bytes) -> bytes:
    """A length-delimited field: a string, bytes or a message."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def field_text(number: int, text: str) -> bytes:
    """A string field; nothing when it is empty (proto3's default)."""
    return field_bytes(number, text.encode()) if text else b""


def field_int(number: int, amount: int) -> bytes:
    """A varint field; nothing when it is 0."""
    return varint(number << 3) + varint(amount) if amount else b""


def wrapped_int(number: int, amount: int) -> bytes:
    """A UInt32Value field, present even when it is 0."""
    return field_bytes(number, field_int(1, amount))


def struct_of_text(pairs: tuple[tuple[str, str], ...]) -> bytes:
    """A ``google.protobuf.Struct`` whose values are strings."""
    return b"".join(
        field_bytes(1, field_text(1, key) + field_bytes(2, field_bytes(3, text.encode())))
        for key, text in pairs
    )
