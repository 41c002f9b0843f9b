"""Reads an object of a known kind: raw values -> typed, frozen ones.

In: a ``RawObject`` (from ``parse_yaml``) or a plain mapping (from the API server). Out: a ``Config`` and findings. Promises:
total (never raises on user input, whatever its shape) and complete (all mistakes of an object are reported at once, each
with its field and line, and with what to write instead).

A ``Config`` comes out unless a value has the wrong type or a required one is missing. Unknown fields are reported as
errors too but do not stop the object: an API server prunes them, and so does this stage. Whoever has to refuse an
object (the webhook, ``validate``) refuses it for any finding of level ERROR; whoever serves (istiod) uses what comes out.
Semantic rules are ``validate``'s.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from meltemi.config.durations import parse_duration
from meltemi.config.paths import item, join
from meltemi.config.shapes import Choice, ListOf, MapOf, Record, Scalar, Shape, record
from meltemi.config.yaml_source import RawObject, raw_object
from meltemi.model.config import NO_STATUS, Config, Meta, Status
from meltemi.model.fields import Spec
from meltemi.model.frozen import EMPTY_MAP, FrozenMap, freeze
from meltemi.model.origin import Finding, Level

SCHEMA = "IST0106"  # SchemaValidationError
SCHEMA_WARNING = "IST0133"  # SchemaWarning
_SHOWN = 12  # names that a message lists
SpecT = TypeVar("SpecT", bound=Spec)

_MISSING: Any = object()
# Deeper than any schema: free-form values are the only way to nest without bound.
_MAX_FREE_DEPTH = 64


class Report:
    """Collects findings about one object; knows where its fields are."""

    def __init__(self, place: Config[Any]) -> None:
        self.place = place
        self.findings: list[Finding] = []
        self.fatal = False

    def add(
        self,
        path: str,
        text: str,
        remedy: str = "",
        level: Level = Level.ERROR,
        code: str = SCHEMA,
        fatal: bool = False,
    ) -> None:
        """Record one mistake at a field."""
        self.findings.append(Finding(code, level, text, self.place.origin(path), remedy))
        self.fatal = self.fatal or fatal

    def error(self, path: str, text: str, remedy: str = "") -> None:
        """A mistake that makes the object unusable."""
        self.add(path, text, remedy, fatal=True)

    def warn(self, path: str, text: str, remedy: str = "", code: str = SCHEMA_WARNING) -> None:
        """Something that works but probably not as meant."""
        self.add(path, text, remedy, Level.WARNING, code)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, or ''."""
    names = list(known)
    plain = {name.replace("_", "").replace("-", "").lower(): name for name in reversed(names)}
    folded = word.replace("_", "").replace("-", "").lower()
    if folded in plain:
        return plain[folded]
    close = difflib.get_close_matches(folded[:64], plain, n=1, cutoff=0.7)
    return plain[close[0]] if close else ""


def decode_spec(cls: type[SpecT], value: Any, path: str, report: Report) -> SpecT | None:
    """A spec of a known class; None when something in it is unusable. Findings go to ``report``."""
    found = _record(record(cls), value, path, report)
    return found if isinstance(found, cls) and not report.fatal else None


def decode_meta(raw: RawObject) -> tuple[Meta, list[tuple[str, str, str]]]:
    """Metadata and what is wrong with it: (path, text, remedy)."""
    source, wrong = raw.metadata, []
    if not isinstance(raw.body.get("metadata", {}), Mapping):
        wrong.append(("metadata", "expected an object", "write name and namespace under it"))
    texts: dict[str, str] = {}
    for key in ("name", "namespace", "resourceVersion", "uid"):
        value = source.get(key)
        if value is not None and not isinstance(value, str):
            wrong.append(
                (f"metadata.{key}", f"expected a string, got {describe(value)}", "put it in quotes")
            )
        texts[key] = value if isinstance(value, str) else ""
    if not texts["name"] and not source.get("generateName"):
        wrong.append(("metadata.name", "is required", "name the object"))
    maps: dict[str, Mapping[str, str]] = {}
    for key in ("labels", "annotations"):
        maps[key] = _text_map(source.get(key), f"metadata.{key}", wrong)
    generation = source.get("generation")
    return (
        Meta(
            name=texts["name"],
            namespace=texts["namespace"],
            labels=maps["labels"],
            annotations=maps["annotations"],
            created=timestamp(source.get("creationTimestamp")),
            generation=generation if isinstance(generation, int) else 0,
            resource_version=texts["resourceVersion"],
            uid=texts["uid"],
        ),
        wrong,
    )


def timestamp(value: Any) -> float:
    """RFC 3339 text -> seconds since the epoch; 0.0 when it is none."""
    if not isinstance(value, str) or not value:
        return 0.0
    try:
        return datetime.fromisoformat(value).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _text_map(value: Any, path: str, wrong: list[tuple[str, str, str]]) -> Mapping[str, str]:
    if value is None:
        return EMPTY_MAP
    if not isinstance(value, Mapping):
        wrong.append((path, f"expected a map of strings, got {describe(value)}", ""))
        return EMPTY_MAP
    found: dict[str, str] = {}
    for key, entry in value.items():
        if isinstance(entry, str):
            found[str(key)] = entry
        else:
            text = f"expected a string, got {describe(entry)}"
            wrong.append((join(path, str(key)), text, f"put it in quotes: {quoted(entry)}"))
    return FrozenMap(found)


def describe(value: Any) -> str:
    """A value's type and look, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        text = repr(value)
        return f"the number {text if len(text) <= 40 else text[:37] + '...'}"
    if isinstance(value, str):
        return f"the string {quoted(value)}"
    if isinstance(value, Mapping):
        return "a map"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__}"


def quoted(value: Any) -> str:
    """A value in quotes, shortened for messages."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return '"' + text.replace('"', '\\"') + '"'


def _value(shape: Shape, value: Any, path: str, report: Report) -> Any:
    """One value of a known shape; _MISSING when it is unusable."""
    if isinstance(shape, Record):
        return _record(shape, value, path, report)
    if isinstance(shape, ListOf):
        return _list(shape, value, path, report)
    if isinstance(shape, MapOf):
        return _map(shape, value, path, report)
    if isinstance(shape, Choice):
        return _choice(shape, value, path, report)
    return _scalar(shape, value, path, report)


def _record(shape: Record, value: Any, path: str, report: Report) -> Any:
    if not isinstance(value, Mapping):
        example = next(iter(shape.fields), "field")
        report.error(
            path,
            f"expected a map, got {describe(value)}",
            f'write fields under it, as in "{example}: ..."',
        )
        return _MISSING
    found: dict[str, Any] = {}
    for key, entry in value.items():
        field = shape.fields.get(key) if isinstance(key, str) else None
        if field is None:
            guess = nearest(str(key), shape.fields)
            remedy = (
                f'did you mean "{guess}"?' if guess else f"known fields: {_listed(shape.fields)}"
            )
            report.add(join(path, str(key)), f"unknown field {quoted(key)}", remedy)
            continue
        if entry is None:  # null means "not set", as in protobuf's JSON
            continue
        result = _value(field.shape, entry, join(path, field.wire), report)
        if result is not _MISSING:
            found[field.name] = result
    for name in shape.required:
        if value.get(name) is None:
            report.error(join(path, name), "is required", f'add "{name}"')
    for group in shape.one_of:
        given = [name for name in group if _is_set(value.get(name))]
        if len(given) > 1:
            report.error(
                join(path, given[1]),
                f"cannot be set together with {quoted(given[0])}",
                f"keep one of {', '.join(given)}",
            )
    return shape.cls(**found)


def _listed(names: Iterable[str]) -> str:
    """Names for a message: not all of a long list."""
    known = list(names)
    more = f", ... ({len(known) - _SHOWN} more)" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more if known else "none"


def _is_set(value: Any) -> bool:
    """Empty lists and strings are "not set" in protobuf; an empty map is a set message."""
    return value is not None and value != "" and value != [] and value is not False


def _list(shape: ListOf, value: Any, path: str, report: Report) -> Any:
    if not isinstance(value, list | tuple):
        report.error(path, f"expected a list, got {describe(value)}", 'start each item with "- "')
        return _MISSING
    found = []
    for index, entry in enumerate(value):
        where = item(path, index)
        if entry is None:
            report.error(where, "is empty", "write a value or remove the item")
            continue
        result = _value(shape.item, entry, where, report)
        if result is not _MISSING:
            found.append(result)
    return tuple(found)


def _map(shape: MapOf, value: Any, path: str, report: Report) -> Any:
    if not isinstance(value, Mapping):
        report.error(path, f"expected a map, got {describe(value)}", 'write "key: value" under it')
        return _MISSING
    found: dict[Any, Any] = {}
    for key, entry in value.items():
        where = join(path, str(key))
        name: Any = str(key)
        if shape.integer_keys:
            if not (name.isascii() and name.isdecimal() and len(name) <= 10):
                report.error(where, f"the key {quoted(key)} is not a number", "use a port number")
                continue
            name = int(name)
        if entry is None:
            report.error(where, "is empty", "write a value or remove the key")
            continue
        result = _value(shape.value, entry, where, report)
        if result is not _MISSING:
            found[name] = result
    return FrozenMap(found)


def _choice(shape: Choice, value: Any, path: str, report: Report) -> Any:
    if isinstance(value, str) and value in shape.values:
        return value
    guess = nearest(value, shape.values) if isinstance(value, str) else ""
    remedy = f"use one of {', '.join(shape.values)}"
    if guess:
        remedy = f"did you mean {guess}? ({remedy})"
    report.error(path, f"{describe(value)} is not a known value", remedy)
    return _MISSING


def _scalar(shape: Scalar, value: Any, path: str, report: Report) -> Any:
    if shape.format:
        return _formatted(shape, value, path, report)
    if shape.type == "string":
        if isinstance(value, str):
            return value
        remedy = (
            f"put it in quotes: {quoted(value)}" if isinstance(value, bool | int | float) else ""
        )
        report.error(path, f"expected a string, got {describe(value)}", remedy)
        return _MISSING
    if shape.type == "boolean":
        if isinstance(value, bool):
            return value
        report.error(path, f"expected true or false, got {describe(value)}", "remove the quotes")
        return _MISSING
    return _number(shape, value, path, report)


def _number(shape: Scalar, value: Any, path: str, report: Report) -> Any:
    whole = shape.type == "integer"
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = "a whole number" if whole else "a number"
        remedy = "remove the quotes" if isinstance(value, str) else ""
        report.error(path, f"expected {kind}, got {describe(value)}", remedy)
        return _MISSING
    if whole and isinstance(value, float):
        if not value.is_integer():
            report.error(path, f"expected a whole number, got {value!r}", "round it")
            return _MISSING
        value = int(value)
    if value != value or value in (float("inf"), float("-inf")):
        report.error(path, f"expected a number, got {value!r}", "")
        return _MISSING
    if (shape.ge is not None and value < shape.ge) or (shape.le is not None and value > shape.le):
        low, high = shape.ge, shape.le
        remedy = f"use a value from {low} to {high}" if high is not None else f"use at least {low}"
        report.error(path, f"{value!r} is out of range", remedy)
        return _MISSING
    return value if whole else float(value)


def _formatted(shape: Scalar, value: Any, path: str, report: Report) -> Any:
    if shape.format == "any":
        return _frozen(value, path, report)
    if shape.format == "free-form":
        if isinstance(value, Mapping):
            return _frozen(value, path, report)
        report.error(path, f"expected a map, got {describe(value)}", "")
        return _MISSING
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if shape.format == "int-or-string" and number:
        return str(value)
    if not isinstance(value, str):
        remedy = 'write it with a unit, as in "10s"' if shape.format == "duration" else ""
        report.error(path, f"expected a string, got {describe(value)}", remedy)
        return _MISSING
    if shape.format != "duration":
        return value
    seconds = parse_duration(value)
    if seconds is None:
        report.error(
            path,
            f"{quoted(value)} is not a duration",
            'write a number and a unit: "500ms", "10s", "1m30s"',
        )
        return _MISSING
    return seconds


def _frozen(value: Any, path: str, report: Report) -> Any:
    """A free-form value, deeply frozen; bounded in depth."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > _MAX_FREE_DEPTH:
            report.error(path, f"is nested deeper than {_MAX_FREE_DEPTH} levels", "flatten it")
            return _MISSING
        level = [
            child
            for entry in level
            if isinstance(entry, Mapping | list | tuple)
            for child in (entry.values() if isinstance(entry, Mapping) else entry)
        ]
    return freeze(value)


Rules = Callable[[Config[Any], Report], None]


def decode_as(
    raw: RawObject | Mapping[str, Any], kind: str, cls: type[SpecT], rules: Rules | None = None
) -> tuple[Config[SpecT] | None, list[Finding]]:
    """An object whose kind is known. See the module's promises.

    Of an object that cannot be used, ``rules`` look at what could be read, so that people learn of all mistakes at once.
    """
    if not isinstance(raw, RawObject):
        raw = raw_object(raw)
    meta, wrong = decode_meta(raw)
    report = Report(Config(kind, meta, None, raw.source_map))
    for path, text, remedy in wrong:
        report.add(path, text, remedy, fatal=path != "metadata")
    body = raw.body
    for key in body:
        if key not in ("apiVersion", "kind", "metadata", "spec", "status"):
            guess = nearest(str(key), ("apiVersion", "kind", "metadata", "spec"))
            hint = f'did you mean "{guess}"?' if guess else 'did you mean to write it under "spec"?'
            report.add(join("", str(key)), f"unknown field {quoted(key)}", hint)
    given = body.get("spec")
    if given is None and record(cls).required:
        report.error("spec", "is required", "")
    spec = _record(record(cls), {} if given is None else given, "spec", report)
    if not isinstance(spec, cls):
        return None, report.findings
    if report.fatal:
        if rules is not None:
            partial = Report(Config(kind, meta, spec, raw.source_map))
            rules(partial.place, partial)
            report.findings += _beside(report.findings, partial.findings)
        return None, report.findings
    status = _status(kind, body.get("status"))
    return Config(kind, meta, spec, raw.source_map, status=status), report.findings


def _beside(broken: list[Finding], others: list[Finding]) -> Iterator[Finding]:
    """The findings about fields that are not, hold or lie in what could not be read. Items after an unreadable one have moved up."""
    places = {
        finding.origin.path.rpartition("[")[0] + "["
        if finding.origin.path.endswith("]")
        else finding.origin.path
        for finding in broken
    }
    for finding in others:
        path = finding.origin.path
        if not any(path.startswith(place) or place.startswith(path) for place in places):
            yield finding


def _status(kind: str, value: Any) -> Status:
    """What the mesh reads of a status. Controllers write it, so what has another form is left out without a word."""
    if not isinstance(value, Mapping):
        return NO_STATUS
    if kind == "ServiceEntry":
        pairs = ((e.get("host"), e.get("value")) for e in _maps(value.get("addresses")))
        return Status(
            addresses=tuple((h, v) for h, v in pairs if isinstance(h, str) and isinstance(v, str))
        )
    if kind == "WorkloadEntry":
        for condition in _maps(value.get("conditions")):
            if condition.get("type") == "Healthy":
                return Status(healthy=condition.get("status") == "True")
    return NO_STATUS


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return (
        [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
    )
