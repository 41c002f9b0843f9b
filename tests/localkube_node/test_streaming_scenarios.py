"""The node's HTTPS API with real TLS: logs, exec and port-forward over every transport."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from localkube.apiserver.pki import Pki, ensure_pki, kubelet_client_context
from localkube.client.resources import PODS
from localkube.node.kubelet_server import KubeletServer, ServingTls
from localkube.node.streaming.spdy import DataReceived, SpdyConnection, StreamReset
from localkube_node import isolated
from localkube_node.world import http_server, is_ready, log_text, node, pod, shell

BASE = "https://172.30.0.1:10250"


def here(name: str, directory: Path) -> None:
    isolated.run(f"localkube_node.test_streaming_scenarios:{name}", directory)


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[tuple[Any, Any, aiohttp.ClientSession, Pki]]:
    pki = ensure_pki(directory / "pki", node_name="node0")
    tls = ServingTls(pki.node.cert, pki.node.key, pki.ca.cert)
    async with node(directory) as (api, agent):
        server = KubeletServer(agent, tls)
        await server.start(("172.30.0.1", 10250))
        connector = aiohttp.TCPConnector(ssl=kubelet_client_context(pki))
        async with aiohttp.ClientSession(BASE, connector=connector) as session:
            yield api, agent, session, pki
        await server.stop()


class SpdyClient:
    """A client's end of a SPDY upgrade, as kubectl makes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.spdy = SpdyConnection(client=True)
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()

    @classmethod
    async def upgrade(cls, pki: Pki, path: str, protocol: str) -> SpdyClient:
        context = kubelet_client_context(pki)
        reader, writer = await asyncio.open_connection("172.30.0.1", 10250, ssl=context)
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        assert b"spdy/3.1" in head.lower()
        return cls(reader, writer)

    async def flush(self) -> None:
        self.writer.write(self.spdy.data_to_send())
        await self.writer.drain()

    async def read_until_ended(self, *streams: int) -> None:
        async with asyncio.timeout(20):
            while not set(streams) <= self.ended:
                data = await self.reader.read(1 << 16)
                if not data:
                    return
                for event in self.spdy.receive(data):
                    if isinstance(event, DataReceived):
                        self.data[event.stream] = self.data.get(event.stream, b"") + event.data
                        if event.fin:
                            self.ended.add(event.stream)
                    elif isinstance(event, StreamReset):
                        self.ended.add(event.stream)
                await self.flush()


async def websocket_exec(
    session: aiohttp.ClientSession,
    query: list[tuple[str, str]],
    feed: bytes = b"",
    tty: bool = False,
) -> dict[int, bytes]:
    out: dict[int, bytes] = {}
    async with session.ws_connect(
        "/exec/default/web/main", params=query, protocols=("v5.channel.k8s.io",), max_msg_size=0
    ) as socket:
        assert socket.protocol == "v5.channel.k8s.io"
        if tty:
            await socket.send_bytes(b"\x04" + json.dumps({"Width": 99, "Height": 11}).encode())
        for start in range(0, len(feed), 30000):
            await socket.send_bytes(b"\0" + feed[start : start + 30000])
        if feed:
            await socket.send_bytes(bytes([255, 0]))
        async for message in socket:
            out[message.data[0]] = out.get(message.data[0], b"") + message.data[1:]
    return out


async def scenario_exec(directory: Path) -> None:
    async with served(directory) as (api, _, session, pki):
        api.put(PODS, pod("web", http_server()))
        await api.until(lambda: is_ready(api, "web"))
        wanted = [("stdout", "true"), ("stderr", "true")]
        command = [("command", word) for word in ("sh", "-c", "echo out; echo err >&2; exit 3")]
        out = await websocket_exec(session, wanted + command)
        assert (out[1], out[2]) == (b"out\n", b"err\n")
        status = json.loads(out[3])
        assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]

        feed = bytes(range(256)) * 8192
        digest = hashlib.sha256(feed).hexdigest().encode()
        stdin = [("stdin", "true"), ("stdout", "true"), ("command", "sha256sum")]
        assert digest in (await websocket_exec(session, stdin, feed))[1]

        words = ("sh", "-c", "sleep 0.2; tty; stty size")
        query = [("stdin", "true"), ("stdout", "true"), ("tty", "true")]
        query += [("command", word) for word in words]
        out = await websocket_exec(session, query, tty=True)
        assert out[1].split() == [b"/dev/pts/0", b"11", b"99"]

        # The same command over SPDY.
        path = "/exec/default/web/main?input=1&output=1&error=1&command=sh&command=-c&command=cat;exit%204"
        client = await SpdyClient.upgrade(pki, path, "v4.channel.k8s.io")
        streams = {
            name: client.spdy.open_stream({"streamType": name})
            for name in ("error", "stdin", "stdout", "stderr")
        }
        client.spdy.send(streams["stdin"], feed, fin=True)
        await client.flush()
        await client.read_until_ended(streams["stdout"], streams["error"])
        assert client.data[streams["stdout"]] == feed
        assert b'"4"' in client.data[streams["error"]]
        client.writer.close()

        missing = [("command", "no-such-program"), ("stdout", "true")]
        out = await websocket_exec(session, missing)
        assert b"no-such-program" in out[3]


def test_exec_over_websocket_and_spdy(tmp_path: Path) -> None:
    here("scenario_exec", tmp_path)


async def scenario_attach(directory: Path) -> None:
    async with served(directory) as (api, _, session, _):
        reader = shell("echo ready; cat; echo end", stdin=True, stdinOnce=True)
        api.put(PODS, pod("reader", reader, restartPolicy="Never"))
        await api.until(lambda: is_ready(api, "reader"))
        query = {"stdin": "true", "stdout": "true", "stderr": "true"}
        out = b""
        async with session.ws_connect(
            "/attach/default/reader/main", params=query, protocols=("v5.channel.k8s.io",)
        ) as socket:
            await socket.send_bytes(b"\0typed\n")
            await socket.send_bytes(bytes([255, 0]))
            async for message in socket:
                if message.data[0] == 1:
                    out += message.data[1:]
                status = message.data
        assert out.endswith(b"typed\nend\n")
        assert json.loads(status[1:])["status"] == "Success"


def test_attach_feeds_a_container_until_its_input_ends(tmp_path: Path) -> None:
    here("scenario_attach", tmp_path)


REQUEST = b"GET / HTTP/1.0\r\nhost: x\r\n\r\n"


async def scenario_port_forward(directory: Path) -> None:
    async with served(directory) as (api, _, session, pki):
        api.put(PODS, pod("web", http_server()))
        await api.until(lambda: is_ready(api, "web"))
        client = await SpdyClient.upgrade(pki, "/portForward/default/web", "portforward.k8s.io")
        await forward_over(client, client.spdy)

        # SPDY inside a WebSocket.
        protocol = "SPDY/3.1+portforward.k8s.io"
        async with session.ws_connect("/portForward/default/web", protocols=(protocol,)) as socket:
            assert socket.protocol == protocol
            spdy = SpdyConnection(client=True)
            stream = open_pair(spdy, 80, "1")
            await socket.send_bytes(spdy.data_to_send())
            body = b""
            async for message in socket:
                events = spdy.receive(message.data)
                body += b"".join(
                    e.data for e in events if isinstance(e, DataReceived) and e.stream == stream
                )
                if b"web 127.0.0.1" in body:
                    break

        # Plain channels, as the Python client library speaks them.
        async with session.ws_connect(
            "/portForward/default/web?ports=80", protocols=("v4.channel.k8s.io",)
        ) as socket:
            assert (await socket.receive_bytes()) == b"\0\x50\0"
            assert (await socket.receive_bytes()) == b"\1\x50\0"
            await socket.send_bytes(b"\0" + REQUEST)
            body = b""
            async for message in socket:
                body += message.data[1:]
            assert b"web 127.0.0.1" in body


def open_pair(spdy: SpdyConnection, port: int, request: str) -> int:
    headers = {"port": str(port), "requestID": request}
    spdy.open_stream({**headers, "streamType": "error"})
    stream = spdy.open_stream({**headers, "streamType": "data"})
    spdy.send(stream, REQUEST)
    return stream


async def forward_over(client: SpdyClient, spdy: SpdyConnection) -> None:
    good = [open_pair(spdy, 80, str(n)) for n in range(3)]
    bad = open_pair(spdy, 9, "bad")
    await client.flush()
    await client.read_until_ended(*good, bad, bad - 2)
    for stream in good:
        assert client.data[stream].endswith(b"web 127.0.0.1")
    assert (
        b"error occurred forwarding to port 9 in the pod: connection refused"
        in client.data[bad - 2]
    )
    client.writer.close()


def test_port_forward_over_every_transport(tmp_path: Path) -> None:
    here("scenario_port_forward", tmp_path)


async def scenario_logs(directory: Path) -> None:
    async with served(directory) as (api, agent, session, _):
        script = "for n in 1 2 3; do echo line $n; done; sleep 0.3; echo last"
        api.put(PODS, pod("once", shell(script), restartPolicy="Never"))
        await api.until(lambda: "line 3" in log_text(agent, "once"))
        url = "/containerLogs/default/once/main"

        async def text(**query: str) -> str:
            async with session.get(url, params=query) as response:
                assert response.status == 200
                return await response.text()

        assert await text(follow="true", tailLines="1") == "line 3\nlast\n"
        assert await text() == "line 1\nline 2\nline 3\nlast\n"
        assert await text(limitBytes="3") == "lin"
        stamped = (await text(timestamps="true", tailLines="1")).split()
        assert stamped[0].endswith("Z") and stamped[1] == "last"
        async with session.get(url, params={"previous": "true"}) as response:
            assert response.status == 400
            assert "previous terminated container" in await response.text()
        async with session.get("/containerLogs/default/none/main") as response:
            assert response.status == 404
        async with session.get(url, params={"tailLines": "x"}) as response:
            assert response.status == 400
        async with session.get("/stats/summary") as response:
            assert (await response.json())["node"]["nodeName"] == "node0"


def test_logs_follow_and_select(tmp_path: Path) -> None:
    here("scenario_logs", tmp_path)


async def scenario_strangers(directory: Path) -> None:
    async with served(directory) as (_, _, _, pki):
        context = ssl.create_default_context(cafile=str(pki.ca.cert))
        context.check_hostname = False
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"{BASE}/pods", ssl=context)
        # A certificate of the same authority that is not the API server's.
        context.load_cert_chain(pki.node.cert, pki.node.key)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{BASE}/pods", ssl=context) as response,
        ):
            assert response.status == 403


def test_only_the_api_server_may_ask(tmp_path: Path) -> None:
    here("scenario_strangers", tmp_path)
