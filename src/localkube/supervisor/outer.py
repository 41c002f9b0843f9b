"""P0, the supervisor in the host's namespaces: owns the state directory, the API's port and P1.

In: a RunSpec without a port decision, and a callback for progress. Out: an exit code, after the
cluster has ended. Promises: whatever way this process ends, nothing of the cluster keeps running
(kill -9 included: P1 dies with us, and takes its namespaces along); a first SIGTERM or SIGINT
stops pods within their grace periods, then the control plane; a second one ends all at once.
"""

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from localkube.kit.hostsockets import ENVIRONMENT_VARIABLE as HOST_SOCKETS_VARIABLE
from localkube.kit.hostsockets import HostSocketServer
from localkube.kit.logs import open_log
from localkube.kit.program import PROGRAM
from localkube.supervisor.readiness import ApiProbe
from localkube.supervisor.runspec import (
    API_SOCKET_VARIABLE,
    LOCK_VARIABLE,
    STATUS_VARIABLE,
    RunSpec,
)
from localkube.supervisor.state import (
    ClusterLock,
    ClusterSettings,
    StateDirectory,
    UserError,
    choose_network,
    load_settings,
    save_settings,
    storage_error,
)

DEFAULT_API_PORT: Final = 6443
_PORTS_TO_TRY: Final = 200
_READY_POLL: Final = 0.03  # seconds between questions until everything is ready
_READY_DEADLINE: Final = 60.0
_CRASHES: Final = 4  # of a process before the cluster was ready once: it will not get better
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 15.0

Progress = Callable[[str, dict[str, Any]], None]
"""(event, fields): "api-ready", "ready", "stopping", "stopped", "failed" {message}, ..."""


def bind_api_socket(requested: int | None, remembered: int | None) -> tuple[socket.socket, int]:
    """The listening socket of the API on 127.0.0.1 -> (socket, port). Raises UserError.

    A port that was asked for, or that existing kubeconfigs name, is taken or refused; without
    either it is 6443 or the next free one.
    """
    wanted = requested if requested is not None else remembered
    candidates = (
        [wanted]
        if wanted is not None
        else list(range(DEFAULT_API_PORT, DEFAULT_API_PORT + _PORTS_TO_TRY))
    )
    for port in candidates:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen(1024)
            return sock, int(sock.getsockname()[1])
        except OSError as error:
            sock.close()
            if wanted is None and error.errno == errno.EADDRINUSE:
                continue
            raise _port_error(error, port, chosen=requested is not None) from error
    raise UserError(
        f"ports {candidates[0]} to {candidates[-1]} are all taken: choose one with --api-port"
    )


def _port_error(error: OSError, port: int, *, chosen: bool) -> UserError:
    if error.errno == errno.EACCES:
        return UserError(
            f"port {port} may not be opened by an ordinary user: choose one above 1023 "
            "with --api-port"
        )
    if error.errno != errno.EADDRINUSE:
        return UserError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}")
    if chosen:
        return UserError(
            f"port {port} is taken by another program: stop that program "
            f"(`ss -ltnp 'sport = :{port}'` names it) or choose another --api-port"
        )
    return UserError(
        f"port {port}, which this cluster's kubeconfig names, is taken by another program: stop "
        f"that program (`ss -ltnp 'sport = :{port}'` names it), or move the cluster with "
        f"--api-port {port + 1} and then evaluate what `env` prints again"
    )


def namespaces_message(number: int | None, detail: str) -> str:
    """Why namespaces cannot be made, and how to allow them."""
    found = []
    for name, bad, remedy in (
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        try:
            value = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue
        if value == bad:
            found.append(f"  {name.replace('/', '.')} is {value}: sudo {remedy}")
    lines = [f"cannot make the namespaces that pods live in ({detail})."]
    if found:
        lines += ["This machine forbids them:", *found]
    elif number in (errno.ENOSYS, errno.EINVAL):
        lines.append("This kernel was built without user, PID, network or mount namespaces.")
    else:
        lines += [
            "Usual causes: user namespaces are switched off (check these with sysctl:",
            "  user.max_user_namespaces must not be 0, kernel.unprivileged_userns_clone must be 1,",
            "  kernel.apparmor_restrict_unprivileged_userns, on Ubuntu 23.10 and newer, must be 0),",
            "or this is a container whose seccomp profile forbids unshare or mounting /proc:",
            "  run it with --privileged, or with --security-opt seccomp=unconfined",
            "  --security-opt systempaths=unconfined.",
        ]
    lines.append(f"Running as root helps too; `{PROGRAM} up --no-node` needs no namespaces.")
    return "\n".join(lines)


class Supervisor:
    """One run of a cluster. The lock must be held by the caller's `lock`."""

    def __init__(
        self, spec: RunSpec, state: StateDirectory, lock: ClusterLock, progress: Progress
    ) -> None:
        self._spec = spec
        self._state = state
        self._lock = lock
        self._progress = progress
        self._host = HostSocketServer()
        self._api: socket.socket | None = None
        self._init: subprocess.Popen[bytes] | None = None
        self._stops = 0
        self._failure: str | None = None
        self._ready = False
        self._status_read = -1
        self._status_write = -1
        self._pending = b""

    def run(self, requested_port: int | None) -> int:
        """Start, watch and end the cluster -> exit code."""
        try:
            self._prepare(requested_port)
        except UserError as error:
            self._progress("failed", {"message": str(error)})
            return 1
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        previous_wakeup = signal.set_wakeup_fd(writer)
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        }
        try:
            self._host.start()
            with selectors.DefaultSelector() as selector:
                selector.register(reader, selectors.EVENT_READ)
                selector.register(self._status_read, selectors.EVENT_READ)
                self._watch(selector, reader)
        finally:
            self._end_at_once()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_wakeup)
            for descriptor in (reader, writer, self._status_read, self._status_write):
                os.close(descriptor)
            self._host.stop()
            if self._api is not None:
                self._api.close()
        if self._failure is not None:
            self._progress("failed", {"message": self._failure})
            return 1
        self._progress("stopped", {})
        return 0

    def _prepare(self, requested_port: int | None) -> None:
        self._status_read, self._status_write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._status_read, False)
        if not self._spec.control_plane:
            return
        known = load_settings(self._state)
        sock, port = bind_api_socket(requested_port, known.api_port if known else None)
        self._api = sock
        network = known.load_balancer_network if known else choose_network(self._state)
        settings = ClusterSettings(port, network)
        if settings != known:
            save_settings(self._state, settings)
        self._spec = replace(self._spec, api_port=port, load_balancer_network=network)

    def _on_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGCHLD:
            self._stops += 1

    # -- the main loop -----------------------------------------------------------------------

    def _watch(self, selector: selectors.BaseSelector, reader: int) -> None:
        started = time.monotonic()
        probe = ApiProbe(self._state, self._spec.api_port)
        stages = self._stages(probe)
        failures = 0
        self._start_init()
        while not self._stops and self._failure is None:
            self._wait(selector, reader, _READY_POLL if stages else None)
            if self._init_ended():
                if not self._ready and failures >= 3:
                    self._failure = self._failure or (
                        f"the cluster's processes keep ending; see {self._state.logs}"
                    )
                if self._stops or self._failure is not None:
                    break
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**failures)
                failures += 1
                self._progress("restarting", {"pause": pause})
                self._wait(selector, reader, pause)
                if not self._stops:
                    self._host.close_all()
                    self._start_init()
            if stages and stages[0][1]():
                self._progress(stages.pop(0)[0], {"seconds": time.monotonic() - started})
                if not stages:
                    probe.close()
                    self._ready = True
                    failures = 0
                    self._progress("ready", {"seconds": time.monotonic() - started})
            elif stages and time.monotonic() - started > _READY_DEADLINE:
                self._failure = (
                    f"not ready after {_READY_DEADLINE:.0f} s (waited for {stages[0][0]}); "
                    f"see {self._state.logs}"
                )
        self._stop(selector, reader)

    def _stages(self, probe: ApiProbe) -> list[tuple[str, Callable[[], bool]]]:
        stages: list[tuple[str, Callable[[], bool]]] = []
        if self._spec.control_plane:
            stages.append(("api-ready", probe.api_ready))
            if self._spec.node:
                stages.append(("node-ready", lambda: probe.node_ready(self._spec.node_name)))
        return stages

    def _start_init(self) -> None:
        descriptors = [self._status_write, self._lock.descriptor, self._host.client_descriptor]
        environment = dict(os.environ)
        environment[STATUS_VARIABLE] = str(self._status_write)
        environment[LOCK_VARIABLE] = str(self._lock.descriptor)
        environment[HOST_SOCKETS_VARIABLE] = str(self._host.client_descriptor)
        if self._api is not None:
            environment[API_SOCKET_VARIABLE] = str(self._api.fileno())
            descriptors.append(self._api.fileno())
        log = -1
        try:
            log = open_log(self._state.logs / "init.log")
            self._init = subprocess.Popen(
                [sys.executable, "-P", "-m", "localkube.supervisor.init", self._spec.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us; we pass it on in order
            )
        except OSError as error:
            self._failure = str(storage_error(error, self._state.logs))
        finally:
            if log >= 0:
                os.close(log)

    def _wait(self, selector: selectors.BaseSelector, reader: int, timeout: float | None) -> None:
        if self._stops == 1 and timeout is None:
            timeout = 1.0
        for key, _ in selector.select(timeout):
            try:
                data = os.read(key.fd, 65536)
            except BlockingIOError:
                continue
            if key.fd != reader:
                self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            self._on_status(json.loads(line))

    def _on_status(self, message: dict[str, Any]) -> None:
        event = message.pop("event")
        if self._failure is not None:
            return  # what follows is only the end of what was started
        if event == "namespaces-failed":
            self._failure = namespaces_message(message.get("errno"), message["message"])
        elif event == "fatal" and not self._ready:
            self._failure = message["message"]
        elif event == "child-ended" and not self._ready and message["failures"] >= _CRASHES:
            log = self._state.logs / f"{message['child']}.log"
            self._failure = f"the {message['child']} process keeps ending; see {log}"
        else:
            self._progress(event, message)

    def _init_ended(self) -> bool:
        if self._init is None:
            return True
        if self._init.poll() is None:
            return False
        self._init = None
        return True

    # -- the end -----------------------------------------------------------------------------

    def _stop(self, selector: selectors.BaseSelector, reader: int) -> None:
        """Ask P1 to stop; a further signal to us is passed on and means: at once."""
        self._progress("stopping", {})
        try:
            self._lock.write(f"{os.getpid()} stopping")
        except OSError:
            pass
        if self._init_ended():
            return
        deadline = time.monotonic() + self._spec.drain_seconds + 20
        sent = 0
        # A failed start has nothing worth draining.
        wanted = 2 if self._failure is not None else 1
        while not self._init_ended() and time.monotonic() < deadline:
            wanted = max(wanted, min(self._stops, 2))
            while sent < wanted and self._init is not None:
                self._init.send_signal(signal.SIGTERM)
                sent += 1
                time.sleep(0.05)  # two signals sent together would arrive as one
            if self._stops > 2:
                return
            self._wait(selector, reader, 0.5)

    def _end_at_once(self) -> None:
        if self._init is not None:
            self._init.kill()
            self._init.wait()
            self._init = None
