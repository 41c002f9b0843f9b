"""The OpenAPI v2 document in protobuf, the only form in which client-go asks for it.

In: the document as plain data. Out: bytes of the message `openapi.v2.Document` (field numbers of gnostic's
OpenAPIv2.proto), with its info and definitions: what kubectl needs to look at objects whose kind the server
does not know, and for `kubectl explain --output=plaintext-openapiv2`. Paths stay out: clients read them from v3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

MEDIA_TYPE: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
MEDIA_TYPES: Final = (MEDIA_TYPE, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
"""Both spellings are asked for; answers carry the first, as Go cannot read the second in a Content-Type."""

_TEXTS: Final = {"$ref": 1, "format": 2, "title": 3, "description": 4, "pattern": 13}
_DOUBLES: Final = {"multipleOf": 6, "maximum": 7, "minimum": 9}
_BOOLEANS: Final = {
    "exclusiveMaximum": 8,
    "exclusiveMinimum": 10,
    "uniqueItems": 16,
    "readOnly": 27,
}
_INTEGERS: Final = {
    "maxLength": 11,
    "minLength": 12,
    "maxItems": 14,
    "minItems": 15,
    "maxProperties": 17,
    "minProperties": 18,
}
_ANYS: Final = {"default": 5, "example": 30}
_REQUIRED, _ENUM, _ADDITIONAL, _TYPE, _ITEMS, _PROPERTIES, _EXTENSION = 19, 20, 21, 22, 23, 25, 31


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a Swagger 2.0 document as an `openapi.v2.Document`."""
    info = document["info"]
    definitions = b"".join(
        _bytes(1, _named(name, _schema(node))) for name, node in document["definitions"].items()
    )
    return (
        _text(1, document["swagger"])
        + _bytes(2, _text(1, info["title"]) + _text(2, info["version"]))
        + _bytes(8, b"")
        + _bytes(9, definitions)
    )


def _schema(node: Mapping[str, Any]) -> bytes:
    return b"".join(part for key, value in node.items() for part in _field(key, value))


def _field(key: str, value: Any) -> Iterator[bytes]:
    if number := _TEXTS.get(key):
        yield _text(number, value)
    elif number := _DOUBLES.get(key):
        yield _key(number, 1) + struct.pack("<d", value)
    elif number := _BOOLEANS.get(key) or _INTEGERS.get(key):
        yield _key(number, 0) + _varint(int(value))
    elif number := _ANYS.get(key):
        yield _bytes(number, _any(value))
    elif key.startswith("x-"):
        yield _bytes(_EXTENSION, _named(key, _any(value)))
    else:
        yield from _structure(key, value)


def _structure(key: str, value: Any) -> Iterator[bytes]:
    """Fields that hold schemas or lists; a key that version 2 does not have gives nothing."""
    if key == "required":
        yield from (_text(_REQUIRED, name) for name in value)
    elif key == "enum":
        yield from (_bytes(_ENUM, _any(choice)) for choice in value)
    elif key == "type":
        names = [value] if isinstance(value, str) else value
        yield _bytes(_TYPE, b"".join(_text(1, name) for name in names))
    elif key == "items":
        nodes = value if isinstance(value, list) else [value]
        yield _bytes(_ITEMS, b"".join(_bytes(1, _schema(node)) for node in nodes))
    elif key == "properties":
        named = (_bytes(1, _named(name, _schema(node))) for name, node in value.items())
        yield _bytes(_PROPERTIES, b"".join(named))
    elif key == "additionalProperties":
        inner = _key(2, 0) + _varint(int(value)) if isinstance(value, bool) else None
        yield _bytes(_ADDITIONAL, _bytes(1, _schema(value)) if inner is None else inner)


def _named(name: str, value: bytes) -> bytes:
    return _text(1, name) + _bytes(2, value)


def _any(value: Any) -> bytes:
    return _bytes(2, msgspec.json.encode(value) + b"\n")  # field `yaml`; JSON is YAML


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers take ten bytes, as protobuf has it
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
