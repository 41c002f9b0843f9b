"""The JSONPath of printer columns: `.spec.x`, `[0]`, `[*]`, `[?(@.type=="Ready")]`, `['a.b']`.

In: an object and a path. Out: the values it selects, in order; nothing for what is not there.
A path that cannot be parsed selects nothing: the CRD's validation has already reported it.
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

_STEP = re.compile(
    r"""\.(?P<field>(?:\\.|[^.\[\\])+)
      | \[\s*'(?P<quoted>[^']*)'\s*\] | \[\s*"(?P<double>[^"]*)"\s*\]
      | \[\s*(?P<index>-?\d+)\s*\] | (?P<all>\[\s*\*\s*\]|\.\*)
      | \[\?\(\s*@(?P<left>(?:\.[^=!<>\s)]+)+)\s*(?:(?P<op>==|!=)\s*(?P<right>[^)]*?)\s*)?\)\]""",
    re.VERBOSE,
)
Step = tuple[str, Any]


@functools.lru_cache(maxsize=1024)
def parse_path(path: str) -> tuple[Step, ...] | None:
    """Return the path's steps, None if it cannot be parsed."""
    text = path.strip()
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = text.removeprefix("$")
    if text and text[0] not in ".[":
        text = f".{text}"
    steps: list[Step] = []
    position = 0
    while position < len(text):
        match = _STEP.match(text, position)
        if match is None:
            return None
        position = match.end()
        steps.append(_step(match))
    return tuple(steps)


def _step(match: re.Match[str]) -> Step:
    if match["all"]:
        return ("all", None)
    if match["field"] is not None:
        return ("field", re.sub(r"\\(.)", r"\1", match["field"]))
    if match["quoted"] is not None or match["double"] is not None:
        return ("field", match["quoted"] if match["quoted"] is not None else match["double"])
    if match["index"] is not None:
        return ("index", int(match["index"]))
    return ("filter", (match["left"], match["op"], _literal(match["right"])))


def _literal(text: str | None) -> Any:
    if text is None:
        return None
    if text[:1] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        return text


def select(value: Any, path: str) -> list[Any]:
    """Return the values at the path."""
    steps = parse_path(path)
    if steps is None:
        return []
    found = [value]
    for kind, argument in steps:
        found = [child for one in found for child in _children(one, kind, argument)]
    return found


def _children(value: Any, kind: str, argument: Any) -> list[Any]:
    if kind == "field":
        return [value[argument]] if isinstance(value, dict) and argument in value else []
    if kind == "index":
        in_range = isinstance(value, list) and -len(value) <= argument < len(value)
        return [value[argument]] if in_range else []
    if kind == "all":
        if isinstance(value, dict):
            return list(value.values())
        return list(value) if isinstance(value, list) else []
    left, operator, right = argument
    return [
        item
        for item in (value if isinstance(value, list) else ())
        if _accepts(select(item, left), operator, right)
    ]


def _accepts(found: list[Any], operator: str | None, right: Any) -> bool:
    if operator is None:
        return bool(found)
    equal = bool(found) and found[0] == right
    return equal if operator == "==" else not equal
