"""A local, always fresh copy of one resource: list once, then watch.

In: a resource type, optional namespace and selectors. Out: `get`, `items`, `by_index` on plain
dicts, and calls to handlers on each change. The dicts are shared: never change them, copy first.

Promises: handlers see every object's latest state at least once, in order, on the event loop, and
never after `close`; a relist turns into the difference to what was known (so a deletion missed
during a disconnect is still reported); 410 leads to a relist; errors to a growing, jittered pause.
"""

import asyncio
from collections.abc import Callable, Iterable, ValuesView
from typing import Any, Final

import structlog

from localkube.client.api import ApiClient
from localkube.client.errors import ApiConnectionError, ApiStatusError
from localkube.client.resources import ResourceType
from localkube.kit.clock import monotonic
from localkube.kit.tasks import Tasks, backoff

Object = dict[str, Any]
Handler = Callable[[Object | None, Object | None], None]
"""(old, new): old is None for an added object, new is None for a deleted one."""
IndexFunction = Callable[[Object], Iterable[str]]

_PAGE: Final = 500  # objects per list request
_SHORT_WATCH: Final = 1.0  # seconds; no healthy watch is this short


def object_key(obj: Object) -> str:
    """`namespace/name`, or `name` for cluster-scoped objects: the key in every Informer."""
    meta = obj["metadata"]
    namespace = meta.get("namespace")
    return f"{namespace}/{meta['name']}" if namespace else str(meta["name"])


class Informer:
    """See the module's docstring. `start` it, `wait_synced`, and `close` it."""

    def __init__(
        self,
        client: ApiClient,
        resource: ResourceType,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> None:
        self.resource = resource
        self._client = client
        self._namespace = namespace
        self._selectors = {"label_selector": label_selector, "field_selector": field_selector}
        self._objects: dict[str, Object] = {}
        self._handlers: list[Handler] = []
        self._index_functions: dict[str, IndexFunction] = {}
        self._indexes: dict[str, dict[str, dict[str, Object]]] = {}
        self._synced = asyncio.Event()
        self._seen = 0  # the newest resourceVersion that the list or watch has told
        self._tasks = Tasks(f"informer {resource.plural}")
        self._log = structlog.get_logger("localkube.informer").bind(resource=resource.plural)

    # -- reading -----------------------------------------------------------------------------

    def get(self, name: str, namespace: str | None = None) -> Object | None:
        """The object as last seen, or None."""
        return self._objects.get(f"{namespace}/{name}" if namespace else name)

    def by_key(self, key: str) -> Object | None:
        """The object of an `object_key`, or None."""
        return self._objects.get(key)

    def items(self) -> ValuesView[Object]:
        """All objects."""
        return self._objects.values()

    def keys(self) -> list[str]:
        """The keys of all objects."""
        return list(self._objects)

    def by_index(self, index: str, value: str) -> list[Object]:
        """The objects for which the index's function yielded `value`."""
        return list(self._indexes[index].get(value, {}).values())

    def offer(self, obj: Object) -> None:
        """Take over the answer to a write of ours, without waiting for the watch to tell it.

        Ignored if the watch has already passed that write: the object may be gone again.
        """
        try:
            version = int(obj["metadata"]["resourceVersion"])
        except (KeyError, ValueError):
            return  # not comparable; the watch will tell
        known = self._objects.get(object_key(obj))
        if version <= self._seen or (known is not None and version <= int(_version(known))):
            return
        self._apply(object_key(obj), obj)

    # -- set-up ------------------------------------------------------------------------------

    def on_change(self, handler: Handler) -> None:
        """Call `handler(old, new)` on every change from now on (at once for known objects)."""
        self._handlers.append(handler)
        for obj in list(self._objects.values()):
            handler(None, obj)

    def add_index(self, index: str, function: IndexFunction) -> None:
        """Keep the objects findable by each value that `function(object)` yields."""
        self._index_functions[index] = function
        self._indexes[index] = {}
        for key, obj in self._objects.items():
            self._index(key, None, obj)

    def start(self) -> None:
        """Begin to list and watch in the background."""
        self._tasks.spawn(f"watch {self.resource.plural}", self._run, restart=True)

    @property
    def synced(self) -> bool:
        """Whether the first list is complete."""
        return self._synced.is_set()

    async def wait_synced(self, timeout: float | None = None) -> None:
        """Return once the first list is complete. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            await self._synced.wait()

    async def close(self) -> None:
        """Stop watching; the copy stays readable."""
        await self._tasks.close()

    # -- the loop ----------------------------------------------------------------------------

    async def _run(self) -> None:
        version = ""
        failures = 0
        while True:
            try:
                if not version:
                    version = await self._relist()
                began = monotonic()
                async for event in self._client.watch(
                    self.resource, self._namespace, resource_version=version, **self._selectors
                ):
                    version = event.object["metadata"]["resourceVersion"]
                    self._saw(version)
                    failures = 0
                    if event.type == "BOOKMARK":
                        continue
                    self._told(event.type, event.object)
                if monotonic() - began < _SHORT_WATCH:
                    # A server that ends watches at once (it is shutting down) must not be hammered.
                    await asyncio.sleep(backoff(failures))
                    failures += 1
            except ApiStatusError as error:
                version = ""
                if not error.gone:
                    # A resource that is not served (yet) is an ordinary state, not news.
                    if not error.not_found:
                        self._log.warning("list or watch refused", error=str(error))
                    await asyncio.sleep(backoff(failures))
                    failures += 1
            except ApiConnectionError as error:
                self._log.info("connection lost, will resume", error=str(error))
                await asyncio.sleep(backoff(failures))
                failures += 1

    async def _relist(self) -> str:
        found: dict[str, Object] = {}
        token: str | None = None
        while True:
            page = await self._client.list(
                self.resource,
                self._namespace,
                limit=_PAGE,
                continue_token=token,
                **self._selectors,
            )
            for obj in page.get("items") or []:
                # List items carry no type; every reader of a single object expects one.
                obj.setdefault("apiVersion", self.resource.api_version)
                obj.setdefault("kind", self.resource.kind)
                found[object_key(obj)] = obj
            token = page["metadata"].get("continue")
            if not token:
                break
        for key in [key for key in self._objects if key not in found]:
            self._apply(key, None)
        for key, obj in found.items():
            known = self._objects.get(key)
            if known is None or _version(known) != _version(obj):
                self._apply(key, obj)
        version = str(page["metadata"]["resourceVersion"])
        self._saw(version)
        self._synced.set()
        return version

    def _saw(self, version: str) -> None:
        if version.isdigit():
            self._seen = max(self._seen, int(version))

    def _told(self, kind: str, obj: Object) -> None:
        """One event of the watch; skipped if `offer` brought a newer state of that object.

        The write that takes the last finalizer off is the deletion: its answer, offered, has the
        version of the DELETED event, which must not be skipped.
        """
        key, gone = object_key(obj), kind == "DELETED"
        known, version = self._objects.get(key), _version(obj)
        if known is not None and version.isdigit():
            newer = int(_version(known)) - int(version)
            if newer > 0 or (newer == 0 and not gone):
                return
        self._apply(key, None if gone else obj)

    def _apply(self, key: str, new: Object | None) -> None:
        old = self._objects.get(key)
        if new is None:
            if old is None:
                return
            del self._objects[key]
        else:
            self._objects[key] = new
        self._index(key, old, new)
        if old is not None and new is not None and _uid(old) != _uid(new):
            # Deleted and created anew under the same name while we were away: two changes.
            self._notify(old, None)
            old = None
        self._notify(old, new)

    def _index(self, key: str, old: Object | None, new: Object | None) -> None:
        for name, function in self._index_functions.items():
            index = self._indexes[name]
            for value in function(old) if old is not None else ():
                bucket = index.get(value)
                if bucket is not None:
                    bucket.pop(key, None)
                    if not bucket:
                        del index[value]
            for value in function(new) if new is not None else ():
                index.setdefault(value, {})[key] = new  # type: ignore[assignment]

    def _notify(self, old: Object | None, new: Object | None) -> None:
        for handler in self._handlers:
            try:
                handler(old, new)
            except Exception:  # noqa: BLE001 - one handler must not stop the others, or the watch
                self._log.exception("handler failed")


def _version(obj: Object) -> str:
    return str(obj["metadata"].get("resourceVersion"))


def _uid(obj: Object) -> str | None:
    uid: str | None = obj["metadata"].get("uid")
    return uid
