"""What is refused and what is warned of, for every kind: the same on every surface, with code, field, line and remedy.

``bad/*.yaml`` is the table: wrong objects, each with comments that say which findings the line they stand on has.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from meltemi.commands.main import VERBS
from meltemi.config.admission import validate_review
from meltemi.config.decode import load, parse_yaml
from meltemi.config.kinds import INSTALL, KINDS
from meltemi.model.origin import Finding, Level
from meltemi.testing.mesh import Mesh, WrongConfiguration

FOLDER = Path(__file__).parent / "bad"
_MARK = re.compile(r"#([!?]) (\S+) (.+?)(?= #[!?]|$)")
Expected = tuple[Level, str, str, int]


def cases() -> Iterator[tuple[str, int, str]]:
    """(file, lines before it, document)."""
    for path in sorted(FOLDER.glob("*.yaml")):
        before = 0
        for document in re.split(r"^---\n", path.read_text(), flags=re.MULTILINE):
            yield path.name, before, document
            before += document.count("\n") + 1


CASES = list(cases())
IDS = [
    f"{file}:{before + 1}:{re.search(r'name: ([^}]*)', text)[1].strip()}"  # type: ignore[index]
    if "name: " in text
    else f"{file}:{before + 1}"
    for file, before, text in CASES
]


def expected(document: str) -> set[Expected]:
    """What the comments say."""
    found: set[Expected] = set()
    for number, line in enumerate(document.splitlines(), 1):
        if line.startswith("#"):
            continue
        for mark in _MARK.finditer(line):
            level = Level.ERROR if mark[1] == "!" else Level.WARNING
            found.add((level, mark[2], mark[3].strip(), number))
    return found


def findings(document: str) -> list[Finding]:
    """All findings about one document."""
    (raw,), wrong = parse_yaml(document, "bad.yaml")
    return [*wrong, *load(raw)[1]]


@pytest.mark.parametrize("document", [text for _, _, text in CASES], ids=IDS)
def test_every_mistake_is_named_where_it_is(document: str) -> None:
    """No finding is missing, none is beside the point."""
    seen = [f for f in findings(document) if f.level is not Level.INFO]
    assert {(f.level, f.code, f.origin.path, f.origin.line) for f in seen} == expected(document)
    assert all(f.text for f in seen)


def test_every_kind_has_its_wrong_objects() -> None:
    kinds = {raw.kind for _, _, text in CASES for raw in parse_yaml(text, "")[0]}
    assert kinds >= {kind for kind, info in KINDS.items() if info.group != INSTALL}


# --- the surfaces -------------------------------------------------------------------------------------

FILES = sorted(FOLDER.glob("*.yaml"))
WORKLOAD = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: app}
spec: {template: {metadata: {labels: {app: app}}, spec: {containers: [{name: app}]}}}
"""


def lines_of(path: Path) -> set[tuple[Level, str, str, int]]:
    """What a whole file's comments say."""
    return {
        (level, code, field, before + line)
        for file, before, text in CASES
        if file == path.name
        for level, code, field, line in expected(text)
    }


def run(command: str, *arguments: str) -> tuple[int, str]:
    """A verb's exit code and everything that it says."""
    module, attribute, _ = VERBS[command]
    verb = getattr(importlib.import_module(f"meltemi.commands.{module}"), attribute)
    done = CliRunner().invoke(verb, list(arguments), standalone_mode=False)
    assert done.exception is None, done.output
    return done.return_value, done.output


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("validate", ("-f",), 1),
        ("analyze", (), 79),
        ("compile", ("-f",), 1),
    ],
)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_line_says_file_line_field_and_remedy(
    path: Path, command: str, arguments: tuple[str, ...], code: int
) -> None:
    done, said = run(command, *arguments, str(path))
    assert done == code
    for level, name, field, line in lines_of(path):
        pattern = (
            rf"{level.value} \[{name}\] {re.escape(str(path))}:{line} \(.* {re.escape(field)}\): "
        )
        assert re.search(pattern, said), (name, field, line, said)


@pytest.mark.parametrize("document", [text for _, _, text in CASES], ids=IDS)
def test_the_webhook_refuses_the_same_objects(document: str) -> None:
    """What kubectl shows: every field that is wrong, in one message."""
    (raw,), _ = parse_yaml(document, "")
    review = {"request": {"uid": "u", "operation": "CREATE", "namespace": "a", "object": raw.body}}
    answer = validate_review(review)["response"]
    wanted = expected(document)
    errors = [field for level, _, field, _ in wanted if level is Level.ERROR]
    if raw.kind not in KINDS:
        return  # the API server itself knows no such kind
    assert answer["allowed"] is not bool(errors)
    for field in errors:
        assert f"{field}: " in answer["status"]["message"]
    for level, _, field, _ in wanted:
        if level is Level.WARNING:
            assert any(warning.startswith(f"{field}: ") for warning in answer["warnings"])


@pytest.mark.envoy
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_testing_plugin_refuses_them(mesh: Mesh, path: Path) -> None:
    with pytest.raises(WrongConfiguration) as refused:
        mesh.apply(WORKLOAD, path)
    seen = {(f.level, f.code, f.origin.path, f.origin.line) for f in refused.value.findings}
    assert seen >= {entry for entry in lines_of(path) if entry[0] is Level.ERROR}
