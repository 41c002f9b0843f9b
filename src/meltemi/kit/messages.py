"""Protobuf messages by the names and the JSON that users write.

In: full type names, JSON text. Out: messages of the installed generated types; what is not installed is None or an error.
"""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import descriptor_pool, json_format, message_factory


def message_for(name: str) -> Any:
    """An empty message of a full name, or None when the installed types have none."""
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        return None
    return message_factory.GetMessageClass(descriptor)()


def parse(body: str, target: Any) -> tuple[Any, str]:
    """A JSON value as a message of ``target``'s type, and what was ignored: fields that the installed types do not know.

    :raises ValueError: when it is not of that type.
    """
    missing = load_types(body)
    if missing:
        raise ValueError(f"the proxy has no type {missing[0]}")
    try:
        return _parsed(body, target, lenient=False), ""
    except (ValueError, TypeError) as strict:
        try:
            return _parsed(body, target, lenient=True), _first_line(strict)
        except (ValueError, TypeError) as error:
            raise ValueError(_first_line(error)) from None


def _parsed(body: str, target: Any, *, lenient: bool) -> Any:
    made = type(target)()
    try:
        return json_format.Parse(
            body, made, ignore_unknown_fields=lenient, descriptor_pool=descriptor_pool.Default()
        )
    except json_format.ParseError as error:
        raise ValueError(str(error)) from None


def _first_line(error: Exception) -> str:
    """An error's text, short enough for a finding."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


def load_types(body: str) -> list[str]:
    """Import the modules of all types that a value names, so that its Any parts can be parsed; those that do not exist."""
    names = sorted(type_names(json.loads(body)))
    for name in names:
        if message_for(name) is None:
            _import_type(name)
    return [name for name in names if message_for(name) is None]


def type_names(document: Any) -> set[str]:
    """All ``@type`` names in a JSON document."""
    found: set[str] = set()
    if isinstance(document, dict):
        kind = document.get("@type")
        if isinstance(kind, str):
            found.add(kind.rpartition("/")[2])
        for inner in document.values():
            found |= type_names(inner)
    elif isinstance(document, list):
        for inner in document:
            found |= type_names(inner)
    return found


def _import_type(name: str) -> None:
    """Load the generated module of a type by its package: ``envoy.extensions...v3.Lua`` -> ``...v3.*_pb2``."""
    import importlib
    import pkgutil

    package = name.rpartition(".")[0]
    if not package.startswith(("envoy.", "udpa.", "xds.")):
        return
    try:
        parent = importlib.import_module(package)
        for entry in pkgutil.iter_modules(parent.__path__):
            if entry.name.endswith("_pb2"):
                importlib.import_module(f"{package}.{entry.name}")
    except (ImportError, AttributeError):
        return
