"""Live progress of long work: a spinner and the seconds of each step; plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


class Steps:
    """Steps that begin and end, several at a time. Use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._rows: dict[str, tuple[str, float, float | None, str]] = {}
        self._spinner = Spinner("dots")
        self._live = (
            Live(self, console=self._console, refresh_per_second=12, transient=False)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def begin(self, key: str, text: str) -> None:
        """A step starts."""
        if key not in self._rows:
            self._rows[key] = (text, time.monotonic(), None, "")

    def end(self, key: str, error: str = "", note: str = "") -> None:
        """A step is over; ``error`` says why it failed, ``note`` what came of it."""
        text, started, _, _ = self._rows[key]
        seconds = time.monotonic() - started
        self._rows[key] = (text, started, seconds, error or note)
        if not self._live:
            mark = "FAILED" if error else "ok"
            tail = f": {error or note}" if error or note else ""
            self._console.print(
                f"{mark:6} {text} ({seconds:.1f} s){tail}", highlight=False, soft_wrap=True
            )
        elif error:
            self._console.print(Text(f"{text}: {error}", style="red"), soft_wrap=True)

    def __rich__(self) -> Table:
        """The table that the terminal shows."""
        table = Table.grid(padding=(0, 1))
        for text, started, seconds, note in self._rows.values():
            mark = Text("✔", style="green") if seconds is not None else self._spinner
            spent = seconds if seconds is not None else time.monotonic() - started
            table.add_row(
                mark, Text(text), Text(f"{spent:5.1f} s", style="dim"), Text(note, style="dim")
            )
        return table
