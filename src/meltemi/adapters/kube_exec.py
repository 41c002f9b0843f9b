"""Run a command in a container and take its output, over the WebSocket form of ``pods/exec``."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import aiohttp

from meltemi.adapters.kube_api import KubeApi, KubeError

PROTOCOL = "v4.channel.k8s.io"
_STDOUT, _STDERR, _STATUS = 1, 2, 3
DEADLINE_S = 30.0
OUTPUT_BYTES_MAX = 256 * 1024 * 1024


async def run_in_pod(
    api: KubeApi, namespace: str, pod: str, container: str, command: list[str]
) -> bytes:
    """Standard output of ``command``. Raises KubeError when it cannot run or exits with a failure."""
    query = [("container", container), ("stdout", "true"), ("stderr", "true")]
    query += [("command", part) for part in command]
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec?{urlencode(query)}"
    out, err = bytearray(), bytearray()
    try:
        async with api.websocket(path, PROTOCOL) as channel:
            async for message in channel:
                if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                    continue
                stream, data = message.data[0], message.data[1:]
                if stream == _STDOUT:
                    out += data
                elif stream == _STDERR:
                    err += data
                elif stream == _STATUS:
                    status = json.loads(data)
                    if status.get("status") != "Success":
                        said = err.decode(errors="replace").strip()
                        raise KubeError(500, "ExecFailed", said or status.get("message", "failed"))
                if len(out) > OUTPUT_BYTES_MAX:
                    raise KubeError(500, "TooLarge", f"{command[0]} in {pod} printed too much")
    except aiohttp.WSServerHandshakeError as error:
        text = f"cannot run {command[0]} in {namespace}/{pod}: the API server says {error.status} {error.message}"
        raise KubeError(error.status, "ExecRefused", text) from error
    return bytes(out)
