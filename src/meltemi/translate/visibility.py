"""exportTo, and host names that cover others."""

from __future__ import annotations

from collections.abc import Iterable


def is_visible(export_to: Iterable[str], defaults: Iterable[str], owner: str, viewer: str) -> bool:
    """Whether an object of namespace ``owner`` is seen from ``viewer``. ``~`` means nobody."""
    for entry in tuple(export_to) or tuple(defaults):
        if entry == "*" or entry == viewer or (entry == "." and owner == viewer):
            return True
    return False


def covers(pattern: str, host: str) -> bool:
    """Whether a host (maybe ``*`` or ``*.suffix``) covers another one, itself maybe a wildcard."""
    if pattern == host or pattern == "*":
        return True
    if pattern.startswith("*"):
        return host.removeprefix("*").endswith(pattern[1:])
    return False


def narrower(one: str, two: str) -> str | None:
    """The narrower of two host patterns when they overlap, else None."""
    if covers(one, two):
        return two
    if covers(two, one):
        return one
    return None


def specificity(host: str) -> tuple[int, int]:
    """Sorting key: exact hosts before wildcards, longer before shorter."""
    return (1 if host.startswith("*") else 0, -len(host))
