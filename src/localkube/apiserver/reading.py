"""Get and list, in every representation that clients ask for.

In: a `Call`. Out: responses. A plain JSON list is the stored bytes joined, so that its cost is
that of copying. A limited list is consistent: its continue token names the revision at which it
began, and later pages are rebuilt as of then, or refused with 410 when that is too long ago.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from localkube.apiserver import errors, tables
from localkube.apiserver.context import Call
from localkube.apiserver.errors import ApiError
from localkube.apiserver.resources import Resource
from localkube.apiserver.responses import JSON, Representation, encode, respond
from localkube.apiserver.selectors import accept_all, build_predicate
from localkube.apiserver.store import ExpiredError, Stored
from localkube.apiserver.versions import from_storage

JsonObject = dict[str, Any]

_TOKEN_FORMAT = "localkube/v1"  # noqa: S105 - a format's name, not a secret


def get_object(call: Call) -> web.Response:
    """Answer GET of one object."""
    resource = call.resource
    stored = call.server.store.get(resource.storage, call.namespace, call.name)
    if stored is None:
        raise errors.not_found(resource.plural, call.name, resource.group)
    wanted = call.representation()
    if not wanted.form and wanted.media_type == JSON and served_as_stored(resource, stored):
        return respond(stored.data)
    obj = from_storage(resource, stored.object)
    return respond_object(call, obj, wanted=wanted)


def served_as_stored(resource: Resource, stored: Stored) -> bool:
    """Tell whether the stored bytes are already in the served version."""
    return bool(stored.object.get("apiVersion") == resource.api_version)


def respond_object(
    call: Call, obj: JsonObject, status: int = 200, *, wanted: Representation | None = None
) -> web.Response:
    """Return one object in the representation that the client wants."""
    wanted = wanted or call.representation()
    body: Any = obj
    if wanted.form == "Table":
        body = tables.build_table(
            call.resource,
            [obj],
            now=call.server.now(),
            include_object=call.option("includeObject"),
        )
        body["metadata"]["resourceVersion"] = obj["metadata"].get("resourceVersion", "")
    elif wanted.form:
        body = partial_metadata(obj)
    return respond(
        encode(body, wanted), status, content_type=wanted.media_type, warnings=call.warnings
    )


def partial_metadata(obj: JsonObject) -> JsonObject:
    """Return the PartialObjectMetadata of an object."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }


@dataclass(frozen=True, slots=True)
class _Page:
    """One list's objects and its ListMeta."""

    items: Sequence[Stored]
    revision: int
    next_token: str = ""
    remaining: int | None = None

    def metadata(self) -> JsonObject:
        metadata: JsonObject = {"resourceVersion": str(self.revision)}
        if self.next_token:
            metadata["continue"] = self.next_token
        if self.remaining is not None:
            metadata["remainingItemCount"] = self.remaining
        return metadata


def list_objects(call: Call) -> web.Response:
    """Answer GET of a collection."""
    wanted = call.representation()
    page = _select(call)
    resource = call.resource
    plain = not wanted.form and wanted.media_type == JSON
    if plain and all(served_as_stored(resource, one) for one in page.items):
        return respond(_join(resource, page))
    objects = [from_storage(resource, stored.object) for stored in page.items]
    if wanted.form == "Table":
        body = tables.build_table(
            resource,
            objects,
            now=call.server.now(),
            include_object=call.option("includeObject"),
        )
        body["metadata"] = page.metadata()
    elif wanted.form:
        body = {
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": page.metadata(),
            "items": [partial_metadata(obj) for obj in objects],
        }
    else:
        body = {
            "kind": resource.list_kind,
            "apiVersion": resource.api_version,
            "metadata": page.metadata(),
            "items": objects,
        }
    return respond(encode(body, wanted), content_type=wanted.media_type, warnings=call.warnings)


def _join(resource: Resource, page: _Page) -> bytes:
    head = msgspec.json.encode(
        {
            "kind": resource.list_kind,
            "apiVersion": resource.api_version,
            "metadata": page.metadata(),
        }
    )
    return b"".join((head[:-1], b',"items":[', b",".join([one.data for one in page.items]), b"]}"))


def _select(call: Call) -> _Page:
    resource, store = call.resource, call.server.store
    predicate = build_predicate(
        call.option("labelSelector"), call.option("fieldSelector"), resource
    )
    namespace = call.info.namespace or None if resource.namespaced else None
    token, limit = call.option("continue"), _limit(call.option("limit"))
    start: tuple[str, str] | None = None
    if token:
        revision, start = _read_token(call, token)
    else:
        revision = _asked_revision(call, store.revision)
    try:
        found: Sequence[Stored] = store.list_at(resource.storage, namespace, revision)
    except ExpiredError:
        raise _expired(store.revision, start) from None
    if start is not None:
        found = [one for one in found if (one.namespace, one.name) > start]
    if predicate is not accept_all:
        found = [one for one in found if predicate(one.object)]
    if not limit or len(found) <= limit:
        return _Page(found, revision)
    items = found[:limit]
    last = (items[-1].namespace, items[-1].name)
    remaining = len(found) - limit if predicate is accept_all else None
    return _Page(items, revision, _make_token(revision, last), remaining)


def _limit(text: str) -> int:
    try:
        return max(int(text or 0), 0)
    except ValueError:
        raise errors.bad_request(f'limit: "{text}" is not a whole number') from None


def parse_revision(text: str) -> int:
    """Parse a resourceVersion parameter; "" is 0. Raises ApiError 400."""
    try:
        revision = int(text or 0)
    except ValueError:
        revision = -1
    if revision < 0:
        raise errors.bad_request(f'Invalid value: "{text}": resourceVersion is not a number')
    return revision


def _asked_revision(call: Call, current: int) -> int:
    asked, match = call.option("resourceVersion"), call.option("resourceVersionMatch")
    revision = parse_revision(asked)
    if match and not asked:
        raise invalid_list_options(
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        )
    if match not in ("", "Exact", "NotOlderThan"):
        raise invalid_list_options(
            "resourceVersionMatch",
            f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""',
        )
    if match == "Exact" and revision == 0:
        raise invalid_list_options(
            "resourceVersionMatch",
            'Forbidden: resourceVersionMatch "Exact" is forbidden for resourceVersion "0"',
        )
    if revision > current:
        raise errors.resource_version_too_large(revision, current)
    # A limited list at a given version without a match means exactly that version.
    if match == "Exact" or (not match and revision and call.option("limit")):
        return revision
    return current


def invalid_list_options(field: str, why: str) -> ApiError:
    """Return the 422 for ListOptions that contradict each other."""
    cause = errors.FieldError(field, "FieldValueForbidden", why)
    return errors.invalid("ListOptions", "", [cause], "meta.k8s.io")


def _make_token(revision: int, last: tuple[str, str]) -> str:
    payload = {"v": _TOKEN_FORMAT, "rv": revision, "start": last}
    return base64.urlsafe_b64encode(msgspec.json.encode(payload)).decode().rstrip("=")


def _read_token(call: Call, token: str) -> tuple[int, tuple[str, str]]:
    if call.option("resourceVersion") not in ("", "0"):
        raise errors.bad_request("specifying resource version is not allowed when using continue")
    try:
        payload = msgspec.json.decode(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if payload["v"] != _TOKEN_FORMAT:
            raise ValueError(payload["v"])
        revision, (namespace, name) = int(payload["rv"]), payload["start"]
    except (binascii.Error, msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
        raise errors.bad_request(f"continue key is not valid: {error}") from None
    # Tokens of an expired list carry 0: the rest is read as it is now.
    return revision or call.server.store.revision, (str(namespace), str(name))


def _expired(current: int, start: tuple[str, str] | None) -> ApiError:
    if start is None:
        return errors.gone("The resourceVersion for the provided list is too old.")
    error = errors.gone(
        "The provided continue parameter is too old to display a consistent list result. You can "
        "start a new list without the continue parameter, or use the continue token in this "
        "response to retrieve the remainder of the results. Continuing with the provided token "
        f"results in an inconsistent list (the state is at {current})."
    )
    error.list_metadata = {"continue": _make_token(0, start)}
    return error
