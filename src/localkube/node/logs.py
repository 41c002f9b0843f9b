"""Container logs: written as lines of the CRI log format, rotated, read back for ``kubectl logs``.

In: what containers print (two pipes, or a terminal). Out: files whose lines are
``TIME STREAM F|P TEXT``, and filtered reads of them that can follow. Promises: at most two files of
``MAX_BYTES`` per container run; a writer faster than the disk is slowed by its own pipe.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from localkube.kit import clock

MAX_BYTES: Final = 10 << 20
_CHUNK: Final = 1 << 16
_LONGEST_LINE: Final = 16 << 10  # longer ones are cut into partial records, as CRI demands


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What of a log to show (the query of ``GET .../log``)."""

    follow: bool = False
    tail_lines: int | None = None
    timestamps: bool = False
    since: datetime | None = None
    limit_bytes: int | None = None


class LogFile:
    """The log of one run of one container."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.closed = False
        self._max_bytes = max_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = self._open()
        self._size = 0
        self._partial: dict[str, bytes] = {}
        self._changed = asyncio.Event()
        self._listeners: set[Callable[[str, bytes], None]] = set()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def listen(self, listener: Callable[[str, bytes], None]) -> Callable[[], None]:
        """Also give every raw chunk to ``listener`` (kubectl attach); return how to stop."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def write(self, stream: str, data: bytes) -> None:
        """Append what the container printed."""
        for listener in list(self._listeners):
            listener(stream, data)
        head = f"{_timestamp()} {stream} ".encode()
        *lines, rest = (self._partial.pop(stream, b"") + data).split(b"\n")
        records = [self._record(head, line) for line in lines]
        while len(rest) > _LONGEST_LINE:
            records.append(head + b"P " + rest[:_LONGEST_LINE] + b"\n")
            rest = rest[_LONGEST_LINE:]
        if rest:
            self._partial[stream] = rest
        if records:
            self._append(b"".join(records))

    @staticmethod
    def _record(head: bytes, line: bytes) -> bytes:
        parts = []
        while len(line) > _LONGEST_LINE:
            parts.append(head + b"P " + line[:_LONGEST_LINE] + b"\n")
            line = line[_LONGEST_LINE:]
        parts.append(head + b"F " + line + b"\n")
        return b"".join(parts)

    def _append(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self._max_bytes:
            os.close(self._fd)
            self.path.replace(self.rotated)
            self._fd = self._open()
            self._size = 0
        try:
            os.write(self._fd, data)
        except OSError:
            # A full disk loses log lines, not the container.
            return
        self._size += len(data)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def rotated(self) -> Path:
        """The older file, if there is one."""
        return self.path.with_name(self.path.name + ".1")

    def close(self) -> None:
        """Write what is left of unfinished lines; readers that follow will end."""
        if self.closed:
            return
        for stream, rest in self._partial.items():
            self._append(f"{_timestamp()} {stream} P ".encode() + rest + b"\n")
        self._partial.clear()
        self.closed = True
        os.close(self._fd)
        self._wake()

    async def read(self, options: LogOptions) -> AsyncIterator[bytes]:
        """Yield the text that ``options`` select; with follow, until the container ends."""
        left = options.limit_bytes
        async for chunk in self._select(options):
            if left is not None:
                chunk = chunk[:left]
                left -= len(chunk)
            if chunk:
                yield chunk
            if left == 0:
                return

    async def _select(self, options: LogOptions) -> AsyncIterator[bytes]:
        records = read_records([self.rotated, self.path], options.tail_lines)
        inode, offset = _identity(self.path)
        yield render_records(records, options)
        pending = b""
        while options.follow:
            changed = self._changed
            closed = self.closed
            data, inode, offset = _read_on(self.path, self.rotated, inode, offset)
            if data:
                *lines, pending = (pending + data).split(b"\n")
                yield render_records(lines, options)
            elif closed:
                return
            else:
                await changed.wait()


def _timestamp() -> str:
    # Nine digits of fraction, as the kubelet's readers expect.
    return clock.now().strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_size


def _read_on(path: Path, rotated: Path, inode: int, offset: int) -> tuple[bytes, int, int]:
    """Return what follows ``offset`` of the file ``inode``, which may have been rotated away."""
    for candidate in (path, rotated):
        found, size = _identity(candidate)
        if found != inode:
            continue
        if size > offset:
            with candidate.open("rb") as file:
                file.seek(offset)
                data = file.read(_CHUNK)
            return data, inode, offset + len(data)
        if candidate is path:
            return b"", inode, offset
    found, _ = _identity(path)
    if not found:
        return b"", inode, offset
    with path.open("rb") as file:
        data = file.read(_CHUNK)
    return data, found, len(data)


def read_records(paths: list[Path], tail: int | None) -> list[bytes]:
    """Return the records of the files, oldest first; with ``tail``, only so many lines."""
    if tail == 0:
        return []
    records: list[bytes] = []
    for path in reversed(paths):
        missing = None if tail is None else tail - len(records)
        if missing is not None and missing <= 0:
            break
        try:
            with path.open("rb") as file:
                records = _last_lines(file.fileno(), missing) + records
        except OSError:
            continue
    return records


def _last_lines(fd: int, count: int | None) -> list[bytes]:
    position = os.fstat(fd).st_size
    data = b""
    while position > 0 and (count is None or data.count(b"\n") <= count):
        step = min(_CHUNK if count is not None else position, position)
        position -= step
        data = os.pread(fd, step, position) + data
    lines = data.split(b"\n")[:-1]
    return lines if count is None else lines[-count:]


def render_records(records: list[bytes], options: LogOptions) -> bytes:
    """Return the text of CRI records as ``kubectl logs`` shows it."""
    since = None
    if options.since is not None:
        since = options.since.strftime("%Y-%m-%dT%H:%M:%S.%f").encode()
    out = []
    for record in records:
        parts = record.split(b" ", 3)
        if len(parts) < 4 or (since is not None and parts[0][: len(since)] < since):
            continue
        if options.timestamps:
            out.append(parts[0] + b" ")
        out.append(parts[3])
        if parts[2] == b"F":
            out.append(b"\n")
    return b"".join(out)


class PipeReader:
    """Moves what a container prints from a descriptor into its log, without copying tasks."""

    def __init__(self, fd: int, stream: str, log: LogFile) -> None:
        self._fd, self._stream, self._log = fd, stream, log
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # EIO: the last process of a terminal closed it
        if data:
            self._log.write(self._stream, data)
        else:
            self.close()

    def close(self) -> None:
        """Stop reading and close the descriptor."""
        if not self.finished.done():
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self.finished.set_result(None)
