"""The fork server: makes pod sandboxes and starts container processes for the node agent.

In: requests on the control socket (file descriptor 3; 4 bytes length, JSON, passed descriptors).
Out: one reply per request with the new process id, and an ``exit`` message per ended process.
Promises: a start costs a fork, not a Python start; it never waits for a child's set-up (the child
reports on its own status socket); it ends, and every sandbox with it, when the agent ends.
Standard library only, one thread.

Who is whose parent: every process it starts is its direct child, also those inside a pod's PID
namespace: setns(CLONE_NEWPID) decides only where *later* children are born, so the server enters
the pod's PID namespace, forks, and goes back.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
from typing import Any, NoReturn

from localkube.kit import namespaces as ns
from localkube.node.runtime import rootfs
from localkube.node.runtime import syscalls as sc

CONTROL_FD = 3
_POD_NAMESPACES = ns.CLONE_NEWNET | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_TIOCSCTTY, _TIOCSWINSZ = 0x540E, 0x5414
_HEADER = struct.Struct("!I")
_MAX_FDS = 8


def send_message(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Write one framed message; ``fds`` travel with its first byte."""
    body = json.dumps(message).encode()
    header = _HEADER.pack(len(body))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([header], rights)
    sock.sendall(body)


def receive_message(sock: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Read one framed message and its descriptors; None when the other end is gone."""
    space = socket.CMSG_SPACE(_MAX_FDS * 4)
    header, ancillary, _, _ = sock.recvmsg(_HEADER.size, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if len(header) < _HEADER.size:
        return None, list(fds)
    (size,) = _HEADER.unpack(header)
    chunks = bytearray()
    while len(chunks) < size:
        chunk = sock.recv(size - len(chunks))
        if not chunk:
            return None, list(fds)
        chunks += chunk
    return json.loads(chunks), list(fds)


class Zygote:
    """The server's loop and its two requests, ``sandbox`` and ``run``."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._own_pidns = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = read_end
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer requests until the agent closes the control socket."""
        while True:
            control = self._control.fileno()
            readable, _, _ = select.select([control, self._wakeup], [], [])
            if self._wakeup in readable:
                os.read(self._wakeup, 4096)
            self._reap()
            if control in readable:
                try:
                    message, fds = receive_message(self._control)
                except ConnectionResetError:
                    return  # the agent ended with an answer of ours unread
                if message is None:
                    return
                self._answer(message, fds)

    def _answer(self, message: dict[str, Any], fds: list[int]) -> None:
        reply: dict[str, Any] = {"id": message["id"]}
        try:
            if message["op"] == "sandbox":
                reply["pid"] = self._start_sandbox(message, fds)
            else:
                reply["pid"] = self._start_process(message, fds)
        except OSError as error:
            reply["error"] = str(error)
        finally:
            for fd in fds:
                os.close(fd)
        send_message(self._control, reply)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            send_message(self._control, {"exit": pid, "code": os.waitstatus_to_exitcode(status)})

    def _fork_in(self, pidns: int | None) -> int:
        """Fork into PID namespace ``pidns``, or into a new one (None); return as fork does."""
        if pidns is None:
            ns.unshare(ns.CLONE_NEWPID)
        else:
            ns.setns(pidns, ns.CLONE_NEWPID)
        try:
            pid = os.fork()
        except OSError:
            ns.setns(self._own_pidns, ns.CLONE_NEWPID)
            raise
        if pid == 0:
            signal.set_wakeup_fd(-1)
            self._control.close()
            return 0
        ns.setns(self._own_pidns, ns.CLONE_NEWPID)
        return pid

    def _start_sandbox(self, message: dict[str, Any], fds: list[int]) -> int:
        pid = self._fork_in(None)
        if pid == 0:
            _be_sandbox(message, fds)
        return pid

    def _start_process(self, message: dict[str, Any], fds: list[int]) -> int:
        opened = [sc.pidfd_open(message["sandbox"])]
        try:
            if message.get("join"):
                # Taken here: the child, inside the pod's PID namespace, cannot see this number.
                opened.append(sc.pidfd_open(message["join"]))
            pid = self._fork_in(opened[0])
            if pid == 0:
                _be_process(message, opened, fds)
            return pid
        finally:
            for fd in opened:
                os.close(fd)


def _be_sandbox(message: dict[str, Any], fds: list[int]) -> NoReturn:
    """Be the init process of a pod: own its namespaces, reap orphans, do nothing else."""
    status = socket.socket(fileno=fds[0])
    try:
        ns.die_with_parent(signal.SIGKILL)
        os.setsid()
        namespaces = ns.CLONE_NEWNS | ns.CLONE_NEWIPC | ns.CLONE_NEWUTS
        if not message["host_network"]:
            namespaces |= ns.CLONE_NEWNET
        ns.unshare(namespaces)
        sc.sethostname(message["hostname"])
        if not message["host_network"]:
            _loopback_up()
            for name, value in message["sysctls"].items():
                _write_sysctl(name, value)
        # Ignored SIGCHLD means that the kernel reaps orphans of all containers by itself.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _point_standard_fds_to_null()
        status.sendall(b"ok")
        status.close()
    except OSError as error:
        _fail(status, error)
    while True:
        signal.pause()


def _write_sysctl(name: str, value: str) -> None:
    with open(f"/proc/sys/{name.replace('.', '/')}", "w") as file:  # noqa: PTH123 - no pathlib here
        file.write(value)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _point_standard_fds_to_null() -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)


def _be_process(message: dict[str, Any], pidfds: list[int], fds: list[int]) -> NoReturn:
    """Become a container's first process (message has ``rootfs``) or one more in it (``join``)."""
    status = socket.socket(fileno=fds[0])
    try:
        os.setsid()
        ns.setns(pidfds[0], _POD_NAMESPACES)
        if message.get("join"):
            ns.setns(pidfds[1], ns.CLONE_NEWNS)
            os.chdir(message["cwd"])
        else:
            rootfs.enter_root(message["rootfs"])
        _take_standard_fds(message, status, fds[1:])
        _restrict(message)
        _execute(message)
    except OSError as error:
        _fail(status, error)


def _take_standard_fds(message: dict[str, Any], status: socket.socket, fds: list[int]) -> None:
    """Put stdin, stdout and stderr in place: the passed ones, or a new terminal's."""
    if not message["tty"]:
        for target, fd in enumerate(fds):
            os.dup2(fd, target, inheritable=True)
        return
    # Opened inside the container, so that ttyname(3) finds it in the container's /dev/pts.
    master, terminal = os.openpty()
    rows, columns = message.get("size") or (24, 80)
    fcntl.ioctl(terminal, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    fcntl.ioctl(terminal, _TIOCSCTTY, 0)
    for target in range(3):
        os.dup2(terminal, target, inheritable=True)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))]
    status.sendmsg([b"t"], rights)
    os.close(master)


def _restrict(message: dict[str, Any]) -> None:
    """Give the process its limits, capabilities and default signal handling."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    sc.keep_capabilities(frozenset(message["capabilities"]))
    if message["no_new_privileges"]:
        ns.no_new_privileges()


def _execute(message: dict[str, Any]) -> NoReturn:
    command: list[str] = message["command"]
    try:
        os.execvpe(command[0], command, message["env"])  # noqa: S606 - the point of this program
    except OSError as error:
        unknown = error.errno == errno.ENOENT and "/" not in command[0]
        why = "executable file not found in $PATH" if unknown else str(error.strerror).lower()
        raise OSError(f'exec: "{command[0]}": {why}') from error


def _fail(status: socket.socket, error: OSError) -> NoReturn:
    try:
        status.sendall(b"e" + str(error).encode())
    finally:
        os._exit(128)


def main() -> None:
    """Serve on descriptor 3 until the agent goes away."""
    ns.die_with_parent(signal.SIGKILL)
    os.set_inheritable(CONTROL_FD, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Zygote(socket.socket(fileno=CONTROL_FD)).serve()


if __name__ == "__main__":
    main()
