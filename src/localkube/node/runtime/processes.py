"""The agent's side of the fork server: sandboxes and container processes as asyncio objects.

In: what to run (``ProcessSpec``) and where (``Sandbox``). Out: ``Process`` values with a future that
yields the exit code. Promises: ``run`` returns only after exec succeeded (or raises StartError with
the step that failed); no descriptor leaks; when a container's first process ends, everything left
in its mount namespace is killed, as the end of PID 1 does on Kubernetes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localkube.node.runtime import zygote
from localkube.node.runtime.rootfs import Plan

_SOURCE_ROOT = str(Path(__file__).resolve().parents[3])
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from localkube.node.runtime.zygote import main; main()"
)
# A control message that cannot be written for this long means that the fork server hangs.
_SEND_TIMEOUT_S = 10.0

POD_SYSCTLS = {
    # Programs without CAP_NET_BIND_SERVICE may bind any port, as container engines set it.
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 0",
}


class StartError(Exception):
    """A sandbox or process could not be set up; the text says which step failed and why."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to execute and with which rights."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    capabilities: frozenset[str] = frozenset()
    no_new_privileges: bool = True
    tty: bool = False
    size: tuple[int, int] | None = None  # rows, columns of the terminal


@dataclass(slots=True)
class Process:
    """A running (or ended) process. ``exited`` yields 0..255, or 128+N for signal N."""

    pid: int
    exited: asyncio.Future[int]
    mount_ns: str = ""
    terminal: int | None = None  # master side; the owner of the Process closes it

    def send_signal(self, number: int) -> None:
        """Signal the process, and with SIGKILL its process group too; an ended one is left alone.

        As container runtimes do: a request to stop goes to the first process alone, which stops its own
        children in the order that suits them (a proxy's agent drains before it stops the proxy).
        """
        if self.exited.done():
            return
        for kill in (os.killpg, os.kill) if number == signal.SIGKILL else (os.kill,):
            try:
                kill(self.pid, number)
            except (ProcessLookupError, PermissionError):
                continue


@dataclass(slots=True)
class Sandbox:
    """The namespaces of one pod, held by a process."""

    pid: int
    exited: asyncio.Future[int]
    host_network: bool


_Born = tuple[int, asyncio.Future[int]]
"""A new process: its id and its exit code to come."""


class Runtime:
    """Client of one fork server. Start it from the main thread: the server dies with that thread."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._pending: dict[int, asyncio.Future[_Born]] = {}
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._early_exits: dict[int, int] = {}
        self._next_id = 0
        self._buffer = bytearray()
        self.lost: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Spawn the fork server."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_SEND_TIMEOUT_S)

        def place_control() -> None:
            os.dup2(theirs.fileno(), zygote.CONTROL_FD, inheritable=True)

        self._server = subprocess.Popen(  # noqa: ASYNC220 - must be spawned by the main thread
            [sys.executable, "-I", "-S", "-c", _BOOT, _SOURCE_ROOT],
            stdin=subprocess.DEVNULL,
            preexec_fn=place_control,
            pass_fds=(zygote.CONTROL_FD,) if theirs.fileno() != zygote.CONTROL_FD else (),
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        loop = asyncio.get_running_loop()
        self.lost = loop.create_future()
        loop.add_reader(ours.fileno(), self._read)

    async def stop(self) -> None:
        """End the fork server and with it every sandbox."""
        if self._control is None or self._server is None:
            return
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        self._control = None
        for future in self._exits.values():
            if not future.done():
                future.set_result(137)
        server = self._server
        await asyncio.to_thread(server.wait)

    async def create_sandbox(self, hostname: str, host_network: bool) -> Sandbox:
        """Make the namespaces of a pod; its loopback is up when this returns."""
        request = {
            "op": "sandbox",
            "hostname": hostname,
            "host_network": host_network,
            "sysctls": {} if host_network else POD_SYSCTLS,
        }
        pid, exited, status = await self._request(request, ())
        error, _ = await _read_status(status)
        if error is not None:
            raise StartError(error)
        return Sandbox(pid, exited, host_network)

    async def run(
        self, sandbox: Sandbox, spec: ProcessSpec, rootfs: Plan, stdio: tuple[int, int, int] | None
    ) -> Process:
        """Start a container's first process; ``stdio`` is None with a terminal."""
        return await self._run(sandbox, spec, {"rootfs": rootfs}, stdio)

    async def join(
        self,
        sandbox: Sandbox,
        spec: ProcessSpec,
        member: Process,
        cwd: str,
        stdio: tuple[int, int, int] | None,
    ) -> Process:
        """Start one more process in the container whose first process is ``member``."""
        return await self._run(sandbox, spec, {"join": member.pid, "cwd": cwd}, stdio)

    async def _run(
        self,
        sandbox: Sandbox,
        spec: ProcessSpec,
        place: dict[str, Any],
        stdio: tuple[int, int, int] | None,
    ) -> Process:
        request = {
            "op": "run",
            "sandbox": sandbox.pid,
            "command": list(spec.command),
            "env": dict(spec.env),
            "capabilities": sorted(spec.capabilities),
            "no_new_privileges": spec.no_new_privileges,
            "tty": spec.tty,
            "size": spec.size,
            **place,
        }
        pid, exited, status = await self._request(request, stdio or ())
        error, terminal = await _read_status(status)
        if error is not None:
            if terminal is not None:
                os.close(terminal)
            raise StartError(error)
        try:
            mount_ns = os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115 - no path
        except OSError:
            mount_ns = ""  # it has ended already
        process = Process(pid, exited, mount_ns, terminal)
        if "rootfs" in place and mount_ns:
            exited.add_done_callback(lambda _: kill_mount_namespace(mount_ns))
        return process

    async def _request(
        self, request: dict[str, Any], fds: tuple[int, ...]
    ) -> tuple[int, asyncio.Future[int], socket.socket]:
        if self._control is None:
            raise StartError("the node agent is stopping")
        loop = asyncio.get_running_loop()
        self._next_id += 1
        number = self._next_id
        reply: asyncio.Future[_Born] = loop.create_future()
        self._pending[number] = reply
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            zygote.send_message(self._control, {"id": number, **request}, (theirs.fileno(), *fds))
        try:
            pid, exited = await reply
        except BaseException:
            ours.close()
            raise
        return pid, exited, ours

    def _read(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._on_lost()
            return
        self._buffer += data
        for message in _split_messages(self._buffer):
            self._dispatch(message)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "exit" in message:
            code = message["code"] if message["code"] >= 0 else 128 - message["code"]
            future = self._exits.pop(message["exit"], None)
            if future is None:
                self._early_exits[message["exit"]] = code
            elif not future.done():
                future.set_result(code)
            return
        reply = self._pending.pop(message["id"])
        if "error" in message:
            if not reply.done():
                reply.set_exception(StartError(message["error"]))
            return
        pid = message["pid"]
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if pid in self._early_exits:
            exited.set_result(self._early_exits.pop(pid))
        else:
            self._exits[pid] = exited
        if not reply.done():
            reply.set_result((pid, exited))
        elif not exited.done():  # the requester was cancelled meanwhile
            os.kill(pid, signal.SIGKILL)

    def _on_lost(self) -> None:
        assert self._control is not None
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(StartError("the fork server ended"))
        for future in self._exits.values():
            if not future.done():
                future.set_result(137)
        if self.lost is not None and not self.lost.done():
            self.lost.set_result(None)


def _split_messages(buffer: bytearray) -> list[dict[str, Any]]:
    messages = []
    while len(buffer) >= 4:
        size = int.from_bytes(buffer[:4], "big")
        if len(buffer) < 4 + size:
            break
        messages.append(json.loads(buffer[4 : 4 + size]))
        del buffer[: 4 + size]
    return messages


async def _read_status(status: socket.socket) -> tuple[str | None, int | None]:
    """Follow a child's set-up: its error, or None and the terminal it opened."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[str | None] = loop.create_future()
    terminal: list[int] = []
    error = bytearray()

    def on_readable() -> None:
        try:
            data, fds, _, _ = socket.recv_fds(status, 4096, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError as problem:
            data, fds = b"", []
            error.extend(b"e" + str(problem).encode())
        terminal.extend(fds)
        if data and data != b"t":
            error.extend(data)
        if not data and not done.done():
            done.set_result(None)

    loop.add_reader(status.fileno(), on_readable)
    try:
        await done
    finally:
        loop.remove_reader(status.fileno())
        status.close()
    text = bytes(error)
    message = text[1:].decode(errors="replace") if text.startswith(b"e") else None
    return message, terminal[0] if terminal else None


def kill_mount_namespace(mount_ns: str) -> None:
    """Kill every process in the mount namespace ``mount_ns`` (as in ``/proc/PID/ns/mnt``)."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed
        if not name.isdigit():
            continue
        try:
            if os.readlink(f"/proc/{name}/ns/mnt") == mount_ns:  # noqa: PTH115 - no path
                os.kill(int(name), signal.SIGKILL)
        except OSError:
            continue
