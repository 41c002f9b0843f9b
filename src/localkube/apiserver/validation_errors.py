"""Field errors in Kubernetes' words, and paths to fields.

Out: `FieldError` values whose text is that of kube-apiserver's field package, e.g.
`spec.replicas: Invalid value: -1: must be greater than or equal to 0`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from localkube.apiserver.errors import FieldError

VALUE_SHOWN_CHARS_MAX = 256
"""Longer values are cut in messages; Kubernetes shows all of it, which helps nobody."""


def show(value: Any) -> str:
    """The value as Kubernetes prints it: strings quoted, maps and lists as JSON."""
    text = msgspec.json.encode(value).decode()
    if len(text) > VALUE_SHOWN_CHARS_MAX:
        return text[:VALUE_SHOWN_CHARS_MAX] + "..."
    return text


def invalid(path: str, value: Any, detail: str) -> FieldError:
    return FieldError(path, "FieldValueInvalid", f"Invalid value: {show(value)}: {detail}")


def required(path: str, detail: str = "") -> FieldError:
    return FieldError(
        path, "FieldValueRequired", f"Required value: {detail}" if detail else "Required value"
    )


def forbidden(path: str, detail: str) -> FieldError:
    return FieldError(path, "FieldValueForbidden", f"Forbidden: {detail}")


def duplicate(path: str, value: Any) -> FieldError:
    return FieldError(path, "FieldValueDuplicate", f"Duplicate value: {show(value)}")


def not_found(path: str, value: Any) -> FieldError:
    return FieldError(path, "FieldValueNotFound", f"Not found: {show(value)}")


def unsupported(path: str, value: Any, supported: Iterable[Any]) -> FieldError:
    listed = ", ".join(show(item) for item in supported)
    return FieldError(
        path,
        "FieldValueNotSupported",
        f"Unsupported value: {show(value)}: supported values: {listed}",
    )


def too_long(path: str, limit: int) -> FieldError:
    return FieldError(path, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes")


def too_many(path: str, given: int, limit: int) -> FieldError:
    return FieldError(
        path, "FieldValueTooMany", f"Too many: {given}: must have at most {limit} items"
    )


def join(path: str, name: str) -> str:
    """The path of a member: `spec.replicas`, `metadata.annotations[a/b]`-style for odd keys."""
    return f"{path}.{name}" if path else name


def at_index(path: str, index: int) -> str:
    return f"{path}[{index}]"


def at_key(path: str, key: str) -> str:
    return f"{path}[{key}]"
