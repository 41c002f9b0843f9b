"""Watch: streaming the changes of a collection.

In: a `Call` with the watch parameters. Out: a response of one JSON event per line. Each watcher is
a position in the store's window of changes, so a slow client costs nothing: when it falls out of
the window it gets an ERROR event with 410 and the stream ends, and it lists again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from localkube.apiserver import errors, tables
from localkube.apiserver.context import Call
from localkube.apiserver.errors import ApiError
from localkube.apiserver.reading import (
    invalid_list_options,
    parse_revision,
    partial_metadata,
    served_as_stored,
)
from localkube.apiserver.responses import JSON, Representation
from localkube.apiserver.selectors import Predicate, build_predicate
from localkube.apiserver.store import Change, ExpiredError, Stored, Subscription
from localkube.apiserver.versions import from_storage

JsonObject = dict[str, Any]

# kube-apiserver's own numbers: watches end after 30 to 60 minutes, bookmarks come each minute.
_MIN_TIMEOUT_S = 1800.0
_BOOKMARK_S = 60.0
# A client that reads nothing for this long is dropped.
_WRITE_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Events:
    """Renders changes as this watcher wants them."""

    call: Call
    wanted: Representation
    predicate: Predicate
    namespace: str | None
    columns_sent: bool = False

    def accepts(self, stored: Stored) -> bool:
        if self.namespace is not None and stored.namespace != self.namespace:
            return False
        return self.predicate(stored.object)

    def render(self, change: Change) -> bytes | None:
        """Return the event's line, None if this watcher does not see the change."""
        seen = change.type != "DELETED" and self.accepts(change.current)
        had = change.previous is not None and self.accepts(change.previous)
        if seen:
            return self.line("MODIFIED" if had else "ADDED", change.current)
        if not had:
            return None
        if change.type == "DELETED":
            return self.line("DELETED", change.current)
        # The object left the selector: its last state that matched, at the change's revision.
        assert change.previous is not None
        old = change.previous.object
        metadata = {**old["metadata"], "resourceVersion": str(change.revision)}
        obj = {**old, "metadata": metadata}
        data = msgspec.json.encode(obj)
        previous = change.previous
        left = Stored(previous.namespace, previous.name, change.revision, obj, data)
        return self.line("DELETED", left)

    def line(self, kind: str, stored: Stored) -> bytes:
        if not self.wanted.form and served_as_stored(self.call.resource, stored):
            return b'{"type":"%b","object":%b}\n' % (kind.encode(), stored.data)
        obj = from_storage(self.call.resource, stored.object)
        return _encode_line(kind, self._shape(obj))

    def _shape(self, obj: JsonObject) -> JsonObject:
        if self.wanted.form == "Table":
            call = self.call
            table = tables.build_table(
                call.resource,
                [obj],
                now=call.server.now(),
                include_object=call.option("includeObject"),
                headers=not self.columns_sent,
            )
            self.columns_sent = True
            table["metadata"]["resourceVersion"] = obj["metadata"]["resourceVersion"]
            return table
        return partial_metadata(obj) if self.wanted.form else obj

    def bookmark(self, revision: int, *, initial_end: bool = False) -> bytes:
        """Return a BOOKMARK event: nothing up to `revision` was missed."""
        resource = self.call.resource
        metadata: JsonObject = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        kind, version = resource.kind, resource.api_version
        if self.wanted.form == "Table":
            table = tables.build_table(resource, [], now=self.call.server.now(), headers=False)
            table["metadata"] = {"resourceVersion": str(revision)}
            # Clients read the annotation of a Table bookmark from its only row's object.
            partial = partial_metadata({"metadata": metadata})
            table["rows"] = [{"cells": [], "object": partial}]
            return _encode_line("BOOKMARK", table)
        if self.wanted.form:
            kind, version = "PartialObjectMetadata", "meta.k8s.io/v1"
        return _encode_line("BOOKMARK", {"kind": kind, "apiVersion": version, "metadata": metadata})


def _encode_line(kind: str, obj: JsonObject) -> bytes:
    return msgspec.json.encode({"type": kind, "object": obj}) + b"\n"


def error_line(error: ApiError) -> bytes:
    """Return the ERROR event that ends a watch."""
    return _encode_line("ERROR", error.status())


@dataclass(slots=True)
class _Start:
    """Where a watch begins: with the current objects or not, and after which revision."""

    initial: bool
    announce_end: bool
    revision: int


def _start(call: Call) -> _Start:
    current = call.server.store.revision
    asked = call.option("resourceVersion")
    revision = parse_revision(asked)
    send_initial = call.option("sendInitialEvents")
    match = call.option("resourceVersionMatch")
    if send_initial:
        if match != "NotOlderThan":
            raise invalid_list_options(
                "resourceVersionMatch",
                "Forbidden: sendInitialEvents requires setting resourceVersionMatch to "
                "NotOlderThan",
            )
        if revision > current:
            raise errors.resource_version_too_large(revision, current)
        if call.flag("sendInitialEvents"):
            return _Start(True, call.flag("allowWatchBookmarks"), current)
        return _Start(False, False, revision or current)
    if match:
        raise invalid_list_options(
            "resourceVersionMatch",
            "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is "
            "provided",
        )
    if revision > current:
        raise errors.resource_version_too_large(revision, current)
    if revision == 0:
        return _Start(True, False, current)
    return _Start(False, False, revision)


def _timeout_s(call: Call) -> float:
    text = call.option("timeoutSeconds")
    try:
        seconds = float(text or 0)
    except ValueError:
        raise errors.bad_request(f'timeoutSeconds: "{text}" is not a number') from None
    # Spread, so that the watches of a client do not all end together.
    return seconds if seconds > 0 else _MIN_TIMEOUT_S * (1 + random.random())  # noqa: S311


async def watch_objects(call: Call) -> web.StreamResponse:
    """Answer a watch; returns when it times out, the client leaves, or the server closes."""
    resource, store = call.resource, call.server.store
    predicate = build_predicate(
        call.option("labelSelector"), call.option("fieldSelector"), resource
    )
    wanted = call.representation()
    namespace = (call.info.namespace or None) if resource.namespaced else None
    events = _Events(call, wanted, predicate, namespace)
    start, timeout_s = _start(call), _timeout_s(call)
    wake = asyncio.Event()
    expired: ApiError | None = None
    subscription: Subscription | None = None
    initial: Iterator[Stored] = iter(())
    try:
        subscription = store.subscribe(resource.storage, start.revision, wake.set)
    except ExpiredError as error:
        expired = _too_old(start.revision, error.oldest)
    else:
        if start.initial:
            initial = iter(store.list(resource.storage, namespace))
    response = web.StreamResponse(
        headers={"Content-Type": JSON, "Cache-Control": "no-cache, private"}
    )
    call.server.wake_on_close.add(wake.set)
    try:
        await response.prepare(call.request)
        if subscription is None:
            assert expired is not None
            await _send(response, error_line(expired))
            return response
        await _send_initial(response, events, initial, start)
        await _follow(call, response, events, subscription, wake, timeout_s)
    except (ConnectionError, TimeoutError):
        pass  # the client has left or does not read
    finally:
        call.server.wake_on_close.discard(wake.set)
        if subscription is not None:
            subscription.close()
    return response


async def _send_initial(
    response: web.StreamResponse, events: _Events, initial: Iterator[Stored], start: _Start
) -> None:
    lines: list[bytes] = []
    for stored in initial:
        if events.predicate(stored.object):
            lines.append(events.line("ADDED", stored))
        if len(lines) >= 256:
            await _send(response, b"".join(lines))
            lines.clear()
    if start.announce_end:
        lines.append(events.bookmark(start.revision, initial_end=True))
    if lines:
        await _send(response, b"".join(lines))


async def _follow(
    call: Call,
    response: web.StreamResponse,
    events: _Events,
    subscription: Subscription,
    wake: asyncio.Event,
    timeout_s: float,
) -> None:
    loop, store = asyncio.get_running_loop(), call.server.store
    deadline = loop.time() + timeout_s
    bookmarks = call.flag("allowWatchBookmarks")
    next_bookmark = loop.time() + _BOOKMARK_S
    while True:
        wake.clear()
        revision = store.revision
        try:
            changes = subscription.take()
        except ExpiredError as error:
            await _send(response, error_line(_too_old(error.oldest, error.oldest)))
            return
        if changes:
            rendered = [line for change in changes if (line := events.render(change))]
            if rendered:
                await _send(response, b"".join(rendered))
            continue
        now = loop.time()
        ending = now >= deadline or call.server.closing.is_set() or not _still_served(call)
        if bookmarks and (ending or now >= next_bookmark):
            await _send(response, events.bookmark(revision))
            next_bookmark = now + _BOOKMARK_S
        if ending:
            return
        pause = min(deadline, next_bookmark if bookmarks else deadline) - now
        handle = loop.call_later(max(pause, 0.001), wake.set)
        try:
            await wake.wait()
        finally:
            handle.cancel()


def _still_served(call: Call) -> bool:
    resource = call.resource
    table = call.server.table
    return table.lookup(resource.group, resource.version, resource.plural) is not None


async def _send(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(_WRITE_TIMEOUT_S):
        await response.write(data)


def _too_old(asked: int, oldest: int) -> ApiError:
    return errors.gone(f"too old resource version: {asked} ({oldest})")
