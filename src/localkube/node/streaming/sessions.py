"""kubectl exec and attach: a process or a running container, joined to a client's channels.

In: channels and a container. Out: bytes both ways, then the exit status on the error channel.
Promises: the exit status is sent after all output; a client that goes away ends an exec'd process,
but not an attached container.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from localkube.kit.tasks import Tasks
from localkube.node.containers import ContainerRunner
from localkube.node.runtime.processes import Process, StartError
from localkube.node.streaming.channels import Channels

_TIOCSWINSZ: Final = 0x5414
_CHUNK: Final = 1 << 16
_DRAIN_S: Final = 2.0


def exit_status(code: int) -> bytes:
    """Return the metav1.Status that tells a client the exit code."""
    if code == 0:
        return json.dumps({"metadata": {}, "status": "Success"}).encode()
    status = {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
    return json.dumps(status).encode()


def failure_status(message: str) -> bytes:
    """Return the metav1.Status for a command that could not be started."""
    status = {"status": "Failure", "message": message, "reason": "InternalError", "code": 500}
    return json.dumps({"metadata": {}, **status}).encode()


async def run_exec(
    channels: Channels, runner: ContainerRunner, command: Sequence[str], stdin: bool, tty: bool
) -> None:
    """Run ``command`` in the container and serve it until it ends or the client goes away."""
    try:
        if tty:
            await _exec_terminal(channels, runner, command)
        else:
            await _exec_pipes(channels, runner, command, stdin)
    except StartError as error:
        await channels.write("error", failure_status(str(error)))
    finally:
        await channels.close()


async def _exec_terminal(
    channels: Channels, runner: ContainerRunner, command: Sequence[str]
) -> None:
    process = await runner.join(command, None)
    terminal = process.terminal
    assert terminal is not None
    try:
        await _serve(channels, process, terminal, {"stdout": os.dup(terminal)}, terminal)
    finally:
        os.close(terminal)


async def _exec_pipes(
    channels: Channels, runner: ContainerRunner, command: Sequence[str], stdin: bool
) -> None:
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    in_read, in_write = os.pipe2(os.O_CLOEXEC)
    if not stdin:
        os.close(in_write)
        in_write = -1
    try:
        process = await runner.join(command, (in_read, out_write, err_write))
    except BaseException:
        for fd in (out_read, err_read, in_write):
            if fd >= 0:
                os.close(fd)
        raise
    finally:
        for fd in (in_read, out_write, err_write):
            os.close(fd)
    await _serve(channels, process, in_write, {"stdout": out_read, "stderr": err_read}, None)


async def _serve(
    channels: Channels,
    process: Process,
    stdin: int,
    outputs: dict[str, int],
    terminal: int | None,
) -> None:
    """Move bytes until the process has ended and its output is sent, or the client is gone."""
    async with Tasks("exec") as tasks:
        source = _Input(stdin, terminal, terminal is None, lambda: None)
        client = tasks.spawn("input", lambda: source.follow(channels))
        readers = [
            tasks.spawn(name, _copy_later(channels, name, fd)) for name, fd in outputs.items()
        ]
        waiting: list[asyncio.Future[Any]] = [process.exited, client]
        await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
        if not process.exited.done():
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGKILL)
        code = await process.exited
        await asyncio.wait(readers, timeout=_DRAIN_S)
        source.close()
        await channels.write("error", exit_status(code))


def _copy_later(channels: Channels, name: str, fd: int) -> Any:
    async def copy() -> None:
        try:
            while True:
                data = await read_chunk(fd)
                if not data:
                    return
                await channels.write(name, data)
        except ConnectionError:
            return  # the client is gone; ``_serve`` sees that on its own
        finally:
            os.close(fd)

    return copy


async def read_chunk(fd: int) -> bytes:
    """Return the next bytes of a pipe or terminal, empty at its end."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    while True:
        try:
            return os.read(fd, _CHUNK)
        except BlockingIOError:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(fd, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_reader(fd)
        except OSError:
            return b""  # EIO: nobody has the terminal open any more


async def write_all(fd: int, data: bytes) -> None:
    """Write to a pipe or terminal; waits while its reader is slow. Raises OSError."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_writer(fd, _wake, ready)
            try:
                await ready
            finally:
                loop.remove_writer(fd)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Input:
    """The client's messages: input, end of input, new terminal sizes."""

    def __init__(
        self, stdin: int, terminal: int | None, owned: bool, on_end: Callable[[], None]
    ) -> None:
        self._stdin = stdin
        self._terminal = terminal
        self._owned = owned
        self._on_end = on_end

    async def follow(self, channels: Channels) -> None:
        """Return when the client is gone."""
        async for message in channels.messages():
            if message.channel == "resize":
                self._resize(message.data)
            elif message.channel == "stdin":
                if message.data and self._stdin >= 0:
                    try:
                        await write_all(self._stdin, message.data)
                    except OSError:
                        self.close()  # the process does not read any more
                if message.fin:
                    self.close()
                    self._on_end()

    def _resize(self, data: bytes) -> None:
        if self._terminal is None:
            return
        try:
            size = json.loads(data)
            packed = struct.pack("HHHH", int(size["Height"]), int(size["Width"]), 0, 0)
            fcntl.ioctl(self._terminal, _TIOCSWINSZ, packed)
        except (ValueError, KeyError, TypeError, OSError, struct.error):
            return  # a size that makes no sense changes nothing

    def close(self) -> None:
        """End the process's input."""
        if self._stdin >= 0 and self._owned:
            os.close(self._stdin)
        self._stdin = -1


async def run_attach(channels: Channels, runner: ContainerRunner) -> None:
    """Show what a running container prints from now on, and feed its stdin."""
    process, log = runner.process, runner.log
    if process is None or log is None or process.exited.done():
        await channels.write("error", failure_status("the container is not running"))
        await channels.close()
        return
    queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(256)

    def heard(stream: str, data: bytes) -> None:
        if not queue.full():  # a viewer that is too slow misses output, the container goes on
            queue.put_nowait((stream, data))

    async def show() -> None:
        while True:
            stream, data = await queue.get()
            await channels.write(stream, data)
            queue.task_done()

    stop_listening = log.listen(heard)
    try:
        async with Tasks("attach") as tasks:
            stdin = os.dup(runner.stdin) if runner.stdin is not None else -1
            once = bool(runner.container.get("stdinOnce")) and process.terminal is None
            on_end = runner.close_stdin if once else lambda: None
            source = _Input(stdin, process.terminal, True, on_end)
            client = tasks.spawn("input", lambda: source.follow(channels))
            tasks.spawn("output", show)
            waiting: list[asyncio.Future[Any]] = [process.exited, client]
            await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
            try:
                await asyncio.wait_for(queue.join(), _DRAIN_S)
            except TimeoutError:
                pass  # the viewer is gone, or too slow for what is left
            source.close()
            if process.exited.done():
                await channels.write("error", exit_status(process.exited.result()))
    finally:
        stop_listening()
        await channels.close()
