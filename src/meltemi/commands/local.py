"""``meltemi local``: the one-machine Kubernetes, with the mesh's images in its catalogue.

localkube is a program of its own, which knows nothing of the mesh; this verb starts it and adds the catalogue
that says which local programs the mesh's images are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

CATALOGUE = Path(__file__).resolve().parent.parent / "localkube-images.yaml"
# The subcommands that start a node and so need the catalogue.
_WITH_CATALOGUE = frozenset({"up", "node"})


def localkube_command(*arguments: str) -> list[str]:
    """The command line that runs localkube with ``arguments`` and our catalogue."""
    command = [sys.executable, "-m", "localkube.main", *arguments]
    if arguments and arguments[0] in _WITH_CATALOGUE:
        command += ["--catalogue", str(CATALOGUE)]
    return command


def localkube_environment() -> dict[str, str]:
    """Its environment: it tells people to type what they have typed."""
    return {**os.environ, "LOCALKUBE_PROGRAM": "meltemi local"}


@click.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": [],
    },
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def local(arguments: tuple[str, ...]) -> int:
    """The one-machine Kubernetes: up, down, status, env, reset. ``meltemi local --help`` tells more."""
    process = subprocess.Popen(localkube_command(*arguments), env=localkube_environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # localkube got the same signal and is cleaning up
