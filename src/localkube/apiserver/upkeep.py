"""Background work of the API server itself: old Events go, and deleted CRDs take their objects.

In: the server. Out: coroutines to be run as background tasks. Both sleep until there is something
to do, so an idle server uses no processor time for them.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import structlog

from localkube.apiserver.context import Server
from localkube.apiserver.deletion import CRD_FINALIZER, mark_deleted
from localkube.apiserver.resources import Resource
from localkube.apiserver.store import MissingError, StaleError, StorageFullError, Stored
from localkube.apiserver.writing import is_finished
from localkube.kit import clock

JsonObject = dict[str, Any]

_log = structlog.get_logger("localkube.apiserver.upkeep")
_CRDS = "customresourcedefinitions.apiextensions.k8s.io"
# Objects of a deleted CRD may wait for their finalizers; look again this often.
_CLEANUP_RETRY_S = 1.0
_EXPIRY_PERIOD_S = 60.0
# Deleting is done in slices, so that requests are answered in between.
_SLICE = 64
_CLEANUP_SLICE = 500


def _event_time(event: JsonObject) -> datetime | None:
    series = event.get("series") or {}
    for text in (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    ):
        if isinstance(text, str) and text:
            try:
                return clock.parse_time(text)
            except ValueError:
                continue
    return None


def expire_events(server: Server, ttl_s: float) -> int:
    """Delete Events whose last occurrence is older than `ttl_s`; return how many went."""
    oldest = server.now() - timedelta(seconds=ttl_s)
    gone = 0
    for stored in server.store.list("events"):
        moment = _event_time(stored.object)
        if moment is not None and moment < oldest:
            server.store.delete("events", stored.namespace, stored.name)
            gone += 1
            if gone >= _SLICE:
                break
    return gone


async def run_event_expiry(server: Server, ttl_s: float) -> None:
    """Expire Events once a minute, until cancelled."""
    while True:
        try:
            gone = expire_events(server, ttl_s)
        except StorageFullError as error:
            _log.warning("events cannot be expired", reason=str(error))
            gone = 0
        await asyncio.sleep(0 if gone >= _SLICE else _EXPIRY_PERIOD_S)


async def run_crd_cleanup(server: Server) -> None:
    """Delete the objects of CRDs that are being deleted, then let the CRDs go; until cancelled."""
    wake = asyncio.Event()
    wake.set()
    subscription = server.store.subscribe(_CRDS, server.store.revision, wake.set)
    try:
        while True:
            await wake.wait()
            wake.clear()
            try:
                pending = [
                    stored
                    for stored in server.store.list(_CRDS)
                    if not clean_up_crd(server, stored)
                ]
            except StorageFullError as error:
                _log.warning("a deleted CRD cannot be cleaned up", reason=str(error))
                pending = server.store.list(_CRDS)
            if pending:
                asyncio.get_running_loop().call_later(_CLEANUP_RETRY_S, wake.set)
    finally:
        subscription.close()


def clean_up_crd(server: Server, stored: Stored) -> bool:
    """Delete what a terminating CRD's objects are; return False while some are left."""
    crd, store = stored.object, server.store
    metadata = crd["metadata"]
    finalizers = metadata.get("finalizers") or []
    if not metadata.get("deletionTimestamp") or CRD_FINALIZER not in finalizers:
        return True
    spec = crd["spec"]
    storage = f"{spec['names']['plural']}.{spec['group']}"
    served = server.table.versions(spec["group"], spec["names"]["plural"])
    # Without a served version the shape still suffices to delete what is stored.
    resource = served[0] if served else Resource(spec["group"], "", spec["names"]["plural"], "")
    for one in store.list(storage)[:_CLEANUP_SLICE]:
        marked = mark_deleted(server, resource, one.object, {})
        place = (storage, one.namespace, one.name)
        try:
            if is_finished(resource, marked):
                store.delete(*place, one.revision, marked)
            elif marked != one.object:
                store.update(*place, marked, one.revision)
        except (StaleError, MissingError):
            continue
    if store.list(storage):
        return False
    remaining = [one for one in finalizers if one != CRD_FINALIZER]
    final = {**crd, "metadata": {**metadata, "finalizers": remaining}}
    if remaining:
        store.update(_CRDS, "", stored.name, final, stored.revision)
    else:
        del final["metadata"]["finalizers"]
        store.delete(_CRDS, "", stored.name, stored.revision, final)
    return True
