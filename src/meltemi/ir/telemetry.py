"""What is recorded about requests and connections."""

from __future__ import annotations

import enum

from meltemi.ir.value import value


class Side(enum.Enum):
    """Who reports."""

    CLIENT = "source"
    SERVER = "destination"


class StatsKind(enum.Enum):
    """Which family of the standard metrics."""

    HTTP = "http"
    TCP = "tcp"


@value
class StandardStats:
    """The ``istio_*`` metrics of one listener chain. ``security`` is connection_security_policy."""

    side: Side
    kind: StatsKind
    security: str = "unknown"
    peer: bool = False  # source labels were received from the peer


@value
class FileLog:
    """An access log file. Exactly one of ``text`` and ``json`` (a JSON document) is set.

    ``filter`` limits what is logged: '' for all, ``no_route`` for connections that found no filter chain.
    """

    path: str
    text: str = ""
    json: str = ""
    filter: str = ""


AccessLog = StandardStats | FileLog
