"""httpbin answers in go-httpbin's shapes."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from meltemi_samples.programs.httpbin import choose_status, make_app, seconds


@pytest.fixture
async def client() -> Any:
    async with TestClient(TestServer(make_app())) as client:
        yield client


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2.0), ("0.5", 0.5), ("250ms", 0.25), ("1s500ms", 1.5), ("1.5s", 1.5), ("0", 0.0)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "11", "-1", "2x", "s", "1h"])
def test_what_is_no_duration_or_too_long(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds(text)


def test_status_by_weight() -> None:
    dice = random.Random(1)
    seen = Counter(choose_status("200:0.9,503:0.1", dice) for _ in range(1000))
    assert set(seen) == {200, 503}
    assert 50 < seen[503] < 160
    for wrong in ("99", "abc", "200:-1", "600"):
        with pytest.raises(ValueError):
            choose_status(wrong)


async def test_what_a_request_was(client: Any) -> None:
    answer = await client.get("/get?a=1&a=2", headers={"X-One": "1"})
    body = await answer.json()
    assert body["args"] == {"a": ["1", "2"]}
    assert body["headers"]["X-One"] == ["1"]
    assert body["method"] == "GET"
    assert body["url"].endswith("/get?a=1&a=2")
    assert body["origin"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("send", "field", "value"),
    [
        ({"data": {"a": "1"}}, "form", {"a": ["1"]}),
        ({"json": {"a": 1}}, "json", {"a": 1}),
        ({"data": b"plain"}, "data", "plain"),
    ],
)
async def test_what_a_body_was(client: Any, send: Any, field: str, value: Any) -> None:
    for path in ("/post", "/anything/below"):
        assert (await (await client.post(path, **send)).json())[field] == value


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/status/418", 418),
        ("/status/nonsense", 400),
        ("/delay/0", 200),
        ("/delay/100", 400),
        ("/bytes/-1", 400),
        ("/basic-auth/a/b", 401),
        ("/hidden-basic-auth/a/b", 404),
        ("/bearer", 401),
        ("/html", 200),
        ("/nowhere", 404),
        ("/redirect-to", 400),
        ("/base64/aGk=", 200),
        ("/base64/aaaaa", 400),
    ],
)
async def test_statuses(client: Any, path: str, status: int) -> None:
    assert (await client.get(path)).status == status


async def test_redirects_lead_to_get(client: Any) -> None:
    for kind in ("redirect", "relative-redirect", "absolute-redirect"):
        answer = await client.get(f"/{kind}/3")
        assert answer.status == 200
        assert len(answer.history) == 3
        assert answer.url.path == "/get"


async def test_bytes_of_all_kinds(client: Any) -> None:
    assert len(await (await client.get("/bytes/1000")).read()) == 1000
    same = [await (await client.get("/bytes/10?seed=7")).read() for _ in range(2)]
    assert same[0] == same[1]
    streamed = await client.get("/stream-bytes/1000?chunk_size=10")
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    assert len(await streamed.read()) == 1000
    lines = (await (await client.get("/stream/3")).text()).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [0, 1, 2]
    assert await (await client.get("/drip?duration=10ms&numbytes=4&code=201")).text() == "****"
    assert (await (await client.get("/gzip")).json())["gzipped"] is True


async def test_headers_and_cookies_of_the_answer(client: Any) -> None:
    answer = await client.get("/response-headers?X-A=1&X-A=2")
    assert answer.headers.getall("X-A") == ["1", "2"]
    body = await (await client.get("/cookies/set?a=1")).json()
    assert body == {"cookies": {"a": "1"}}


async def test_conditional_requests(client: Any) -> None:
    assert (await client.get("/etag/x", headers={"If-None-Match": '"x"'})).status == 304
    assert (await client.get("/etag/x", headers={"If-Match": '"y"'})).status == 412
    assert (await client.get("/cache", headers={"If-None-Match": "x"})).status == 304
    assert (await client.get("/cache/60")).headers["Cache-Control"] == "public, max-age=60"


async def test_websocket_echo(client: Any) -> None:
    async with client.ws_connect("/websocket/echo") as connection:
        await connection.send_str("hi")
        assert await connection.receive_str() == "hi"
