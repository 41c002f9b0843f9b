"""Run a sample's program as its image does, on a free port of this machine."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from meltemi_samples.programs import curl, fortio


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(module: str, *arguments: str, port: int, **environment: str) -> Iterator[int]:
    """The program, listening on ``port``; it must end with 0 at SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"meltemi_samples.{module}", *arguments],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline, "it does not listen"
                time.sleep(0.05)
        yield port
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def run_curl(*words: str) -> Done:
    """Our curl, in this process."""
    out, problems = io.BytesIO(), io.StringIO()
    with contextlib.redirect_stderr(problems):
        code = curl.main(list(words), out)
    return Done(code, out.getvalue().decode(), problems.getvalue())


def run_fortio(*words: str) -> Done:
    """Our load generator, in this process."""
    out, problems = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(problems):
        code = fortio.main(list(words))
    return Done(code, out.getvalue(), problems.getvalue())


def run_process(module: str, *words: str, stdin: str = "") -> Done:
    """A command of the samples as a process of its own, with an input."""
    done = subprocess.run(
        [sys.executable, "-m", f"meltemi_samples.programs.{module}", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)
