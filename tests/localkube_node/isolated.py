"""Run an async scenario in namespaces of its own, as the supervisor does for a node.

``run("module:function", directory)`` starts a process that makes user (if not root), network,
mount and PID namespaces, and awaits ``function(directory)`` in there. Its failure is the test's;
when it ends, the kernel removes every process, link and mount.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parents[1]
LIMIT_S = 90.0


def run(scenario: str, directory: Path) -> None:
    """Run ``scenario`` and raise AssertionError with its output if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(_TESTS), "HOME": str(directory / "home")}
    (directory / "home").mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-m", "localkube_node.isolated", scenario, str(directory)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.returncode == 0, f"{scenario} failed:\n{result.stdout}\n{result.stderr}"


def _inside(scenario: str, directory: Path) -> None:
    from localkube.kit import namespaces as ns
    from localkube.supervisor.init import make_namespaces
    from localkube.supervisor.links import set_up_node_links

    make_namespaces()
    ns.die_with_parent()
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    ns.die_with_parent()
    ns.make_mounts_private()
    ns.mount("proc", "/proc", "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
    set_up_node_links("172.30.0.1")
    module, _, name = scenario.partition(":")
    function = getattr(importlib.import_module(module), name)
    asyncio.run(function(directory))


if __name__ == "__main__":
    _inside(sys.argv[1], Path(sys.argv[2]))
