"""Request bodies in Kubernetes' protobuf encoding, as kubectl's typed commands send them.

In: the bytes of a `runtime.Unknown` envelope ("k8s\\0" and a message). Out: the same object as it is
in JSON, so that nothing after decoding differs, and the numbers of fields that are not known here.
Raises a 400 ApiError for bytes that do not decode, 415 for a kind that has no message.

`protobuf_fields.json` holds, for each message, [number, JSON name, type, flag]: the wire contract
of Kubernetes 1.33 with the fields added up to 1.37 that localkube keeps. Types: s text, b bytes, i integer,
? boolean, d double, "r:" repeated, "m:" map with text keys; a name is a message. Flag `inline` says
that the message's fields appear in its parent's JSON, `zero` that an explicit 0 or false means
something (the others are written always and are absent in JSON).
"""

from __future__ import annotations

import base64
import functools
import importlib.resources
import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from localkube.apiserver.errors import ApiError, bad_request, unsupported_media_type
from localkube.kit import clock

JsonObject = dict[str, Any]
Table = dict[str, dict[int, "_Field"]]

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_PREFIX = "io.k8s.api."
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_META_KINDS = frozenset({"DeleteOptions"})
_MAX_DEPTH = 64


class _Field(NamedTuple):
    name: str
    kind: str
    shape: str  # "", "r" repeated, "m" map
    flag: str


@functools.cache
def _table() -> Table:
    path = importlib.resources.files("localkube.apiserver").joinpath("protobuf_fields.json")
    raw: dict[str, list[list[Any]]] = msgspec.json.decode(path.read_bytes())
    table: Table = {}
    for message, rows in raw.items():
        fields = table[message] = {}
        for number, name, kind, *flags in rows:
            shape, _, rest = kind.rpartition(":")
            fields[number] = _Field(name, rest, shape, flags[0] if flags else "")
    return table


def message_name(api_version: str, kind: str) -> str | None:
    """Return the message of a kind, None if it has none here."""
    group, _, version = api_version.rpartition("/")
    if kind in _META_KINDS:
        name = _META + kind
    else:
        package = group.split(".")[0] or "core"
        name = f"{_PREFIX}{package}.{version}.{kind}"
    return name if name in _table() else None


def decode_protobuf(body: bytes) -> tuple[JsonObject, list[str]]:
    """Return the object in an envelope, and the paths of fields that were left out as unknown."""
    if not body.startswith(_MAGIC):
        raise bad_request("the body does not begin as Kubernetes' protobuf encoding does")
    try:
        return _decode_envelope(memoryview(body)[len(_MAGIC) :])
    except (IndexError, struct.error, UnicodeDecodeError, ValueError, msgspec.DecodeError) as error:
        raise bad_request(f"the protobuf body does not decode: {error}") from None


def _decode_envelope(data: memoryview) -> tuple[JsonObject, list[str]]:
    api_version = kind = ""
    raw: memoryview = memoryview(b"")
    for number, value in _fields(data):
        if number == 1:
            for inner, text in _fields(_bytes(value)):
                if inner == 1:
                    api_version = str(_bytes(text), "utf-8")
                elif inner == 2:
                    kind = str(_bytes(text), "utf-8")
        elif number == 2:
            raw = _bytes(value)
    message = message_name(api_version, kind)
    if message is None:
        raise _no_message(api_version, kind)
    unknown: list[str] = []
    obj: JsonObject = {"kind": kind, "apiVersion": api_version}
    _decode_into(obj, message, raw, "", unknown, 0)
    return obj, unknown


def _no_message(api_version: str, kind: str) -> ApiError:
    shown = f"{MEDIA_TYPE} of {api_version} {kind}"
    return unsupported_media_type(shown, ("application/json", "application/yaml"))


# -- the wire -------------------------------------------------------------------------------------


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    shift = value = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint is too long")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value); a varint is an int, everything else its bytes."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire == 1:
            size = 8
        elif wire == 5:
            size = 4
        else:
            raise ValueError(f"wire type {wire} is not used")
        if size > end - position:
            raise ValueError("a field is longer than the message")
        yield number, data[position : position + size]
        position += size


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value


def _signed(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number is expected")
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


# -- messages -------------------------------------------------------------------------------------


def _decode_into(
    target: JsonObject, message: str, data: memoryview, path: str, unknown: list[str], depth: int
) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages are nested deeper than {_MAX_DEPTH}")
    fields = _table()[message]
    for number, value in _fields(data):
        field = fields.get(number)
        if field is None:
            unknown.append(f"{path or message.rpartition('.')[2]}, protobuf field {number}")
            continue
        here = f"{path}.{field.name}" if path else field.name
        if field.flag == "inline":
            _decode_into(target, field.kind, _bytes(value), path, unknown, depth + 1)
        elif field.shape == "m":
            key, item = _map_entry(field, _bytes(value), here, unknown, depth)
            target.setdefault(field.name, {})[key] = item
        elif field.shape == "r":
            items = target.setdefault(field.name, [])
            if field.kind in _NUMBERS and not isinstance(value, int):
                items.extend(_packed(value))
            else:
                items.append(_value(field.kind, value, here, unknown, depth))
        else:
            decoded = _value(field.kind, value, here, unknown, depth)
            if _is_set(field, decoded):
                target[field.name] = decoded


def _is_set(field: _Field, value: Any) -> bool:
    if value is None:
        return False
    if value in ("", 0, False) and not isinstance(value, dict | list):
        return field.flag == "zero" or field.kind == "intstr"
    return True


_NUMBERS = frozenset("i?")


def _packed(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield _signed(value)


def _map_entry(
    field: _Field, data: memoryview, path: str, unknown: list[str], depth: int
) -> tuple[str, Any]:
    key, item = "", _EMPTY.get(field.kind, dict)()
    for number, value in _fields(data):
        if number == 1:
            key = str(_bytes(value), "utf-8")
        elif number == 2:
            item = _value(field.kind, value, f"{path}[{key}]", unknown, depth)
    return key, item


_EMPTY: dict[str, Callable[[], Any]] = {"s": str, "b": str, "i": int, "?": bool, "quantity": str}


def _value(kind: str, value: int | memoryview, path: str, unknown: list[str], depth: int) -> Any:
    decoder = _SCALARS.get(kind)
    if decoder is not None:
        return decoder(value)
    message = _table()[kind]
    if not isinstance(value, int) and set(message) == {1} and message[1].name == "items":
        # A named list type (ExtraValue, Verbs): in JSON it is the list itself.
        return [_value(message[1].kind, one, path, unknown, depth) for _, one in _fields(value)]
    obj: JsonObject = {}
    _decode_into(obj, kind, _bytes(value), path, unknown, depth + 1)
    return obj


def _text(value: int | memoryview) -> str:
    return str(_bytes(value), "utf-8")


def _base64(value: int | memoryview) -> str:
    return base64.b64encode(_bytes(value)).decode()


def _double(value: int | memoryview) -> float:
    data = bytes(_bytes(value))
    return float(struct.unpack("<d" if len(data) == 8 else "<f", data)[0])


def _moment(value: int | memoryview) -> datetime | None:
    seconds = nanos = 0
    parts = list(_fields(_bytes(value)))
    for number, part in parts:
        if number == 1:
            seconds = _signed(part)
        elif number == 2:
            nanos = _signed(part)
    if not parts or (seconds == 0 and nanos == 0):
        return None
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanos // 1000)


def _time(value: int | memoryview) -> str | None:
    moment = _moment(value)
    return clock.rfc3339(moment) if moment else None


def _micro_time(value: int | memoryview) -> str | None:
    moment = _moment(value)
    return clock.rfc3339_micro(moment) if moment else None


def _quantity(value: int | memoryview) -> str | None:
    return next((_text(part) for number, part in _fields(_bytes(value)) if number == 1), None)


def _int_or_string(value: int | memoryview) -> int | str:
    parts = dict(_fields(_bytes(value)))
    if _signed(parts.get(1, 0)) == 1:
        return _text(parts.get(3, memoryview(b"")))
    return _signed(parts.get(2, 0))


def _raw(value: int | memoryview) -> Any:
    content = next((_bytes(part) for number, part in _fields(_bytes(value)) if number == 1), None)
    return msgspec.json.decode(content) if content else None


_SCALARS: dict[str, Callable[[int | memoryview], Any]] = {
    "s": _text,
    "b": _base64,
    "i": _signed,
    "?": lambda value: bool(_signed(value)),
    "d": _double,
    "time": _time,
    "microtime": _micro_time,
    "quantity": _quantity,
    "intstr": _int_or_string,
    "raw": _raw,
}
