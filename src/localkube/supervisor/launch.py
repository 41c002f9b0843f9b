"""Starting a cluster from the command line: in the foreground, or detached.

In: what `localkube up` was asked. Out: an exit code and progress events. Promises: detached, it
returns when the cluster is ready (or has failed, with the reason), and Ctrl-C before that stops
what was started.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from localkube.kit.logs import open_log
from localkube.kit.program import PROGRAM
from localkube.supervisor.outer import Progress, Supervisor
from localkube.supervisor.runspec import RunSpec
from localkube.supervisor.state import (
    ClusterLock,
    StateDirectory,
    UserError,
    current_owner,
    storage_error,
    wait_until_free,
)

_OLD_RUN_DEADLINE: Final = 90.0  # seconds for a stopping cluster to be gone


def run_foreground(
    spec: RunSpec, state: StateDirectory, port: int | None, progress: Progress
) -> int:
    """Run the cluster in this process until it is stopped. Raises UserError."""
    lock = ClusterLock(state)
    _acquire(lock, state)
    try:
        return Supervisor(spec, state, lock, progress).run(port)
    finally:
        lock.release()


def _acquire(lock: ClusterLock, state: StateDirectory) -> None:
    deadline = time.monotonic() + _OLD_RUN_DEADLINE
    while not lock.acquire():
        owner = current_owner(state)
        if owner is not None and not owner.stopping:
            raise UserError(f"cluster {state.name!r} is already running (pid {owner.pid})")
        if time.monotonic() > deadline:
            raise UserError(
                f"the previous run of {state.name!r} does not end; see {state.logs}, or end it "
                f"at once with `{PROGRAM} down --now`"
            )
        wait_until_free(state, 1.0)


def run_detached(spec: RunSpec, state: StateDirectory, port: int | None, progress: Progress) -> int:
    """Start the cluster in the background, and return when it is ready or has failed."""
    try:
        log = open_log(state.logs / "supervisor.log")
    except OSError as error:
        raise storage_error(error, state.logs) from error
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_background(spec, state, port, log, writer))
    os.close(writer)
    os.close(log)
    try:
        return _follow(reader, progress)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        wait_until_free(state, _OLD_RUN_DEADLINE)
        progress("failed", {"message": "interrupted; stopped what had been started"})
        return 1


def _background(
    spec: RunSpec, state: StateDirectory, port: int | None, log: int, writer: int
) -> int:
    """The forked supervisor: its own session, no terminal, progress into the pipe and the log."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    _close_all_but({0, 1, 2, writer})
    os.chdir("/")
    tell = _pipe_progress(writer)
    try:
        return run_foreground(spec, state, port, tell)
    except UserError as error:
        tell("failed", {"message": str(error)})
        return 1
    except Exception:  # noqa: BLE001 - last resort of a process without a terminal
        import traceback

        traceback.print_exc()
        tell("failed", {"message": f"unexpected error; see {state.logs / 'supervisor.log'}"})
        return 1
    finally:
        sys.stderr.flush()


def _close_all_but(kept: set[int]) -> None:
    """Close what the caller happened to have open (locks, pipes): we outlive it."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        if int(entry.name) not in kept:
            try:
                os.close(int(entry.name))
            except OSError:
                pass  # the descriptor of the listing itself


def _pipe_progress(writer: int) -> Progress:
    open_pipe = True

    def tell(event: str, fields: dict[str, Any]) -> None:
        nonlocal open_pipe
        line = (json.dumps({"event": event, **fields}) + "\n").encode()
        for descriptor in (writer, 2) if open_pipe else (2,):
            try:
                os.write(descriptor, line)
            except OSError:
                pass  # the reader has its answer and is gone, or the disk is full
        if event in ("ready", "failed") and open_pipe:
            os.close(writer)
            open_pipe = False

    return tell


def _follow(reader: int, progress: Callable[[str, dict[str, Any]], None]) -> int:
    with os.fdopen(reader) as lines:
        for line in lines:
            fields = json.loads(line)
            event = fields.pop("event")
            progress(event, fields)
            if event == "ready":
                return 0
            if event == "failed":
                return 1
    progress("failed", {"message": "the supervisor ended without saying why"})
    return 1
