"""YAML and JSON text -> raw objects that know the line of every field.

In: text and the name it came from. Out: ``RawObject``s and findings. Promises: total (any text gives a result), bounded
(size, nesting, and the number of values after aliases are expanded), and a document that cannot be read never hides
the ones around it. Scalars are resolved as kubectl does: YAML 1.1 without timestamps and sexagesimal numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import yaml

from meltemi.config.paths import item, join
from meltemi.model.config import SourceMap
from meltemi.model.origin import Finding, Level, Origin

INVALID_YAML = "MLT0001"
MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 100
MAX_VALUES = 2_000_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"}
_FALSE = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"}
_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|[1-9][0-9_]*|0)$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$")
_SPECIAL = {
    ".inf": float("inf"),
    "+.inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class RawObject:
    """One object as written: untyped, with the line of every field."""

    api_version: str
    kind: str
    metadata: Mapping[str, Any]
    body: Mapping[str, Any]
    source_map: SourceMap = field(default_factory=SourceMap, compare=False, repr=False)

    @property
    def name(self) -> str:
        """``metadata.name``, or ''."""
        value = self.metadata.get("name")
        return value if isinstance(value, str) else ""

    @property
    def namespace(self) -> str:
        """``metadata.namespace``, or ''."""
        value = self.metadata.get("namespace")
        return value if isinstance(value, str) else ""

    @property
    def spec(self) -> Any:
        """``spec`` as written, or None."""
        return self.body.get("spec")


class _Unreadable(Exception):
    def __init__(self, text: str, line: int = 0, column: int = 0) -> None:
        super().__init__(text)
        self.line, self.column = line, column


def parse_yaml(text: str, source: str) -> tuple[list[RawObject], list[Finding]]:
    """All objects of a text with one or many documents. Items of a ``List`` count as objects of their own.

    Findings have code MLT0001 and the line; they never raise.
    """
    objects: list[RawObject] = []
    findings: list[Finding] = []
    if len(text) > MAX_BYTES:
        return [], [_finding(source, f"is larger than {MAX_BYTES} bytes", remedy="split the file")]
    budget = [MAX_VALUES]
    for offset, chunk in _documents(text):
        try:
            value, lines, doubles = _Document(chunk, offset, budget).read()
        except _Unreadable as error:
            findings.append(_finding(source, str(error), error.line, error.column))
            continue
        findings.extend(_twice(source, path, at) for path, at in doubles)
        if value is not None:
            _collect(value, SourceMap(source, lines), objects, findings)
    return objects, findings


def read_value(text: str, source: str) -> tuple[Any, dict[str, tuple[int, int]], list[Finding]]:
    """One value that is no object (mesh configuration, annotations): (value, lines by path, findings)."""
    if len(text) > MAX_BYTES:
        return None, {}, [_finding(source, f"is larger than {MAX_BYTES} bytes")]
    try:
        value, lines, doubles = _Document(text, 0, [MAX_VALUES]).read()
    except _Unreadable as error:
        return None, {}, [_finding(source, str(error), error.line, error.column)]
    return value, lines, [_twice(source, path, at) for path, at in doubles]


def _twice(source: str, path: str, at: tuple[int, int]) -> Finding:
    return _finding(source, f"the key {path!r} is given twice", *at, remedy="remove one")


def raw_object(body: Mapping[str, Any], source_map: SourceMap | None = None) -> RawObject:
    """A parsed JSON object as a RawObject; whatever is missing is empty."""
    metadata = body.get("metadata")
    return RawObject(
        api_version=_text(body.get("apiVersion")),
        kind=_text(body.get("kind")),
        metadata=metadata if isinstance(metadata, Mapping) else {},
        body=body,
        source_map=source_map or SourceMap(),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _finding(source: str, text: str, line: int = 0, column: int = 0, remedy: str = "") -> Finding:
    return Finding(
        INVALID_YAML, Level.ERROR, text, Origin(source=source, line=line, column=column), remedy
    )


def _documents(text: str) -> Iterator[tuple[int, str]]:
    """(lines before it, document). Sound because ``---`` at column 0 always starts a document."""
    start, lines = 0, 0
    for found in _SEPARATOR.finditer(text):
        if found.start() > start:
            yield lines, text[start : found.start()]
            lines += text.count("\n", start, found.start())
            start = found.start()
    yield lines, text[start:]


def _collect(
    value: Any, source_map: SourceMap, objects: list[RawObject], findings: list[Finding]
) -> None:
    """Take one document apart: an object, or a List of them."""
    where = source_map.lines.get("", (1, 1))
    if not isinstance(value, Mapping):
        text = "expected an object with apiVersion, kind and metadata"
        findings.append(_finding(source_map.source, text, *where))
        return
    if not value:
        return
    items = value.get("items")
    if _text(value.get("kind")).endswith("List") and isinstance(items, list):
        for index, entry in enumerate(items):
            prefix = item("items", index)
            lines = {
                path[len(prefix) :].lstrip("."): at
                for path, at in source_map.lines.items()
                if path.startswith(prefix)
            }
            _collect(entry, SourceMap(source_map.source, lines), objects, findings)
        return
    for name in ("apiVersion", "kind"):
        if not _text(value.get(name)):
            remedy = "every object starts with apiVersion, kind and metadata"
            text = f"{name} is missing or not a string"
            findings.append(_finding(source_map.source, text, *where, remedy=remedy))
            return
    objects.append(raw_object(value, source_map))


@dataclass(slots=True)
class _Frame:
    """An open mapping or sequence."""

    value: Any
    path: str
    anchor: str | None
    key: str | None = None  # mappings: the key whose value comes next
    own: set[str] = field(default_factory=set)  # keys written here, not merged in
    merge: bool = False  # that key is "<<"
    into: dict[str, Any] | None = None  # the value of "<<": merged there once it is complete


class _Document:
    """Builds the value of one document from parser events, without recursion."""

    def __init__(self, text: str, offset: int, budget: list[int]) -> None:
        self.text, self.offset, self.budget = text, offset, budget
        self.lines: dict[str, tuple[int, int]] = {}
        self.doubles: list[tuple[str, tuple[int, int]]] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.stack: list[_Frame] = []
        self.root: Any = None

    def read(self) -> tuple[Any, dict[str, tuple[int, int]], list[tuple[str, tuple[int, int]]]]:
        try:
            loader = _LOADER(self.text)
            try:
                # What yaml.parse does, without asking twice for every event: a mesh has hundreds of thousands.
                for event in iter(loader.get_event, None):
                    self._event(event)
            finally:
                loader.dispose()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1 + self.offset, mark.column + 1) if mark else (0, 0)
            if self.text.lstrip()[:1] in ("{", "["):
                return self._json(error.problem or "invalid YAML", line, column)
            raise _Unreadable(f"invalid YAML: {error.problem}", line, column) from None
        except yaml.YAMLError as error:
            reason = getattr(error, "reason", None) or "a character that YAML does not allow"
            raise _Unreadable(f"invalid YAML: {reason}", self.offset + 1, 1) from None
        except (ValueError, UnicodeError) as error:
            raise _Unreadable(f"invalid YAML: {error}", self.offset + 1, 1) from None
        return self.root, self.lines, self.doubles

    def _json(
        self, problem: str, line: int, column: int
    ) -> tuple[Any, dict[str, tuple[int, int]], list[Any]]:
        """JSON that YAML's grammar refuses (tabs): read without lines."""
        try:
            return msgspec.json.decode(self.text), {}, []
        except (msgspec.DecodeError, RecursionError):
            raise _Unreadable(f"invalid YAML: {problem}", line, column) from None

    def _event(self, event: Any) -> None:
        kind, mark = type(event), event.start_mark
        at = (mark.line + 1 + self.offset, mark.column + 1)
        if kind is yaml.ScalarEvent:
            self._scalar(event, at)
        elif kind is yaml.MappingStartEvent:
            self._open({}, event, at)
        elif kind is yaml.SequenceStartEvent:
            self._open([], event, at)
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            frame = self.stack.pop()
            if frame.anchor:
                self.anchors[frame.anchor] = (frame.value, _size(frame.value))
            if frame.into is not None:
                _merge(frame.into, frame.value)
        elif kind is yaml.AliasEvent:
            if event.anchor not in self.anchors:
                raise _Unreadable(f"invalid YAML: the alias *{event.anchor} has no anchor", *at)
            value, size = self.anchors[event.anchor]
            self._spend(size, at)
            self._put(value, at)

    def _spend(self, count: int, at: tuple[int, int]) -> None:
        self.budget[0] -= count
        if self.budget[0] < 0:
            raise _Unreadable(f"more than {MAX_VALUES} values once aliases are expanded", *at)

    def _open(self, value: Any, event: Any, at: tuple[int, int]) -> None:
        if len(self.stack) >= MAX_DEPTH:
            raise _Unreadable(f"nested deeper than {MAX_DEPTH} levels", *at)
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            raise _Unreadable("a key must be a plain value", *at)
        self._spend(1, at)
        parent = self.stack[-1] if self.stack else None
        if parent is not None and parent.merge:
            parent.key, parent.merge = None, False
            self.stack.append(_Frame(value, parent.path, event.anchor, into=parent.value))
            return
        self.stack.append(_Frame(value, self._put(value, at), event.anchor))

    def _scalar(self, event: Any, at: tuple[int, int]) -> None:
        self._spend(1, at)
        frame = self.stack[-1] if self.stack else None
        if frame is not None and isinstance(frame.value, dict) and frame.key is None:
            frame.key = event.value
            frame.merge = event.value == "<<" and not event.style
            path = join(frame.path, frame.key)
            if frame.key in frame.own:
                self.doubles.append((path, at))
            frame.own.add(frame.key)
            self.lines[path] = at
            return
        value = _resolve(event, at)
        if event.anchor:
            self.anchors[event.anchor] = (value, 1)
        self._put(value, at)

    def _put(self, value: Any, at: tuple[int, int]) -> str:
        """Place a value; return its path."""
        if not self.stack:
            self.root = value
            self.lines.setdefault("", at)
            return ""
        frame = self.stack[-1]
        if isinstance(frame.value, list):
            path = item(frame.path, len(frame.value))
            frame.value.append(value)
            self.lines[path] = at
            return path
        key, frame.key = frame.key, None
        if key is None:
            raise _Unreadable("a key must be a plain value", *at)
        if frame.merge:
            frame.merge = False
            _merge(frame.value, value)
            return frame.path
        frame.value[key] = value
        return join(frame.path, key)


def _merge(target: dict[str, Any], value: Any) -> None:
    """YAML's ``<<``: keys of the target win; of several sources, the first."""
    for source in value if isinstance(value, list) else [value]:
        if isinstance(source, dict):
            for name, entry in source.items():
                target.setdefault(name, entry)


def _size(value: Any) -> int:
    """Number of values in a tree whose aliases are expanded; saturates far above the limit."""
    total, todo = 0, [value]
    while todo and total <= MAX_VALUES:
        entry = todo.pop()
        total += 1
        if isinstance(entry, dict):
            todo.extend(entry.values())
        elif isinstance(entry, list):
            todo.extend(entry)
    return total


def _resolve(event: Any, at: tuple[int, int]) -> Any:
    """The value of a scalar, by its tag or its look."""
    text: str = event.value
    tag = event.tag
    if tag in (None, "") and event.style not in (None, ""):
        return text
    if tag and tag != "!":
        if tag in (_TAG + "str", _TAG + "binary"):
            return text
        if tag not in (_TAG + "int", _TAG + "float", _TAG + "bool", _TAG + "null"):
            raise _Unreadable(f"the tag {tag!r} is not supported", *at)
    elif tag == "!":
        return text
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if len(text) < 64 and _INT.match(text):
        return _integer(text)
    if len(text) < 64 and _FLOAT.match(text):
        return float(text.replace("_", ""))
    return _SPECIAL.get(text.lower(), text)


def _integer(text: str) -> int | str:
    digits = text.replace("_", "").lower()
    sign, digits = (-1, digits[1:]) if digits[0] == "-" else (1, digits.lstrip("+"))
    try:
        if digits.startswith("0b"):
            return sign * int(digits[2:], 2)
        if digits.startswith("0x"):
            return sign * int(digits[2:], 16)
        if digits.startswith("0") and len(digits) > 1:
            return sign * int(digits.removeprefix("0o"), 8)
        return sign * int(digits)
    except ValueError:
        return text
