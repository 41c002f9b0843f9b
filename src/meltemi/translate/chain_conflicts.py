"""Filter chains of one listener must not overlap: Envoy refuses the whole listener otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from meltemi.ir.listener import ChainMatch, FilterChain


def _without_names(match: ChainMatch) -> ChainMatch:
    return dataclasses.replace(match, server_names=())


def without_overlap(known: Iterable[FilterChain], chain: FilterChain) -> FilterChain | None:
    """``chain`` without the server names that ``known`` chains already have; None when nothing is left of it."""
    bare = _without_names(chain.match)
    taken: set[str] = set()
    for other in known:
        if _without_names(other.match) != bare:
            continue
        if not other.match.server_names and not chain.match.server_names:
            return None
        taken |= set(other.match.server_names)
    kept = tuple(name for name in dict.fromkeys(chain.match.server_names) if name not in taken)
    if kept == chain.match.server_names:
        return chain
    if not kept:
        return None
    return dataclasses.replace(chain, match=dataclasses.replace(chain.match, server_names=kept))
