"""Field paths in Kubernetes' notation: ``spec.http[0].headers[x.y/z]``."""

from __future__ import annotations


def join(path: str, key: str) -> str:
    """The path of a field. Keys that hold dots or brackets go into brackets, as Kubernetes writes them."""
    if not path:
        return key
    if "." in key or "[" in key or "/" in key or not key:
        return f"{path}[{key}]"
    return f"{path}.{key}"


def item(path: str, index: int) -> str:
    """The path of a list item."""
    return f"{path}[{index}]"
