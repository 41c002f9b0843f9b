"""P1, the init process of a cluster: makes the namespaces, starts P2 and P3, restarts them, ends.

Started by the supervisor as `python -m localkube.supervisor.init RUNSPEC`. That process makes the
namespaces and forks; the child is pid 1 of the new PID namespace, so when it ends the kernel kills
everything in there, and the network, mounts and rules vanish with their last user. It dies with
the supervisor. Imports little: all of this is on the way to a ready API server.
"""

import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from localkube.kit import namespaces as ns
from localkube.kit.hostsockets import ENVIRONMENT_VARIABLE as HOST_SOCKETS_VARIABLE
from localkube.kit.logs import open_log
from localkube.supervisor.links import set_up_node_links
from localkube.supervisor.runspec import (
    API_SOCKET_VARIABLE,
    LOCK_VARIABLE,
    NODE_IP,
    STATUS_VARIABLE,
    RunSpec,
    report,
)

_FIRST_PAUSE: Final = 0.2  # seconds before a crashed child is started again; doubles
_LONGEST_PAUSE: Final = 10.0
_HEALTHY_AFTER: Final = 30.0
_CONTROL_PLANE_STOP: Final = 10.0  # seconds the API server has to finish requests


def main() -> int:
    """Make the namespaces, fork the init process, relay signals to it, pass its exit code on."""
    spec = RunSpec.from_json(sys.argv[1])
    supervisor = os.getppid()
    # Proxies and the API server hold many connections; the usual soft limit of 1024 is for select.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        if spec.isolated:
            make_namespaces()
    except OSError as error:
        report("namespaces-failed", errno=error.errno, message=str(error))
        return 1
    ns.die_with_parent(signal.SIGKILL)
    if os.getppid() != supervisor:
        return 1
    # The child's end of life is this process's, which the supervisor sees.
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os._exit(_run_init(spec, parent))
    lock = os.environ.get(LOCK_VARIABLE)
    if lock:
        os.close(int(lock))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, frame: os.kill(pid, got))
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) & 0xFF


def make_namespaces() -> None:
    """New PID, network and mount namespaces; a user namespace too unless we are privileged.

    Raises OSError: EPERM or ENOSPC when user namespaces are switched off.
    """
    kinds = ns.CLONE_NEWNET | ns.CLONE_NEWNS | ns.CLONE_NEWPID
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        try:
            ns.unshare(kinds)
            return
        except PermissionError:
            pass  # root of a container without CAP_SYS_ADMIN: go on like an ordinary user
    ns.unshare(ns.CLONE_NEWUSER | kinds)
    ns.map_to_root(uid, gid)


def _run_init(spec: RunSpec, parent: int) -> int:
    try:
        ns.die_with_parent(signal.SIGKILL)
        # In the new PID namespace our parent's pid reads 0.
        if os.getppid() not in (parent, 0):
            return 1
        ns.set_process_name("localkube-init")
        if spec.isolated:
            ns.make_mounts_private()
            ns.mount("proc", "/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
            set_up_node_links(NODE_IP)
    except OSError as error:
        report("namespaces-failed", errno=error.errno, message=str(error))
        return 1
    return Init(spec).run()


@dataclass
class Child:
    """A process that init keeps running."""

    name: str
    module: str
    pass_descriptors: tuple[int, ...]
    stop_seconds: float
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    start_at: float = field(default=0.0)


class Init:
    """The main loop of P1: children, orphans, signals."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._signals: list[int] = []
        self._stop_requests = 0
        self._children = self._plan()

    def _plan(self) -> list[Child]:
        status = int(os.environ[STATUS_VARIABLE])
        children = []
        if self._spec.control_plane:
            api = int(os.environ[API_SOCKET_VARIABLE])
            children.append(
                Child(
                    "control-plane",
                    "localkube.supervisor.control_plane",
                    (api, status),
                    _CONTROL_PLANE_STOP,
                )
            )
        if self._spec.node:
            host = int(os.environ[HOST_SOCKETS_VARIABLE])
            children.append(
                Child(
                    "node",
                    "localkube.supervisor.node_process",
                    (host, status),
                    self._spec.drain_seconds,
                )
            )
        return children

    def run(self) -> int:
        """Run until asked to stop; then stop the node first, the control plane last."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda got, frame: self._signals.append(got))
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            report("started")
            while not self._stop_requests:
                self._start_due()
                self._wait(selector, reader, self._until_next_start())
            for child in reversed(self._children):
                self._stop(child, selector, reader)
        return 0

    def _wait(self, selector: selectors.BaseSelector, reader: int, timeout: float | None) -> None:
        if selector.select(timeout):
            try:
                os.read(reader, 512)
            except BlockingIOError:
                pass
        while self._signals:
            if self._signals.pop(0) == signal.SIGCHLD:
                self._reap()
            else:
                self._stop_requests += 1

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.process is None and child.start_at <= now:
                self._start(child)

    def _until_next_start(self) -> float | None:
        waiting = [child.start_at for child in self._children if child.process is None]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _start(self, child: Child) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in (LOCK_VARIABLE, API_SOCKET_VARIABLE, HOST_SOCKETS_VARIABLE)
        }
        for name in (API_SOCKET_VARIABLE, HOST_SOCKETS_VARIABLE):
            if name in os.environ and int(os.environ[name]) in child.pass_descriptors:
                environment[name] = os.environ[name]
        log = open_log(self._spec.root / "log" / f"{child.name}.log")
        try:
            child.process = subprocess.Popen(
                [sys.executable, "-P", "-m", child.module, self._spec.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=child.pass_descriptors,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            self._schedule_restart(child, f"cannot be started: {error}")
        finally:
            os.close(log)
        child.started = time.monotonic()

    def _reap(self) -> None:
        """Collect every ended process: our children, and orphans of pods that became ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self._children:
                if child.process is not None and child.process.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    child.process.returncode = code
                    child.process = None
                    if not self._stop_requests:
                        self._schedule_restart(child, f"ended with {code}")

    def _schedule_restart(self, child: Child, why: str) -> None:
        now = time.monotonic()
        if now - child.started > _HEALTHY_AFTER:
            child.failures = 0
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**child.failures)
        child.failures += 1
        child.start_at = now + pause
        log_line("child will be started again", child=child.name, why=why, pause=round(pause, 2))
        report("child-ended", child=child.name, why=why, failures=child.failures)

    def _stop(self, child: Child, selector: selectors.BaseSelector, reader: int) -> None:
        """SIGTERM, then SIGKILL after the child's time is over or a second request to stop."""
        if child.process is None:
            return
        report("stopping", child=child.name)
        child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + child.stop_seconds
        while child.process is not None and self._stop_requests < 2:
            left = deadline - time.monotonic()
            if left <= 0:
                log_line("child did not end in time, killing it", child=child.name)
                break
            self._wait(selector, reader, left)
        if child.process is not None:
            child.process.kill()
            child.process.wait()
            child.process = None


def log_line(event: str, **fields: Any) -> None:
    """One JSON line on stderr, like structlog's, without the cost of importing it here."""
    time_text = datetime.now(UTC).isoformat()  # noqa: TID251 - kit.clock is not needed for one line
    line = {"event": event, **fields, "level": "info", "time": time_text, "process": "init"}
    try:
        os.write(2, (json.dumps(line) + "\n").encode())
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
