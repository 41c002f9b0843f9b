"""YAML of tests: files, folders, and texts in the tests themselves, with the lines they stand on.

In: what a test gives to ``mesh.apply``. Out: objects whose origins name files and lines that a person can open, and
the text of those lines. Parsed once per text.
"""

from __future__ import annotations

import inspect
import linecache
import os
import textwrap
from pathlib import Path
from types import FrameType

from meltemi.config.decode import RawObject, load, parse_yaml
from meltemi.model.config import AnyConfig
from meltemi.model.origin import Finding, Origin

SUFFIXES = (".yaml", ".yml", ".json")
_HERE = str(Path(__file__).parent)


class Sources:
    """What was read in this session."""

    def __init__(self) -> None:
        self._parsed: dict[tuple[str, str], tuple[list[RawObject], list[Finding]]] = {}
        self._decoded: dict[int, tuple[RawObject, AnyConfig | None, list[Finding]]] = {}
        self._lines: dict[str, list[str]] = {}
        self._names: dict[tuple[str, str], str] = {}  # of composed texts

    def read(self, source: str | os.PathLike[str], folder: Path) -> list[tuple[str, str]]:
        """(text, name) of a file, of the files of a folder, or of YAML itself.

        A string with a line break, or with a colon and a space, is YAML. Relative paths start in ``folder``, then in the
        working directory. Raises FileNotFoundError.
        """
        if isinstance(source, str) and ("\n" in source or ": " in source):
            return [self._placed_text(source)]
        path = Path(source)
        candidates = [path] if path.is_absolute() else [folder / path, Path.cwd() / path]
        found = next((place for place in candidates if place.exists()), None)
        if found is None:
            raise FileNotFoundError(
                f"{source}: no such file or folder in {folder} (YAML text needs a line break)"
            )
        files = [found]
        if found.is_dir():
            files = [file for file in sorted(found.rglob("*")) if file.suffix in SUFFIXES]
        return [(file.read_text(encoding="utf-8"), _shown(file)) for file in files]

    def parse(self, text: str, name: str) -> tuple[list[RawObject], list[Finding]]:
        """Objects and findings of a text."""
        key = (text, name)
        known = self._parsed.get(key)
        if known is None:
            known = parse_yaml(text, name)
            self._parsed[key] = known
            self._lines.setdefault(name, text.splitlines())
        return known

    def _placed_text(self, text: str) -> tuple[str, str]:
        """YAML of a test, shifted to the lines on which it stands in the test's file."""
        frame = _caller()
        plain = textwrap.dedent(text)
        if frame is None:
            return plain, self._distinct("<yaml>", plain)
        path = frame.f_code.co_filename
        content = "".join(linecache.getlines(path))
        offset = content.find(text)
        name = _shown(Path(path))
        if offset < 0:
            # Composed at run time: the line of the call is the best there is.
            return plain, self._distinct(f"<yaml at {name}:{frame.f_lineno}>", plain)
        self._lines[name] = content.splitlines()
        return "\n" * content.count("\n", 0, offset) + plain, name

    def _distinct(self, name: str, text: str) -> str:
        """The name of a composed text: a call may give several, and be made again with others."""
        known = self._names.get((name, text))
        if known is None:
            others = sum(1 for other, _ in self._names if other == name)
            known = name if not others else f"{name[:-1]}, text {others + 1}>"
            self._names[name, text] = known
        return known

    def decode(self, raw: RawObject) -> tuple[AnyConfig | None, list[Finding]]:
        """``load``, once per object."""
        known = self._decoded.get(id(raw))
        if known is None or known[0] is not raw:
            known = (raw, *load(raw))
            self._decoded[id(raw)] = known
        return known[1], list(known[2])

    def line(self, origin: Origin) -> str:
        """The text of an origin's line; '' when unknown."""
        lines = self._lines.get(origin.source, ())
        return lines[origin.line - 1].strip() if 0 < origin.line <= len(lines) else ""


def _shown(path: Path) -> str:
    """Relative to the working directory where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _caller() -> FrameType | None:
    """The innermost frame outside this package."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame
