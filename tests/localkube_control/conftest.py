"""A real API server in the test's event loop, without namespaces or a node."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio

from localkube.apiserver.app import ServerConfig, serve
from localkube.apiserver.pki import ensure_pki, write_kubeconfig
from localkube.apiserver.store import Store
from localkube.client import ApiClient, ApiConnectionError, ApiStatusError
from localkube.controllers.group import Controllers

DEADLINE = 20.0


@dataclass
class Api:
    """A running API server: a client with all rights, and its controllers."""

    client: ApiClient
    kubeconfig: Path
    ca_pem: str

    async def until(self, ask: Callable[[], Any], what: str = "") -> Any:
        """Poll `ask` (a coroutine function) until it returns something true."""
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    found = await ask()
                except ApiStatusError as error:
                    if not error.not_found:
                        raise
                    found = None
                if found:
                    return found
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    pki = ensure_pki(tmp_path / "pki")
    kubeconfig = tmp_path / "kubeconfig"
    server = f"https://127.0.0.1:{port}"
    write_kubeconfig(kubeconfig, pki, pki.admin, server=server, cluster="test")
    store = Store(tmp_path / "state.db")
    serving = asyncio.ensure_future(serve(store, ServerConfig(pki_dir=pki.directory), [sock]))
    async with ApiClient.from_kubeconfig(kubeconfig) as client:
        running = Api(client, kubeconfig, pki.ca_pem().decode())
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    await client.request("GET", "/readyz")
                    break
                except (ApiConnectionError, ApiStatusError):
                    await asyncio.sleep(0.02)
        yield running
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    store.close()


@pytest_asyncio.fixture
async def controllers(api: Api) -> AsyncIterator[Controllers]:
    client = ApiClient.from_kubeconfig(api.kubeconfig, user_agent="controllers")
    group = Controllers(client, api.ca_pem, "127.99.7")
    group.start()
    yield group
    await group.close()
    await client.close()
