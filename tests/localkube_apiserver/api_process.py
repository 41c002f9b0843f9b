"""Runs the real API server in a process of its own, over TLS, with its state in a given folder.

`ApiProcess` is also a small synchronous client with the administrator's certificate, so that tests
say what they send and see exactly what comes back.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from localkube.apiserver.pki import ensure_pki, write_kubeconfig

_SERVE = """
import asyncio, socket, sys
from pathlib import Path
from localkube.apiserver import app
from localkube.apiserver.store import Store
state, fd, window = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = Store(state / "state.db", window_changes=window)
sock = socket.socket(fileno=fd)
asyncio.run(app.serve(store, app.ServerConfig(pki_dir=state / "pki"), [sock]))
"""
_DEADLINE_S = 20.0


class Answer:
    """A status, the decoded body, and the headers."""

    def __init__(self, status: int, body: Any, headers: http.client.HTTPMessage) -> None:
        self.status = status
        self.body = body
        self.headers = headers

    @property
    def reason(self) -> str:
        return str(self.body.get("reason", "")) if isinstance(self.body, dict) else ""


class ApiProcess:
    """One server. Start it with `start`, end it with `stop` (SIGTERM) or `kill` (SIGKILL)."""

    def __init__(self, state: Path, window: int = 2048) -> None:
        self.state = state
        self.window = window
        self.pki = ensure_pki(state / "pki")
        self.process: subprocess.Popen[bytes] | None = None
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.kubeconfig = state / "kubeconfig"
        server = f"https://127.0.0.1:{self.port}"
        write_kubeconfig(self.kubeconfig, self.pki, self.pki.admin, server=server, cluster="test")
        self._context = ssl.create_default_context(cafile=str(self.pki.ca.cert))
        self._context.load_cert_chain(self.pki.admin.cert, self.pki.admin.key)
        self.anonymous = ssl.create_default_context(cafile=str(self.pki.ca.cert))

    def start(self) -> None:
        log = (self.state / "server.log").open("ab")
        fd = self._socket.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(self.state), str(fd), str(self.window)],
            pass_fds=[fd],
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            try:
                if self.get("/readyz", raw=True).status == 200:
                    return
            except OSError:
                pass
            assert self.process.poll() is None, (self.state / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not become ready"
            time.sleep(0.02)

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(_DEADLINE_S)
        self.process = None
        return code

    def stop(self) -> int:
        return self.end(signal.SIGTERM)

    def close(self) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)
        self._socket.close()

    # -- client -------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
        raw: bool = False,
        context: ssl.SSLContext | None = None,
        **query: Any,
    ) -> Answer:
        target = path + (f"?{urlencode(query)}" if query else "")
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=context or self._context, timeout=_DEADLINE_S
        )
        sent = {"Connection": "close", **(headers or {})}
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["Content-Type"] = content_type
        try:
            connection.request(method, target, data, sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        found = content.decode() if raw else json.loads(content)
        return Answer(response.status, found, response.headers)

    def get(self, path: str, **more: Any) -> Answer:
        return self.call("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> Answer:
        return self.call("POST", path, body, **more)

    def put(self, path: str, body: Any, **more: Any) -> Answer:
        return self.call("PUT", path, body, **more)

    def delete(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.call("DELETE", path, body, **more)

    def patch(self, path: str, body: Any, kind: str = "merge-patch+json", **more: Any) -> Answer:
        return self.call("PATCH", path, body, content_type=f"application/{kind}", **more)

    def watch(self, path: str, **query: Any) -> Watch:
        return Watch(self, path, query)

    def kubectl(
        self, binary: str, *arguments: str, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.state)}
        return subprocess.run(
            [binary, *arguments],
            input=stdin,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


class Watch:
    """An open watch; iterate over its events as (type, object)."""

    def __init__(self, api: ApiProcess, path: str, query: dict[str, Any]) -> None:
        self.connection = http.client.HTTPSConnection(
            "127.0.0.1", api.port, context=api._context, timeout=_DEADLINE_S
        )
        headers = query.pop("headers", {})
        self.connection.request(
            "GET", f"{path}?{urlencode({'watch': 1, **query})}", headers=headers
        )
        self.response = self.connection.getresponse()
        self.status = self.response.status

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        while line := self.response.readline():
            event = json.loads(line)
            yield event["type"], event["object"]

    def take(self, count: int) -> list[tuple[str, Any]]:
        events = iter(self)
        return [next(events) for _ in range(count)]

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.connection.close()
