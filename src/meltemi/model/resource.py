"""A named, serialised xDS resource: what the encoding hands to discovery.

The version is a digest of the bytes alone. Two replicas that produce the same bytes give the same version,
and a stream never resends what a proxy already has.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, ready to be spliced into a response.

    ``body`` is the serialised message, without its ``Any`` envelope. ``aliases`` are other names that a
    subscription may use for it (virtual hosts on demand).
    """

    name: str
    version: str
    body: bytes = field(repr=False)
    aliases: tuple[str, ...] = ()


def resource_of(name: str, body: bytes, aliases: tuple[str, ...] = ()) -> Resource:
    """The resource with its version derived from ``body`` (64 bits of BLAKE2b, in hexadecimal)."""
    return Resource(name, hashlib.blake2b(body, digest_size=8).hexdigest(), body, aliases)
