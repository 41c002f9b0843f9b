"""Logs: an event name and typed fields, one line each; levels per scope as Istio's flags set them.

In: the value of ``--log_output_level`` (``default:info,ads:debug`` or one bare level) and whether lines are
JSON. Out: a configured structlog. A scope is the name given to ``structlog.get_logger(scope)``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

_LEVELS = {
    "none": 100,
    "fatal": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
_METHOD_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}
_scopes: dict[str, int] = {"default": logging.INFO}


def parse_levels(text: str) -> Mapping[str, int]:
    """Levels per scope of ``default:info,ads:debug``. Raises ValueError with a text for people."""
    levels: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        scope, _, level = part.rpartition(":")
        if level not in _LEVELS:
            raise ValueError(
                f"unknown log level {level!r}; write one of {', '.join(_LEVELS)}, as in default:info,ads:debug"
            )
        levels["default" if scope in ("", "all") else scope] = _LEVELS[level]
    return levels


def levels() -> Mapping[str, int]:
    """The levels in force."""
    return dict(_scopes)


def set_levels(wanted: Mapping[str, int]) -> None:
    """Change levels of a running program."""
    _scopes.update(wanted)


def configure(
    level: str = "default:info", json_lines: bool = False, out: TextIO | None = None
) -> None:
    """Set structlog up. Raises ValueError when ``level`` cannot be read."""
    _scopes.clear()
    _scopes["default"] = logging.INFO
    set_levels(parse_levels(level))
    stream = out or sys.stderr
    colours = hasattr(stream, "isatty") and stream.isatty()
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0)
    )
    tail: list[Any] = [structlog.processors.format_exc_info, renderer] if json_lines else [renderer]
    structlog.configure(
        processors=[
            _drop_quiet,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *tail,
        ],
        logger_factory=_Factory(stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=stream, force=True)


class _Scoped(structlog.PrintLogger):
    """A print logger that knows its scope."""

    def __init__(self, stream: TextIO, scope: str) -> None:
        super().__init__(stream)
        self.scope = scope


class _Factory:
    """Makes a logger for ``get_logger(scope)``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, *args: Any) -> _Scoped:
        return _Scoped(self._stream, str(args[0]) if args else "default")


def _drop_quiet(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Drop what is below the scope's level; name the scope otherwise."""
    scope = getattr(logger, "scope", "default")
    if _METHOD_LEVELS.get(method, logging.INFO) < _scopes.get(scope, _scopes["default"]):
        raise structlog.DropEvent
    event["scope"] = scope
    return event
