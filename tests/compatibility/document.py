"""``docs/compatibility.md``: every field of the API, whether it works, and the test that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from compatibility.marks import Mark
from meltemi.config.api_fields import API, ApiField, fields_of, places
from meltemi.config.kinds import KINDS
from meltemi.config.limits import LIMITS, Limit, limit_of

STATES = ("works", "differs", "refused", "no test yet")
_SHOWN = 2  # tests that a row names
_HEAD = """\
# What works

Every field of the API, as the code knows it: this page is generated (`make docs`) from the types that objects are decoded with, from
the table of limits that findings are made of (`meltemi.config.limits`), and from the tests, each of which says which fields it shows.

* **works**: behaves as Istio documents it; the tests that show it on real Envoys are named, below `tests/`.
* **differs**: works, but not quite as in Istio: how is said here and in the finding that whoever sets the field gets.
* **refused**: has no effect here: why is said here and in the finding, whose code is given. IST0106 refuses the whole object.
* **no test yet**: is decoded and checked; nobody has written down a test that shows it.

A path leaves out `spec`, indices and keys. A struct that a kind uses in several places is listed at the first one.
"""


@dataclass
class Row:
    """What is known of one field (or one value of one)."""

    field: ApiField
    limit: Limit | None = None
    tests: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """As in the page's legend."""
        if self.limit is not None:
            return self.limit.state
        return "works" if self.tests else "no test yet"


def rows_of(kind: str, marks: Iterable[Mark]) -> list[Row]:
    """The rows of one kind."""
    by_field: dict[str, list[str]] = {}
    for mark in marks:
        path = mark.field.partition("=")[0]
        by_field.setdefault(path, []).append(mark.test)
    rows: list[Row] = []
    for entry in fields_of(kind):
        tests = list(by_field.get(entry.path, ()))
        if entry.same_as:
            tests += _under(entry.path, by_field)
        else:
            tests += _elsewhere(entry.path, by_field)
        rows.append(Row(entry, limit_of(entry.path), list(dict.fromkeys(tests))))
        for value in entry.values:
            if f"{entry.path}={value}" in LIMITS:
                path = f"{entry.path}={value}"
                rows.append(Row(ApiField(path), LIMITS[path]))
    return rows


def _under(path: str, by_field: Mapping[str, list[str]]) -> Iterator[str]:
    for name, tests in by_field.items():
        if name.startswith(path + "."):
            yield from tests


def _elsewhere(path: str, by_field: Mapping[str, list[str]]) -> Iterator[str]:
    """Tests of the same field at a later place of its struct."""
    for place in places(path)[1:]:
        yield from by_field.get(place, ())


def document(marks: Iterable[Mark]) -> str:
    """The whole page."""
    by_kind: dict[str, list[Mark]] = {}
    for mark in marks:
        by_kind.setdefault(mark.field.partition(".")[0], []).append(mark)
    tables = {kind: rows_of(kind, by_kind.get(kind, [])) for kind in API}
    parts = [_HEAD, *(_table(kind, rows) for kind, rows in tables.items())]
    return "\n".join(parts)


def _counts(rows: list[Row]) -> str:
    """How many fields are in which state. Beside the table, so that changes of two kinds never touch one line."""
    counts = Counter(row.state for row in rows)
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _table(kind: str, rows: list[Row]) -> str:
    info = KINDS.get(kind)
    served = f"`{info.group}`: {', '.join(info.versions)}\n\n" if info else "ConfigMap `istio`\n\n"
    lines = [
        f"## {kind}\n\n{served}{_counts(rows)}\n\n| Field | State | Shown by, or why |",
        "|---|---|---|",
    ]
    for row in rows:
        path = row.field.path.partition(".")[2]
        lines.append(f"| `{path}` | {row.state} | {_detail(row)} |")
    return "\n".join(lines) + "\n"


def _detail(row: Row) -> str:
    parts: list[str] = []
    if row.limit is not None:
        text = row.limit.text + (f"; {row.limit.remedy}" if row.limit.remedy else "")
        parts.append(f"{row.limit.code}: {text}".replace("|", "\\|"))
    if row.field.same_as:
        parts.append(f"as `{row.field.same_as.partition('.')[2]}`")
    shown = [f"`{test}`" for test in row.tests[:_SHOWN]]
    if len(row.tests) > _SHOWN:
        shown.append(f"and {len(row.tests) - _SHOWN} more")
    return "; ".join([*parts, *([", ".join(shown)] if shown else [])])
