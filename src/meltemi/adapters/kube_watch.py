"""Keep a copy of one kind of objects level with a Kubernetes API server.

In: a ``Connection`` and a collection. Out: ``Sink.replaced`` once per list, then ``changed`` and ``deleted``.
Promises: resumes from the last resourceVersion (bookmarks included); lists anew after 410 Gone; survives a
server that is down, at start or later, with growing, jittered pauses, and keeps what it knew; a kind that the
server does not have (a CRD not installed yet) counts as empty and is watched when it appears; an object that
cannot be decoded is reported and skipped, and never stops the others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
import msgspec
import structlog

from meltemi.adapters.kube_connection import Connection
from meltemi.kit.backoff import Backoff
from meltemi.model import kubernetes

T = TypeVar("T")
InT = TypeVar("InT", contravariant=True)
ObjectKey = tuple[str, str]  # (namespace, name)

PAGE = 500
WATCH_S = 300  # the server ends a watch about then; half of it is jitter, so that watches do not end together
READ_S = WATCH_S + 60.0  # silence beyond this means that the connection is dead
LINE_MAX = 32 * 1024 * 1024
ABSENT_S = 10.0  # how often to look for a kind that the server does not have, unless told that CRDs changed


class WatchError(Exception):
    """A list or watch ended badly. ``code`` is the HTTP status, 0 when the server could not be reached."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Sink(Protocol[InT]):
    """Who wants to know. Methods return at once and do not fail on odd objects."""

    def replaced(self, objects: Mapping[ObjectKey, InT]) -> None:
        """These are all objects now."""

    def changed(self, key: ObjectKey, value: InT) -> None:
        """One object is new or different."""

    def deleted(self, key: ObjectKey) -> None:
        """One object is gone."""


class _Keyed(msgspec.Struct, frozen=True, gc=False):
    metadata: kubernetes.ObjectMeta = kubernetes.ObjectMeta()


class _Status(msgspec.Struct, frozen=True, gc=False):
    code: int = 0
    message: str = ""


_key_decoder = msgspec.json.Decoder(_Keyed, strict=False)
_status_decoder = msgspec.json.Decoder(_Status, strict=False)


@dataclass(frozen=True, slots=True)
class Collection:
    """What to watch: the URL path of a collection, and how to narrow it."""

    path: str
    label_selector: str = ""
    field_selector: str = ""

    def params(self) -> dict[str, str]:
        """Query parameters of the selectors."""
        wanted = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {name: value for name, value in wanted.items() if value}


class WatchSession:
    """Lists and streams from one API server, over one pool of connections."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> WatchSession:
        context = self._connection.ssl_context()
        connector = aiohttp.TCPConnector(ssl=context if context is not None else True, limit=0)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def _get(self, path: str, params: Mapping[str, str], timeout: aiohttp.ClientTimeout) -> Any:
        assert self._session is not None, "use WatchSession as an async context manager"
        headers = {"Accept": "application/json", "User-Agent": "istiod"}
        if token := self._connection.bearer():
            headers["Authorization"] = f"Bearer {token}"
        return self._session.get(
            self._connection.server + path,
            params=params,
            headers=headers,
            timeout=timeout,
            server_hostname=self._connection.server_name or None,
        )

    async def list_page(self, path: str, params: Mapping[str, str]) -> kubernetes.RawList:
        """One page of a collection. Raises WatchError."""
        timeout = aiohttp.ClientTimeout(total=60, sock_connect=10)
        try:
            async with self._get(path, params, timeout) as answer:
                raw = await answer.read()
                if answer.status >= 400:
                    raise WatchError(answer.status, _message(raw))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise WatchError(0, f"{type(error).__name__}: {error}") from error
        try:
            return kubernetes.decode_list(raw)
        except msgspec.MsgspecError as error:
            raise WatchError(0, f"the answer to a list cannot be read: {error}") from error

    async def lines(self, path: str, params: Mapping[str, str]) -> AsyncIterator[bytes]:
        """Lines of a watch until the server ends it. Raises WatchError."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=READ_S)
        try:
            async with self._get(path, params, timeout) as answer:
                if answer.status >= 400:
                    raise WatchError(answer.status, _message(await answer.read()))
                rest = bytearray()
                async for chunk in answer.content.iter_any():
                    rest += chunk
                    if b"\n" not in chunk:
                        if len(rest) > LINE_MAX:
                            raise WatchError(0, f"an object of more than {LINE_MAX} bytes")
                        continue
                    *whole, tail = bytes(rest).split(b"\n")
                    rest = bytearray(tail)
                    for line in whole:
                        if line.strip():
                            yield line
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise WatchError(0, f"{type(error).__name__}: {error}") from error


class Watcher(Generic[T]):
    """Runs until cancelled. ``synced`` is set after the first list (or the first sight of an absent kind)."""

    def __init__(
        self,
        session: WatchSession,
        collection: Collection,
        decode: Callable[[msgspec.Raw], T | None],
        sink: Sink[T],
        *,
        appeared: asyncio.Event | None = None,
    ) -> None:
        """``appeared`` is set by whoever sees CRDs change: an absent kind is then looked for at once."""
        self._session = session
        self._collection = collection
        self._decode = decode
        self._sink = sink
        self._appeared = appeared or asyncio.Event()
        self._log = structlog.get_logger("kube").bind(path=collection.path)
        self._version = ""
        self._backoff = Backoff(0.1, 30.0)
        self.path = collection.path
        self.synced = asyncio.Event()
        self.absent = False
        self.failures = 0

    async def run(self) -> None:
        """List, watch, and so on."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except WatchError as error:
                await self._recover(error)

    async def _recover(self, error: WatchError) -> None:
        self.failures += 1
        if error.code == 410:
            self._log.info("watch too old, listing anew")
            self._version = ""
            return
        if error.code == 404:
            if not self.absent:
                self._log.info("the API server does not have this kind yet")
                self.absent = True
                self._sink.replaced({})
            self._version = ""
            self.synced.set()
            self._appeared.clear()
            try:
                # A CRD is announced a moment before it is served, so look once more shortly after.
                await asyncio.wait_for(self._appeared.wait(), ABSENT_S)
                await asyncio.sleep(0.05 + 0.1 * random.random())  # noqa: S311 - jitter
            except TimeoutError:
                pass
            return
        pause = self._backoff.next()
        self._log.warning(
            "watch failed", code=error.code, error=str(error), retry_s=round(pause, 2)
        )
        await asyncio.sleep(pause)

    async def _list(self) -> None:
        params = {**self._collection.params(), "limit": str(PAGE)}
        objects: dict[ObjectKey, T] = {}
        while True:
            page = await self._session.list_page(self._collection.path, params)
            for raw in page.items or ():
                if (found := self._read(raw)) is not None and found[1] is not None:
                    objects[found[0]] = found[1]
            # Never hold the loop for a whole cluster's worth of objects.
            await asyncio.sleep(0)
            if not page.metadata.continue_:
                break
            params["continue"] = page.metadata.continue_
        self._version = page.metadata.resource_version
        self.absent = False
        self._sink.replaced(objects)
        self.synced.set()

    async def _watch(self) -> None:
        params = {
            **self._collection.params(),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(WATCH_S * (0.5 + random.random() / 2))),  # noqa: S311 - jitter
        }
        heard = False
        async for line in self._session.lines(self._collection.path, params):
            heard = True
            self._backoff.reset()
            try:
                event = kubernetes.decode_watch_event(line)
            except msgspec.MsgspecError as error:
                raise WatchError(0, f"a watch event cannot be read: {error}") from error
            self._take(event)
        if not heard:
            # A server that ends watches at once must not be asked in a tight loop.
            await asyncio.sleep(self._backoff.next())

    def _take(self, event: kubernetes.WatchEvent) -> None:
        if event.type == "ERROR":
            try:
                status = _status_decoder.decode(event.object)
            except msgspec.MsgspecError:
                status = _Status(0, "an error that cannot be read")
            self._version = ""
            raise WatchError(status.code, status.message)
        found = self._read(event.object, bookmark=event.type == "BOOKMARK")
        if found is None:
            return
        key, value, version = found
        self._version = version or self._version
        if event.type == "BOOKMARK":
            return
        if event.type == "DELETED" or value is None:
            self._sink.deleted(key)
        else:
            self._sink.changed(key, value)

    def _read(
        self, raw: msgspec.Raw, bookmark: bool = False
    ) -> tuple[ObjectKey, T | None, str] | None:
        """Key, value and version; the value is None when it cannot be decoded, all when it has no name."""
        try:
            meta = _key_decoder.decode(raw).metadata
        except msgspec.MsgspecError as error:
            self._log.error("object without readable metadata", error=str(error))
            return None
        key = (meta.namespace, meta.name)
        if bookmark:
            return key, None, meta.resource_version
        try:
            return key, self._decode(raw), meta.resource_version
        except msgspec.MsgspecError as error:
            self._log.error("object skipped", namespace=key[0], name=key[1], error=str(error))
            return key, None, meta.resource_version


def _message(raw: bytes) -> str:
    try:
        return _status_decoder.decode(raw).message or raw[:200].decode(errors="replace")
    except msgspec.MsgspecError:
        return raw[:200].decode(errors="replace")
