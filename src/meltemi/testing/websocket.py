"""WebSocket frames (RFC 6455, section 5). Pure: bytes to frames and back."""

from __future__ import annotations

import struct

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(payload: bytes, opcode: int = TEXT, mask: bytes = b"") -> bytes:
    """One whole message. Clients must give a ``mask`` of four bytes."""
    flag = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, flag | size)
    elif size < 65_536:
        head = struct.pack("!BBH", 0x80 | opcode, flag | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, flag | 127, size)
    return head + mask + (_masked(payload, mask) if mask else payload)


def _masked(payload: bytes, mask: bytes) -> bytes:
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return mixed.to_bytes(len(payload), "big")


class Frames:
    """Collects the frames of one direction."""

    def __init__(self) -> None:
        self._buffer = b""
        self._parts = b""
        self._opcode = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(opcode, payload) of the messages that are whole now; fragments are joined."""
        self._buffer += data
        found = []
        while (taken := self._next()) is not None:
            final, opcode, payload = taken
            if opcode >= CLOSE:
                found.append((opcode, payload))
                continue
            self._opcode = opcode or self._opcode
            self._parts += payload
            if final:
                found.append((self._opcode, self._parts))
                self._parts = b""
        return found

    def _next(self) -> tuple[bool, int, bytes] | None:
        data = self._buffer
        if len(data) < 2:
            return None
        size, at = data[1] & 0x7F, 2
        if size == 126:
            if len(data) < 4:
                return None
            size, at = struct.unpack("!H", data[2:4])[0], 4
        elif size == 127:
            if len(data) < 10:
                return None
            size, at = struct.unpack("!Q", data[2:10])[0], 10
        mask = b""
        if data[1] & 0x80:
            mask, at = data[at : at + 4], at + 4
        if len(data) < at + size:
            return None
        payload, self._buffer = data[at : at + size], data[at + size :]
        return bool(data[0] & 0x80), data[0] & 0x0F, _masked(payload, mask) if mask else payload
