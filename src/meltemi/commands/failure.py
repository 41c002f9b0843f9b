"""How a verb fails: one line for the user and an exit code, never a traceback."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_ANALYZE = 79

T = TypeVar("T")


class CommandError(click.ClickException):
    """A failure that the user can act on. ``exit_code`` is a number of sysexits, or 1."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it as a class variable


def why(error: Exception) -> str:
    """The reason alone: the system's words for it, without its number and the path that the message names anyway."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine; what the rim raises becomes a line for the user."""
    # Imported here: most verbs that fail never needed the HTTP client.
    from meltemi.adapters.kube_api import KubeError
    from meltemi.adapters.kube_connection import ConnectionConfigError

    try:
        return asyncio.run(work)
    except ConnectionConfigError as error:
        raise CommandError(str(error), EX_UNAVAILABLE) from error
    except KubeError as error:
        raise CommandError(str(error), EX_UNAVAILABLE if error.code == 0 else 1) from error
