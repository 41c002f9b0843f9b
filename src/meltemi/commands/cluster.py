"""What verbs that talk to a cluster share: the connection flags, and YAML files in and out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from meltemi.commands.failure import CommandError, why

F = TypeVar("F", bound=Callable[..., Any])
Object = dict[str, Any]


def connection_flags(command: F) -> F:
    """``-c/--kubeconfig`` and ``--context``, as in istioctl."""
    command = click.option("--context", default="", help="kubeconfig context to use")(command)
    return click.option("-c", "--kubeconfig", default="", help="kubeconfig file")(command)


def read_documents(paths: Iterable[str]) -> list[Object]:
    """The YAML or JSON documents of files (``-``: standard input) that hold one object each."""
    documents: list[Object] = []
    for path in paths:
        try:
            text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"{path}: {why(error)}") from error
        try:
            found = [item for item in yaml.safe_load_all(text) if item is not None]
        except yaml.YAMLError as error:
            raise CommandError(f"{path}: this is not YAML: {error}") from error
        for item in found:
            if not isinstance(item, dict) or "kind" not in item or "apiVersion" not in item:
                raise CommandError(f"{path}: a document is no object: it needs apiVersion and kind")
            documents.append(item)
    return documents


def dump_documents(documents: Iterable[Object]) -> str:
    """The documents as one YAML stream."""
    return "---\n".join(yaml.safe_dump(item, sort_keys=False) for item in documents)
