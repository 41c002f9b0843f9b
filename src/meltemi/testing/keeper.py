"""A tiny process that cleans up when the tests cannot: after SIGKILL, a crash, a debugger's exit.

In: process ids of children, a folder. Out: nothing, unless its standard input ends: then the processes that are left are
killed and the folder is removed. It waits in ``read`` and costs nothing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SCRIPT = """
pids=
while read -r word pid; do
  rest=
  for known in $pids; do [ "$known" = "$pid" ] || rest="$rest $known"; done
  pids=$rest
  [ "$word" = add ] && pids="$pids $pid"
done
for pid in $pids; do kill -9 "$pid" 2>/dev/null; done
rm -rf -- "$1"
"""


class Keeper:
    """See the module."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "meltemi-testing-keeper", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def add(self, pid: int) -> None:
        """A child that must not outlive us."""
        self._tell(f"add {pid}\n")

    def remove(self, pid: int) -> None:
        """It has ended and was waited for; its number may be another's soon."""
        self._tell(f"remove {pid}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # somebody ended it; then nobody cleans up after a SIGKILL, and all else works

    def close(self) -> None:
        """All children have ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait(10)
