"""``validate``: check configuration files without a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from meltemi.commands.failure import CommandError, why
from meltemi.model.origin import Finding, Level

_SUFFIXES = (".yaml", ".yml", ".json")


def files_of(paths: tuple[str, ...]) -> list[str]:
    """The files named, and those inside folders named; ``-`` stays standard input."""
    found: list[str] = []
    for path in paths:
        place = Path(path)
        if path != "-" and place.is_dir():
            inside = (file for file in sorted(place.rglob("*")) if file.suffix in _SUFFIXES)
            found += map(str, inside)
        else:
            found.append(path)
    return found


def read_source(path: str) -> tuple[str, str]:
    """(text, name for messages) of a file or of standard input."""
    if path == "-":
        return sys.stdin.read(), "<stdin>"
    try:
        return Path(path).read_text(encoding="utf-8"), path
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: {why(error)}") from error


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs, in the shape of ``istioctl analyze -o json``."""
    origin = finding.origin
    reference = f"{origin.source}:{origin.line}" if origin.line else origin.source
    resource = " ".join(filter(None, (origin.kind, f"{origin.namespace}/{origin.name}".strip("/"))))
    made = {
        "code": finding.code,
        "level": finding.level.value,
        "message": finding.text + (f" ({finding.remedy})" if finding.remedy else ""),
        "origin": resource,
        "reference": reference,
    }
    return {key: value for key, value in made.items() if value}


@click.command()
@click.option(
    "-f",
    "--filename",
    "paths",
    multiple=True,
    required=True,
    help="file or folder; - reads standard input",
)
@click.option("-o", "--output", type=click.Choice(["short", "json"]), default="short")
def validate(paths: tuple[str, ...], output: str) -> int:
    """Check configuration files."""
    from meltemi.config.decode import load, parse_yaml

    findings: list[Finding] = []
    for path in files_of(paths):
        objects, unreadable = parse_yaml(*read_source(path))
        findings += unreadable
        for raw in objects:
            findings += load(raw)[1]
    if output == "json":
        click.echo(json.dumps([as_json(finding) for finding in findings], indent=2))
    for finding in findings if output == "short" else ():
        click.echo(str(finding), err=finding.level is Level.ERROR)
    bad = any(finding.level is Level.ERROR for finding in findings)
    if not findings and output == "short":
        click.echo(f"{', '.join(paths)} is valid")
    return 1 if bad else 0
