"""Which test shows which field: ``@pytest.mark.covers(...)`` marks, read from the tests' source without running it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True, order=True)
class Mark:
    """One field that one test covers. ``test`` is pytest's name for it, below ``tests/``; ``line`` that of the mark."""

    field: str
    test: str
    line: int


def all_marks(root: Path = TESTS) -> list[Mark]:
    """The marks of all tests, sorted by field and test."""
    found = [
        mark
        for path in sorted(root.rglob("test_*.py"))
        for mark in marks_of(path.read_text(), path.relative_to(root).as_posix())
    ]
    return sorted(found)


def marks_of(source: str, file: str) -> Iterator[Mark]:
    """The marks in one file: on functions, classes, parameters (``pytest.param(.., marks=..)``) and ``pytestmark``."""
    if "covers" in source:
        yield from _below(ast.parse(source), file)


def _below(node: ast.AST, place: str) -> Iterator[Mark]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        place = f"{place}::{node.name}"
    elif isinstance(node, ast.Call) and _is_covers(node.func):
        for argument in node.args:
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                raise ValueError(
                    f"{place}, line {node.lineno}: write the covered fields as strings"
                )
            yield Mark(argument.value, place, node.lineno)
        return
    for child in ast.iter_child_nodes(node):
        yield from _below(child, place)


def _is_covers(function: ast.expr) -> bool:
    """``pytest.mark.covers`` or ``mark.covers``."""
    return (
        isinstance(function, ast.Attribute)
        and function.attr == "covers"
        and ast.unparse(function.value).endswith("mark")
    )
