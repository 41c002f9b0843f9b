"""Pass connections of any client library on to a workload's proxy.

In: a function that says where to. Out: an address of this machine. Both directions end when either side does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meltemi.testing.resolve import Target


class Forwarder:
    """One listening address. Lives in one event loop."""

    def __init__(self, target: Callable[[], Target]) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self, address: str) -> tuple[str, int]:
        """Listen; returns the address."""
        self._server = await asyncio.start_server(self._serve, address, 0)
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def close(self) -> None:
        """Stop listening and end what is open."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there = None
        try:
            target = self._target()
            back, there = await asyncio.open_connection(*target.address)
            self._writers.add(there)
            there.write(target.header)
            await asyncio.gather(_copy(reader, there), _copy(back, writer))
        except OSError:
            pass  # either side went away: that is how connections end
        finally:
            for each in filter(None, (writer, there)):
                each.close()
                self._writers.discard(each)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
