"""Two joined TCP connections as asyncio protocols.

In: bytes of either side. Out: the same bytes to the other. Promises: each direction ends on its own
(half-close), a slow reader slows its sender, an aborted side aborts the other, and nothing that
came before the other side was connected is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

_CHUNK: Final = 1 << 16


class _Relay(asyncio.Protocol):
    """One half of a relayed connection."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Relay | None = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        other = self.other
        if other is None or other.transport is None or other.transport.is_closing():
            return False
        if other.transport.can_write_eof():
            other.transport.write_eof()
        return not other.ended  # keep our sending half open while the other side still talks

    def connection_lost(self, exc: Exception | None) -> None:
        other, self.other = self.other, None
        if other is not None and other.transport is not None:
            if exc is not None:
                other.transport.abort()
            else:
                other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        other = self.other
        if other is not None and other.transport is not None and not other.transport.is_closing():
            other.transport.resume_reading()


class Downstream(_Relay):
    """The client's side; ``connect_later`` starts the way to the other end."""

    def __init__(self, connect_later: Callable[[Downstream], None]) -> None:
        super().__init__()
        self._connect_later = connect_later
        self._early = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            super().data_received(data)
            return
        # Nobody to give it to yet. (Pausing in connection_made would be simpler, but Python
        # before 3.11.4 starts to read after it all the same.)
        self._early += data
        if len(self._early) >= _CHUNK and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        if self.other is None:
            self.ended = True
            return True
        return super().eof_received()

    def join(self, upstream: Upstream) -> None:
        """Give what came so far to the answering side, and go on."""
        self.other = upstream
        assert upstream.transport is not None
        assert self.transport is not None
        if self._early:
            upstream.transport.write(bytes(self._early))
            self._early.clear()
        if self.ended:
            upstream.transport.write_eof()
        self.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connect_later(self)

    def abort(self) -> None:
        """Reset the client's connection."""
        if self.transport is not None:
            self.transport.abort()


class Upstream(_Relay):
    """The side of the one who answers."""

    def __init__(self, downstream: Downstream) -> None:
        super().__init__()
        self._downstream = downstream

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        downstream = self._downstream
        if downstream.transport is None or downstream.transport.is_closing():
            transport.close()
            return
        self.other = downstream
        downstream.join(self)
