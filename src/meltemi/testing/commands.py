"""A user's own programs in the place of stand-ins.

In: a workload and a command. Out: a process that listens where the workload's proxy sends to. Promises: ``run``
returns when it listens or raises with its output; every process ends with the test.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence

from meltemi.registry.offline import OfflineProxy
from meltemi.testing.rig import Rig

LISTEN_S = 20.0
STOP_S = 3.0


class CommandFailed(RuntimeError):
    """A program ended or did not listen; the text holds its output."""


class OwnCommands:
    """The programs of one test."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._processes: list[tuple[subprocess.Popen[bytes], OfflineProxy]] = []

    def run(
        self, proxy: OfflineProxy, command: Sequence[str], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start it. Raises CommandFailed."""
        place = self._rig.place(proxy.id)
        assert place is not None
        if not place.ports:
            raise CommandFailed(
                f"{proxy.workload} serves no port: no Service or containerPort names one"
            )
        where = (place.app, self._rig.port(place.ports[0]))
        for port in place.ports:
            there = (place.app, self._rig.port(port))
            self._rig.on_loop(functools.partial(self._rig.standins.close_at, *there))
        values = {"address": where[0], "port": str(where[1])}
        words = [_filled(word, values) for word in command]
        environment = {**os.environ, "ADDRESS": where[0], "PORT": str(where[1]), **env}
        output = self._rig.folder / f"command.{proxy.id}.log"
        with output.open("wb") as log:
            process = subprocess.Popen(
                words, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self._rig.keeper.add(process.pid)
        self._processes.append((process, proxy))
        end = time.monotonic() + LISTEN_S
        while not _listens(where):
            if process.poll() is not None or time.monotonic() > end:
                text = output.read_text(errors="replace")[-2000:]
                why = "ended" if process.poll() is not None else "does not listen"
                raise CommandFailed(f"{' '.join(words)} {why} at {where[0]}:{where[1]}:\n{text}")
            time.sleep(0.02)
        return process

    def close(self) -> None:
        """End all, with what they started; the stand-ins answer again."""
        for process, proxy in self._processes:
            _end(process)
            self._rig.keeper.remove(process.pid)
            self._rig.on_loop(functools.partial(self._rig.stand_in_again, proxy))
        self._processes.clear()


def _filled(word: str, values: Mapping[str, str]) -> str:
    """Only our own placeholders: other braces belong to the program."""
    for name, value in values.items():
        word = word.replace("{" + name + "}", value)
    return word


def _listens(where: tuple[str, int]) -> bool:
    try:
        socket.create_connection(where, 0.2).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        try:
            process.wait(STOP_S)
            return
        except subprocess.TimeoutExpired:
            continue
