"""SPDY/3.1 framing for one connection, without I/O.

In: received bytes, and commands (open a stream, send data, ...). Out: events, and bytes to send.
Promises: a malformed frame raises SpdyError; nothing is buffered but one incomplete frame.
Flow control is not enforced: neither side of Kubernetes' streaming uses it (its SPDY library
ignores WINDOW_UPDATE), back-pressure comes from the connection below.
Source: the SPDY protocol, draft 3.1 (header names and values are zlib-compressed with a preset
dictionary, shared by all frames of one direction).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

_NAMES = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language "
    "accept-ranges age allow authorization cache-control connection content-base content-encoding "
    "content-language content-length content-location content-md5 content-range content-type date "
    "etag expect expires from host if-match if-modified-since if-none-match if-range "
    "if-unmodified-since last-modified location max-forwards pragma proxy-authenticate "
    "proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url "
    "public set-cookie keep-alive origin"
)
_REST = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _build_dictionary() -> bytes:
    words = [word.replace("_", " ").encode() for word in _NAMES.split()]
    return b"".join(struct.pack("!I", len(w)) + w for w in words) + _REST.encode()


DICTIONARY: Final = _build_dictionary()

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _SETTINGS = 1, 2, 3, 4
_PING, _GOAWAY, _HEADERS, _WINDOW_UPDATE = 6, 7, 8, 9
_FIN: Final = 1
_VERSION: Final = 3
_LARGEST_FRAME: Final = 1 << 24
_DATA_CHUNK: Final = 1 << 15

Headers = dict[str, str]


class SpdyError(Exception):
    """The peer broke the protocol; the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """The peer opened a stream and waits for a reply."""

    stream: int
    headers: Headers
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """The peer accepted a stream that we opened."""

    stream: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Bytes came on a stream; ``fin``: they are the last ones."""

    stream: int
    data: bytes
    fin: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The peer gave a stream up."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class ConnectionEnding:
    """The peer will open no more streams."""

    last_stream: int


Event = StreamOpened | StreamAccepted | DataReceived | StreamReset | ConnectionEnding


class SpdyConnection:
    """One side of a connection."""

    def __init__(self, client: bool = False) -> None:
        self._buffer = bytearray()
        self._out = bytearray()
        self._compress = zlib.compressobj(zdict=DICTIONARY)
        self._decompress = zlib.decompressobj(zdict=DICTIONARY)
        self._next_stream = 1 if client else 2

    def data_to_send(self) -> bytes:
        """Take the bytes that are waiting to be sent."""
        data = bytes(self._out)
        self._out.clear()
        return data

    # -- commands ----------------------------------------------------------------------------

    def open_stream(self, headers: Headers, fin: bool = False) -> int:
        """Open a stream; return its number."""
        number = self._next_stream
        self._next_stream += 2
        body = struct.pack("!IIBB", number, 0, 0, 0) + self._encode_headers(headers)
        self._control(_SYN_STREAM, _FIN if fin else 0, body)
        return number

    def accept_stream(self, stream: int, headers: Headers | None = None) -> None:
        """Reply to a stream that the peer opened."""
        body = struct.pack("!I", stream) + self._encode_headers(headers or {})
        self._control(_SYN_REPLY, 0, body)

    def send(self, stream: int, data: bytes, fin: bool = False) -> None:
        """Send data on a stream; with ``fin`` nothing follows from our side."""
        view = memoryview(data)
        while len(view) > _DATA_CHUNK:
            self._data(stream, 0, view[:_DATA_CHUNK])
            view = view[_DATA_CHUNK:]
        self._data(stream, _FIN if fin else 0, view)

    def reset(self, stream: int, status: int = 5) -> None:
        """Give a stream up (5 is CANCEL)."""
        self._control(_RST_STREAM, 0, struct.pack("!II", stream, status))

    def go_away(self) -> None:
        """Say that the connection ends."""
        self._control(_GOAWAY, 0, struct.pack("!II", 0, 0))

    # -- receiving ---------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Event]:
        """Take received bytes; return what happened. Raises SpdyError."""
        self._buffer += data
        events: list[Event] = []
        while len(self._buffer) >= 8:
            first, second = struct.unpack_from("!II", self._buffer)
            flags, size = second >> 24, second & 0xFFFFFF
            if size > _LARGEST_FRAME or len(self._buffer) < 8 + size:
                break
            body = bytes(self._buffer[8 : 8 + size])
            del self._buffer[: 8 + size]
            if first & 0x80000000:
                event = self._on_control((first >> 16) & 0x7FFF, first & 0xFFFF, flags, body)
            else:
                event = DataReceived(first, body, bool(flags & _FIN))
            if event is not None:
                events.append(event)
        return events

    def _on_control(self, version: int, kind: int, flags: int, body: bytes) -> Event | None:
        if version != _VERSION:
            raise SpdyError(f"SPDY version {version} is not supported, only {_VERSION}")
        try:
            if kind == _SYN_STREAM:
                (number,) = struct.unpack_from("!I", body)
                return StreamOpened(number, self._decode_headers(body[10:]), bool(flags & _FIN))
            if kind == _SYN_REPLY:
                (number,) = struct.unpack_from("!I", body)
                return StreamAccepted(number, self._decode_headers(body[4:]))
            if kind == _RST_STREAM:
                return StreamReset(*struct.unpack_from("!II", body))
            if kind == _HEADERS:
                self._decode_headers(body[4:])  # keeps the shared compression state in step
            elif kind == _PING:
                self._control(_PING, 0, body[:4])
            elif kind == _GOAWAY:
                return ConnectionEnding(struct.unpack_from("!I", body)[0])
        except (struct.error, zlib.error, UnicodeDecodeError) as error:
            raise SpdyError(f"malformed SPDY frame of type {kind}: {error}") from error
        return None  # SETTINGS, WINDOW_UPDATE and unknown types need no action

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        self._out += struct.pack("!HHI", 0x8000 | _VERSION, kind, flags << 24 | len(body))
        self._out += body

    def _data(self, stream: int, flags: int, data: memoryview) -> None:
        self._out += struct.pack("!II", stream, flags << 24 | len(data))
        self._out += data

    def _encode_headers(self, headers: Headers) -> bytes:
        block = struct.pack("!I", len(headers))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                block += struct.pack("!I", len(text)) + text
        return self._compress.compress(block) + self._compress.flush(zlib.Z_SYNC_FLUSH)

    def _decode_headers(self, block: bytes) -> Headers:
        data = self._decompress.decompress(block, _LARGEST_FRAME)
        (count,) = struct.unpack_from("!I", data)
        position, texts = 4, []
        for _ in range(2 * count):
            (size,) = struct.unpack_from("!I", data, position)
            texts.append(data[position + 4 : position + 4 + size].decode())
            position += 4 + size
        return dict(zip(texts[::2], texts[1::2], strict=True))
