"""``localkube node``: run the node agent in this process's namespaces until it is told to stop.

In: a kubeconfig, a node name, catalogue files, the serving certificate. Out: an exit code.
The caller (the supervisor) has made the namespaces; see ``localkube.supervisor``.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import structlog

from localkube.client import ApiClient
from localkube.client.errors import KubeconfigError
from localkube.client.hostnetwork import through_host
from localkube.kit.hostsockets import HostSockets
from localkube.node.agent import NodeAgent, NodeSettings
from localkube.node.kubelet_server import KubeletServer, ServingTls

_log = structlog.get_logger("localkube.node")


def run(
    kubeconfig: str | Path,
    node_name: str,
    catalogue_files: Sequence[str | Path] = (),
    *,
    state_dir: str | Path,
    serving_tls: ServingTls | None = None,
    api_in_namespace: bool = False,
) -> int:
    """Run until SIGTERM or SIGINT; return 0, or 1 with a logged reason.

    ``api_in_namespace``: the kubeconfig's server is reached in this network namespace and not
    through the host's. Without ``serving_tls`` there are no logs, exec and port-forward.
    """
    settings = NodeSettings(
        name=node_name,
        state_dir=Path(state_dir),
        catalogue_files=tuple(Path(file) for file in catalogue_files),
    )
    try:
        return asyncio.run(_run(Path(kubeconfig), settings, serving_tls, api_in_namespace))
    except KubeconfigError as error:
        _log.error("cannot use the kubeconfig", error=str(error))
    except OSError as error:
        _log.error("the node cannot run here", error=str(error))
    return 1


async def _run(
    kubeconfig: Path, settings: NodeSettings, tls: ServingTls | None, api_in_namespace: bool
) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    sockets = HostSockets.from_environment()
    options = {} if api_in_namespace else through_host(sockets)
    async with ApiClient.from_kubeconfig(kubeconfig, user_agent="kubelet", **options) as client:
        agent = NodeAgent(client, settings, sockets)
        server = KubeletServer(agent, tls) if tls is not None else None
        try:
            starting = asyncio.ensure_future(agent.start())
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait([starting, stopping], return_when="FIRST_COMPLETED")
            if not starting.done():
                starting.cancel()
                return 0
            starting.result()
            if server is not None:
                await server.start(settings.ip, settings.port)
            _log.info("node is ready", node=settings.name)
            assert agent.runtime.lost is not None
            await asyncio.wait([stopping, agent.runtime.lost], return_when="FIRST_COMPLETED")
            if agent.runtime.lost.done():
                _log.error("the fork server ended; all pods are lost, the node must be restarted")
                return 1
            return 0
        finally:
            if server is not None:
                await server.stop()
            await agent.stop()
