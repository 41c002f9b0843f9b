"""Watching a real HTTP server that speaks list and watch, and misbehaves on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
from aiohttp import web

from istiod.kube_server import KubeServer
from istiod.waiting import until
from meltemi.adapters import kube_watch
from meltemi.adapters.kube_connection import Connection
from meltemi.adapters.kube_watch import Collection, ObjectKey, Watcher, WatchSession
from meltemi.kit.tasks import Tasks
from meltemi.model import kubernetes

PODS = "/api/v1/pods"


class Copy:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.objects: dict[ObjectKey, kubernetes.Pod] = {}
        self.lists = 0

    def replaced(self, objects: Mapping[ObjectKey, kubernetes.Pod]) -> None:
        self.objects = dict(objects)
        self.lists += 1

    def changed(self, key: ObjectKey, value: kubernetes.Pod) -> None:
        self.objects[key] = value

    def deleted(self, key: ObjectKey) -> None:
        self.objects.pop(key, None)

    def names(self) -> list[str]:
        return sorted(name for _, name in self.objects)


@pytest.fixture
async def server() -> AsyncIterator[KubeServer]:
    server = await KubeServer().start()
    yield server
    await server.stop()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks("test") as tasks:
        yield tasks


class Watching:
    def __init__(self, server: KubeServer, tasks: Tasks) -> None:
        self.copy = Copy()
        self.appeared = asyncio.Event()
        self.server = server
        self.tasks = tasks

    async def start(self) -> Watching:
        async def work() -> None:
            async with WatchSession(Connection(self.server.url)) as session:
                self.watcher = Watcher(
                    session,
                    Collection(PODS),
                    kubernetes.decode_pod,
                    self.copy,
                    appeared=self.appeared,
                )
                await self.watcher.run()

        self.tasks.spawn("watch", work)
        await asyncio.sleep(0)
        return self


def pod(name: str, ip: str = "10.0.0.1") -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "n"}, "status": {"podIP": ip}}


async def test_lists_in_pages_then_follows(
    server: KubeServer, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages of the list arrive as one replacement; then every change."""
    monkeypatch.setattr(kube_watch, "PAGE", 2)
    for name in "abcde":
        await server.put(PODS, pod(name))
    w = await Watching(server, tasks).start()
    await until(lambda: w.copy.names() == list("abcde"))
    assert w.copy.lists == 1
    await server.put(PODS, pod("a", "10.0.0.9"))
    await until(lambda: w.copy.objects["n", "a"].status.pod_ip == "10.0.0.9")
    await server.remove(PODS, "n", "b")
    await until(lambda: w.copy.names() == list("acde"))


async def test_resumes_from_a_bookmark(server: KubeServer, tasks: Tasks) -> None:
    """After a cut, the watch goes on from the last version heard of; nothing is listed again."""
    server.serve(PODS)
    w = await Watching(server, tasks).start()
    await until(lambda: w.copy.lists == 1)
    await server.bookmark(PODS)
    at = str(server.version)
    await until(lambda: w.watcher._version == at)
    server.cut_streams()
    await until(lambda: any(q.get("resourceVersion") == at for _, _, q in server.requests))
    await server.put(PODS, pod("late"))
    await until(lambda: w.copy.names() == ["late"])
    assert w.copy.lists == 1


async def test_lists_again_after_gone(server: KubeServer, tasks: Tasks) -> None:
    """410 Gone: what was deleted meanwhile disappears."""
    await server.put(PODS, pod("old"))
    w = await Watching(server, tasks).start()
    await until(lambda: w.copy.names() == ["old"])
    server.refuse = lambda request: web.Response(status=503)
    server.cut_streams()
    await server.remove(PODS, "n", "old")
    await server.put(PODS, pod("new"))
    server.forget_history()
    server.refuse = lambda request: None
    await until(lambda: w.copy.names() == ["new"])


async def test_keeps_what_it_knows_while_the_server_is_down(
    server: KubeServer, tasks: Tasks
) -> None:
    """A server that vanishes and comes back on the same port is found again."""
    await server.put(PODS, pod("a"))
    w = await Watching(server, tasks).start()
    await until(lambda: w.copy.names() == ["a"])
    port = server.port
    await server.stop()
    await until(lambda: w.watcher.failures > 0)
    assert w.copy.names() == ["a"]
    await server.start(port)
    await server.put(PODS, pod("b"))
    await until(lambda: w.copy.names() == ["a", "b"])


async def test_absent_kind_is_watched_when_it_appears(server: KubeServer, tasks: Tasks) -> None:
    """404 counts as empty and synced; a nudge makes the watcher look again at once."""
    w = await Watching(server, tasks).start()
    await until(lambda: w.copy.lists == 1)
    assert w.watcher.synced.is_set()
    assert w.watcher.absent
    await server.put(PODS, pod("a"))
    w.appeared.set()
    await until(lambda: w.copy.names() == ["a"])


async def test_one_bad_object_does_not_stop_the_others(server: KubeServer, tasks: Tasks) -> None:
    """An object of the wrong shape is skipped, in lists and in watches."""
    await server.put(PODS, {"metadata": {"name": "bad", "namespace": "n"}, "spec": "text"})
    await server.put(PODS, pod("good"))
    w = await Watching(server, tasks).start()
    await until(lambda: w.copy.names() == ["good"])
    await server.put(PODS, {"metadata": {"name": "worse", "namespace": "n"}, "status": 7})
    await server.put(PODS, pod("fine"))
    await until(lambda: w.copy.names() == ["fine", "good"])


async def test_objects_larger_than_a_read(server: KubeServer, tasks: Tasks) -> None:
    """A line of a megabyte arrives whole."""
    server.serve(PODS)
    w = await Watching(server, tasks).start()
    await until(lambda: w.copy.lists == 1)
    big = pod("big")
    big["metadata"]["annotations"] = {"x": "y" * 1_000_000}  # type: ignore[index]
    await server.put(PODS, big)
    await until(lambda: w.copy.names() == ["big"])
