"""Entry point of the node: run the agent in this process's namespaces until it is cancelled.

In: a kubeconfig, a node name, a state directory, catalogue files. Out: nothing; it returns when the
task is cancelled (every pod has ended then) and raises when the node cannot go on.
The caller (the supervisor) has made the namespaces.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from localkube.client import ApiClient
from localkube.client.hostnetwork import through_host
from localkube.kit.hostsockets import HostSockets
from localkube.node import joined
from localkube.node.kubelet_server import KubeletServer, ServingTls
from localkube.node.nodeagent import NodeAgent, NodeSettings

_log = structlog.get_logger("localkube.node")


class NodeLost(Exception):
    """The node cannot go on and must be started anew."""


async def run(
    kubeconfig: Path,
    node_name: str,
    state_dir: Path,
    catalogues: Sequence[Path] = (),
    api_through_host: bool = False,
) -> None:
    """Run until cancelled. Raises KubeconfigError, OSError (set-up), NodeLost.

    ``api_through_host``: the API server is reached through the host's network; then it is not a
    cluster of our own.
    """
    settings = NodeSettings(name=node_name, state_dir=state_dir, catalogue_files=tuple(catalogues))
    state_dir.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    sockets = HostSockets.from_environment()
    options = through_host(sockets) if api_through_host else {}
    async with ApiClient.from_kubeconfig(kubeconfig, user_agent="kubelet", **options) as client:
        if api_through_host and sockets is not None:
            await _run_joined(kubeconfig, client, settings, sockets)
        else:
            agent = NodeAgent(client, settings, sockets)
            await _serve(agent, _serving_tls(state_dir, node_name), None)


async def _run_joined(
    kubeconfig: Path, client: ApiClient, settings: NodeSettings, sockets: HostSockets
) -> None:
    """Run as a node of somebody else's cluster."""
    server = joined.server_address(client)
    network = await joined.read_service_network(client)
    address = await joined.find_host_address(sockets, server)
    sock, port = joined.listen_on_host(sockets, address, settings.port)
    tls = joined.write_serving_tls(kubeconfig, settings.state_dir / "node-pki")
    if tls is None:
        _log.warning("the kubeconfig has no client certificate: no logs, exec or port-forward")
    settings = replace(
        settings,
        service_cidr=network.cidr,
        dns_ip=network.dns_ip,
        advertised_ip=address,
        port=port,
    )
    relay = joined.ApiRelay(sockets, server)
    try:
        await _serve(NodeAgent(client, settings, sockets, relay), tls, sock)
    finally:
        sockets.close(address, port)


async def _serve(agent: NodeAgent, tls: ServingTls | None, sock: socket.socket | None) -> None:
    server = KubeletServer(agent, tls) if tls is not None else None
    try:
        await agent.prepare()
        if server is not None:
            await server.start(sock or (agent.settings.ip, agent.settings.port))
        await agent.start()
        _log.info("node is ready", node=agent.settings.name)
        assert agent.runtime.lost is not None
        await asyncio.shield(agent.runtime.lost)
        raise NodeLost("the fork server ended, and all pods with it")
    finally:
        if server is not None:
            await server.stop()
        await agent.stop()


def _serving_tls(state_dir: Path, node_name: str) -> ServingTls | None:
    """Return the certificates that the cluster's PKI made for this node, if there are any."""
    pki = state_dir / "pki"
    tls = ServingTls(pki / f"node-{node_name}.crt", pki / f"node-{node_name}.key", pki / "ca.crt")
    return tls if tls.certificate.exists() and tls.client_ca.exists() else None
