"""The words of an xDS conversation: what comes in, what happened, what goes out.

Values only; ``stream`` gives them meaning. State-of-the-world and Delta requests are one type: the fields
that the other variant lacks are empty.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from meltemi.model.names import BOOTSTRAP_TYPE, CDS_TYPE, EDS_TYPE, LDS_TYPE, NDS_TYPE
from meltemi.model.resource import Resource

# Types that a proxy subscribes to as a whole by naming nothing.
WILDCARD_TYPES = frozenset({CDS_TYPE, LDS_TYPE, NDS_TYPE, BOOTSTRAP_TYPE})
# State-of-the-world responses of these replace all that the proxy had, so they always hold everything.
WHOLE_TYPES = frozenset({CDS_TYPE, LDS_TYPE})
# Delta: a name that does not exist is answered "removed" for these. Not for routes and secrets: Envoy then
# keeps the listener warming for ever, where silence lets its fetch timeout pass (seen with Envoy 1.40).
ANSWER_MISSING = frozenset({CDS_TYPE, EDS_TYPE})

NAMES_MAX = 100_000  # names one stream may subscribe to per type (a guess: ten times a large mesh)
NAME_LENGTH_MAX = 2_048
TYPES_MAX = 32
RESPONSE_BYTES_MAX = 1_000_000  # Delta responses are split near here, to bound what one write holds


class Mode(enum.Enum):
    """The two encodings of the protocol."""

    SOTW = "SotW"
    DELTA = "Delta"


class RemoteProtocolError(Exception):
    """The peer breaks the protocol; the text is for its log. The stream must be closed with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A ``DiscoveryRequest`` or ``DeltaDiscoveryRequest``.

    ``names`` are ``resource_names`` (SotW) or ``resource_names_subscribe`` (Delta). ``error`` is the text of
    ``error_detail``; None when it is absent (an acknowledgement, or no answer at all).
    """

    type_url: str
    names: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    nonce: str = ""
    version: str = ""
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one proxy should have. Mappings may be lazy (``get``), but those of wildcard types iterate.

    A push with the *same* mapping object for a type means that the type did not change.
    """

    version: str
    types: Mapping[str, Mapping[str, Resource]]


@dataclass(frozen=True, slots=True)
class Send:
    """One response to write. ``parts`` concatenated are the message."""

    type_url: str
    nonce: str
    parts: tuple[bytes, ...] = field(repr=False)
    names: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def payload(self) -> bytes:
        """The serialised response; joined only here, when it is written."""
        return b"".join(self.parts)


@dataclass(frozen=True, slots=True)
class Acked:
    """The proxy accepted the response with this nonce."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The proxy refused a response and keeps what it had. ``names`` are the resources in it."""

    type_url: str
    nonce: str
    message: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stale:
    """The request answers a response that a newer one has replaced; it was ignored."""

    type_url: str
    nonce: str


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The proxy's interest in a type changed."""

    type_url: str
    added: tuple[str, ...]
    removed: tuple[str, ...]


Event: TypeAlias = Acked | Rejected | Stale | Subscribed


@dataclass(frozen=True, slots=True)
class Reaction:
    """What a request led to: things to note, and responses to write in this order."""

    events: tuple[Event, ...] = ()
    sends: tuple[Send, ...] = ()
