"""Client and informer against a real API server, and against one that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from localkube.client import (
    ApiClient,
    ApiConnectionError,
    ApiStatusError,
    Informer,
    PatchType,
)
from localkube.client.errors import KubeconfigError
from localkube.client.kubeconfig import Connection, from_kubeconfig
from localkube.client.resources import CONFIG_MAPS, PODS, SERVICES
from localkube_control.conftest import Api


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": data,
    }


async def test_verbs(api: Api) -> None:
    created = await api.client.create(CONFIG_MAPS, config_map("a", x="1"))
    created["data"]["x"] = "2"
    updated = await api.client.update(CONFIG_MAPS, created)
    with pytest.raises(ApiStatusError) as refused:
        await api.client.update(CONFIG_MAPS, created)
    assert refused.value.conflict
    await api.client.patch(CONFIG_MAPS, "a", {"data": {"y": "3"}}, "default")
    applied = {**config_map("a", z="4")}
    await api.client.patch(CONFIG_MAPS, "a", applied, "default", type=PatchType.APPLY)
    assert (await api.client.get(CONFIG_MAPS, "a", "default"))["data"] == {
        "x": "2",
        "y": "3",
        "z": "4",
    }
    with pytest.raises(ApiStatusError) as wrong:
        await api.client.delete(CONFIG_MAPS, "a", "default", uid="another")
    assert wrong.value.conflict
    await api.client.delete(CONFIG_MAPS, "a", "default", uid=updated["metadata"]["uid"])
    with pytest.raises(ApiStatusError) as missing:
        await api.client.get(CONFIG_MAPS, "a", "default")
    assert missing.value.not_found
    assert missing.value.reason == "NotFound"


async def test_an_informer_follows_and_indexes(api: Api) -> None:
    await api.client.create(CONFIG_MAPS, config_map("before", group="a"))
    informer = Informer(api.client, CONFIG_MAPS, "default")
    informer.add_index("group", lambda obj: [(obj.get("data") or {}).get("group", "")])
    seen: list[tuple[str | None, str | None]] = []

    def handler(old: Any, new: Any) -> None:
        seen.append((old and old["metadata"]["name"], new and new["metadata"]["name"]))

    informer.on_change(handler)
    informer.start()
    await informer.wait_synced(10)
    assert informer.get("before", "default") is not None
    await api.client.create(CONFIG_MAPS, config_map("after", group="b"))
    await api.client.patch(CONFIG_MAPS, "after", {"data": {"group": "c"}}, "default")
    await api.client.delete(CONFIG_MAPS, "before", "default")

    async def caught_up() -> bool:
        return (
            informer.get("before", "default") is None and len(informer.by_index("group", "c")) == 1
        )

    await api.until(caught_up)
    assert informer.by_index("group", "a") == informer.by_index("group", "b") == []
    assert [s for s in seen if "kube-root-ca.crt" not in s] == [
        (None, "before"),
        (None, "after"),
        ("after", "after"),
        ("before", None),
    ]
    await informer.close()


async def test_an_offered_answer_is_seen_at_once_and_never_brings_back_the_dead(
    api: Api,
) -> None:
    informer = Informer(api.client, CONFIG_MAPS, "default")
    informer.start()
    await informer.wait_synced(10)
    created = await api.client.create(CONFIG_MAPS, config_map("a"))
    informer.offer(created)
    assert informer.get("a", "default") is not None
    await api.client.delete(CONFIG_MAPS, "a", "default")

    async def gone() -> bool:
        return informer.get("a", "default") is None

    await api.until(gone)
    informer.offer(created)
    assert informer.get("a", "default") is None
    await informer.close()


class RoughServer:
    """An API server that does what it is told, in order, and counts."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.requests: list[tuple[str, str]] = []
        self.watches: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        if request.query.get("watch"):
            self.watches.append(request.query["resourceVersion"])
        step = self.script.pop(0) if self.script else (200, {"metadata": {}})
        if step == "drop":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        status, body = step
        if isinstance(body, list):
            response = web.StreamResponse()
            await response.prepare(request)
            for event in body:
                await response.write(json.dumps(event).encode() + b"\n")
            return response
        headers = {"Content-Type": "application/json"}
        return web.Response(status=status, body=json.dumps(body), headers=headers)


@pytest_asyncio.fixture
async def rough() -> AsyncIterator[tuple[RoughServer, ApiClient]]:
    server = RoughServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with ApiClient(Connection(f"http://{host}:{port}", None)) as client:
        yield server, client
    await runner.cleanup()


async def test_reads_are_repeated(rough: tuple[RoughServer, ApiClient]) -> None:
    server, client = rough
    server.script = ["drop", (503, {}), (200, {"kind": "Pod"})]
    assert await client.get(PODS, "p", "ns") == {"kind": "Pod"}
    assert len(server.requests) == 3


async def test_a_create_is_never_sent_twice(rough: tuple[RoughServer, ApiClient]) -> None:
    server, client = rough
    server.script = ["drop"]
    with pytest.raises(ApiConnectionError):
        await client.create(PODS, {"metadata": {"name": "p", "namespace": "ns"}})
    assert len(server.requests) == 1


async def test_a_throttled_create_is_repeated(rough: tuple[RoughServer, ApiClient]) -> None:
    server, client = rough
    server.script = [(429, {"reason": "TooManyRequests"}), (201, {"kind": "Pod"})]
    created = await client.create(PODS, {"metadata": {"name": "p", "namespace": "ns"}})
    assert created == {"kind": "Pod"}


def event(kind: str, name: str, version: str) -> dict[str, Any]:
    return {"type": kind, "object": {"metadata": {"name": name, "resourceVersion": version}}}


def listing(version: str, **versions: str) -> tuple[int, dict[str, Any]]:
    items = [{"metadata": {"name": n, "resourceVersion": v, "uid": n}} for n, v in versions.items()]
    return 200, {"metadata": {"resourceVersion": version}, "items": items}


async def test_an_informer_resumes_after_a_bookmark_and_lists_anew_when_told(
    rough: tuple[RoughServer, ApiClient],
) -> None:
    """A lost watch resumes at the bookmark; 410 leads to a list, whose difference is reported."""
    server, client = rough
    expired = {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "old"}}
    server.script = [
        listing("5", a="3", b="4"),
        (200, [event("ADDED", "c", "6"), event("BOOKMARK", "", "9")]),
        "drop",
        (200, [expired]),
        listing("20", a="3", c="6", d="18"),
    ]
    informer = Informer(client, PODS)
    gone: list[str] = []
    informer.on_change(
        lambda old, new: gone.append(old["metadata"]["name"]) if new is None and old else None
    )
    informer.start()
    async with asyncio.timeout(10):
        while set(informer.keys()) != {"a", "c", "d"}:
            await asyncio.sleep(0.01)
    assert gone == ["b"]
    assert server.watches[:3] == ["5", "9", "9"]
    await informer.close()


async def test_the_write_that_ends_an_object_ends_it_in_the_copy(
    rough: tuple[RoughServer, ApiClient],
) -> None:
    """Taking off the last finalizer deletes: the answer and the DELETED event share a version."""
    server, client = rough
    events = [event("ADDED", "b", "7"), event("DELETED", "a", "9")]
    server.script = [listing("5", a="3"), (200, events)]
    informer = Informer(client, PODS)

    def answered(old: Any, new: Any) -> None:
        if old is None and new["metadata"]["name"] == "b":
            informer.offer(event("", "a", "9")["object"])

    informer.on_change(answered)
    informer.start()
    async with asyncio.timeout(10):
        while informer.keys() != ["b"]:
            await asyncio.sleep(0.01)
    await informer.close()


async def test_watch_lines_may_be_long_and_come_in_pieces(
    rough: tuple[RoughServer, ApiClient],
) -> None:
    server, client = rough
    large = event("ADDED", "x", "1")
    large["object"]["data"] = "y" * 500_000
    server.script = [(200, [large, event("DELETED", "x", "2")])]
    seen = [e async for e in client.watch(SERVICES, resource_version="0")]
    assert [e.type for e in seen] == ["ADDED", "DELETED"]
    assert len(seen[0].object["data"]) == 500_000


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("a: [", "not valid YAML"),
        ("current-context: x", "contexts has no entry named 'x'"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
            "clusters: [{name: c, cluster: {server: ftp://x}}]\nusers: [{name: u, user: {}}]",
            "must be an https:// URL",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
            "clusters: [{name: c, cluster: {server: 'https://x'}}]\n"
            "users: [{name: u, user: {exec: {command: y}}}]",
            "user.exec is not supported",
        ),
    ],
)
def test_a_bad_kubeconfig_is_explained(tmp_path: Any, text: str, part: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(KubeconfigError, match=r".") as error:
        from_kubeconfig(path)
    assert part in str(error.value)
    assert str(path) in str(error.value)
