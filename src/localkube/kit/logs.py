"""Log set-up of every localkube process: one JSON object per line, in a file or on stderr.

In: where to write. Promises: importing this module is cheap; a log that cannot be written (disk
full) never stops the process.
"""

import logging
import os
import sys
from pathlib import Path
from typing import IO, Any, Final

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LARGEST: Final = 8 * 1024 * 1024  # bytes; at start-up a larger file is moved aside (one is kept)


class _ForgivingStream:
    """A text stream that drops what cannot be written: losing a line beats losing the cluster."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            pass


def open_log(path: Path) -> int:
    """Open a log file for appending -> descriptor (0600). Moves a very large one aside first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        if path.stat().st_size > _LARGEST:
            path.replace(path.with_suffix(path.suffix + ".1"))
    except OSError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def configure(process: str, level: str | None = None, stream: IO[str] | None = None) -> None:
    """Send structlog's and the standard library's records to `stream` (default stderr).

    `level`: debug, info, warning or error; default $LOCALKUBE_LOG_LEVEL, else info.
    """
    import structlog

    number = LEVELS.get(level or os.environ.get("LOCALKUBE_LOG_LEVEL", "info"), 20)
    target: Any = _ForgivingStream(stream if stream is not None else sys.stderr)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]

    def add_process(logger: Any, method: str, event: Any) -> Any:
        event["process"] = process
        return event

    def render(logger: Any, method: str, event: Any) -> str:
        import msgspec

        return msgspec.json.encode(event, enc_hook=repr).decode()

    structlog.configure(
        processors=[*shared, add_process, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                add_process,
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING) if number > 10 else number)
