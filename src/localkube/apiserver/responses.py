"""Responses: which representation the client wants, and writing it.

In: the Accept header; objects and their JSON. Out: aiohttp responses. JSON and YAML are made;
clients that prefer protobuf list JSON second and get it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from localkube.apiserver.errors import ApiError, not_acceptable

JSON = "application/json"
YAML = "application/yaml"
META_GROUP = "meta.k8s.io"
_FORMS = frozenset({"Table", "PartialObjectMetadata", "PartialObjectMetadataList"})


@dataclass(frozen=True, slots=True)
class Representation:
    """What the client wants: a media type, and the object itself ("") or a form of it."""

    media_type: str = JSON
    form: str = ""


def negotiate(accept: str) -> Representation:
    """Return the first representation in the Accept header that can be made.

    Raises ApiError 406 if there is none.
    """
    if not accept or accept == "*/*":
        return Representation()
    for clause in accept.split(","):
        media_type, _, rest = clause.strip().partition(";")
        parameters = dict(
            part.strip().partition("=")[::2] for part in rest.split(";") if "=" in part
        )
        media_type = media_type.strip().lower()
        form = parameters.get("as", "")
        if form and not (form in _FORMS and parameters.get("g") == META_GROUP):
            continue
        if form and parameters.get("v") not in ("v1", None):
            continue
        if media_type in (JSON, "application/*", "*/*"):
            return Representation(JSON, form)
        if media_type in (YAML, "text/yaml"):
            return Representation(YAML, form)
    raise not_acceptable((JSON, YAML))


def encode(value: Any, representation: Representation) -> bytes:
    """Return the value in the representation's media type."""
    if representation.media_type == YAML:
        import yaml

        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()
    return msgspec.json.encode(value)


def warning_headers(warnings: Iterable[str]) -> list[tuple[str, str]]:
    """Return one Warning header for each text (RFC 7234, code 299)."""
    headers: list[tuple[str, str]] = []
    for text in dict.fromkeys(warnings):
        flat = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
        headers.append(("Warning", f'299 - "{flat}"'))
    return headers


def respond(
    body: bytes,
    status: int = 200,
    *,
    content_type: str = JSON,
    warnings: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return a response of these bytes."""
    response = web.Response(body=body, status=status, headers=headers)
    response.headers["Content-Type"] = content_type
    response.headers["Cache-Control"] = "no-cache, private"
    for name, value in warning_headers(warnings):
        response.headers.add(name, value)
    return response


def respond_error(error: ApiError, warnings: Sequence[str] = ()) -> web.Response:
    """Return the error as a Status."""
    headers: dict[str, str] = {}
    if error.details and (seconds := error.details.get("retryAfterSeconds")):
        headers["Retry-After"] = str(seconds)
    return respond(
        msgspec.json.encode(error.status()), error.code, warnings=warnings, headers=headers
    )
