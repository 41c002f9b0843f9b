"""A node agent over ``MemoryApi``, and short ways to say what pods do. Used inside ``isolated``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from localkube.client.resources import PODS
from localkube.node.nodeagent import NodeAgent, NodeSettings
from localkube_node.api_memory import MemoryApi

NODE = "node0"

HTTP_SERVER = """
import http.server, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        ok = not (self.path == "/ready" and os.path.exists("/tmp/unready"))
        body = (os.environ.get("ANSWER", socket.gethostname()) + " " + self.client_address[0]).encode()
        self.send_response(200 if ok else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        print("request", self.path, flush=True)
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    def server_bind(self):
        import socketserver
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "s", 80
Server(("", 80), Handler).serve_forever()
"""


@asynccontextmanager
async def node(directory: Path, **options: Any) -> AsyncIterator[tuple[MemoryApi, NodeAgent]]:
    """Run an agent with a catalogue that knows ``python`` and the built-in images."""
    api = MemoryApi()
    settings = NodeSettings(name=NODE, state_dir=directory / "state", **options)
    settings.state_dir.mkdir(exist_ok=True)
    client: Any = api
    agent = NodeAgent(client, settings, None)
    await agent.prepare()
    try:
        await agent.start()
        yield api, agent
    finally:
        await agent.stop()


def pod(name: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """Return a pod bound to our node."""
    labels = spec.pop("labels", {"app": name})
    return {
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {
            "nodeName": NODE,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 5,
            "containers": list(containers),
            **spec,
        },
    }


def shell(script: str, name: str = "main", **fields: Any) -> dict[str, Any]:
    """Return a container that runs a shell script."""
    return {"name": name, "image": "busybox", "command": ["sh", "-c", script], **fields}


def python(script: str, name: str = "main", **fields: Any) -> dict[str, Any]:
    """Return a container that runs a Python program."""
    return {"name": name, "image": "python:3", "command": ["python", "-c", script], **fields}


def http_server(name: str = "main", **fields: Any) -> dict[str, Any]:
    """Return a container that serves HTTP on port 80."""
    fields.setdefault(
        "readinessProbe", {"httpGet": {"port": 80, "path": "/ready"}, "periodSeconds": 1}
    )
    return python(HTTP_SERVER, name, **fields)


def phase(api: MemoryApi, name: str) -> str:
    """Return a pod's phase."""
    found = api.find(PODS, name)
    return str(((found or {}).get("status") or {}).get("phase"))


def is_ready(api: MemoryApi, name: str) -> bool:
    """Return whether a pod's Ready condition is true."""
    found = api.find(PODS, name) or {}
    conditions = (found.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def container_status(api: MemoryApi, name: str, container: str = "main") -> dict[str, Any]:
    """Return one container's status."""
    status = (api.find(PODS, name) or {}).get("status") or {}
    listed = [
        *(status.get("containerStatuses") or []),
        *(status.get("initContainerStatuses") or []),
    ]
    return next((c for c in listed if c["name"] == container), {})


def log_text(agent: NodeAgent, name: str, container: str = "main") -> str:
    """Return what a container has printed so far."""
    from localkube.node.logs import LogOptions, read_records, render_records

    worker = agent.find("default", name)
    runner = worker.runners.get(container) if worker else None
    if runner is None or runner.log is None:
        return ""
    records = read_records([runner.log.rotated, runner.log.path], None)
    return render_records(records, LogOptions()).decode()


async def run_to_end(api: MemoryApi, agent: NodeAgent, name: str, script: str, **spec: Any) -> str:
    """Run a shell script in a pod of its own; return what it printed."""
    fields = {
        key: spec.pop(key) for key in ("volumeMounts", "env", "securityContext") if key in spec
    }
    api.put(PODS, pod(name, shell(script, **fields), restartPolicy="Never", **spec))
    await api.until(lambda: phase(api, name) in ("Succeeded", "Failed"))
    return log_text(agent, name)


async def command(*words: str) -> str:
    """Run a command in the node's network; return its output."""
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


PYTHON = sys.executable
