"""Conditions on what earlier filters wrote into a request's or a connection's metadata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from envoy.type.matcher.v3 import metadata_pb2, value_pb2


def metadata_matcher(
    filter_name: str,
    path: Iterable[str],
    wanted: Any,
    *,
    text: bool = True,
    lists: bool = True,
    invert: bool = False,
) -> Any:
    """A MetadataMatcher for a string, an element of a list, or either. ``wanted`` is a StringMatcher."""
    one = value_pb2.ValueMatcher(string_match=wanted)
    many = value_pb2.ValueMatcher(list_match=value_pb2.ListMatcher(one_of=one))
    chosen = [matcher for matcher, used in ((one, text), (many, lists)) if used]
    return metadata_pb2.MetadataMatcher(
        filter=filter_name,
        path=[metadata_pb2.MetadataMatcher.PathSegment(key=key) for key in path],
        value=chosen[0]
        if len(chosen) == 1
        else value_pb2.ValueMatcher(or_match=value_pb2.OrMatcher(value_matchers=chosen)),
        invert=invert,
    )
