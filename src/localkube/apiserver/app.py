"""The API server as an aiohttp application, and how it is served over TLS.

In: a `Store`, a `ServerConfig`, and the policy. Out: `create_app`, whose application answers the
Kubernetes API, and `serve`, which runs it on sockets until cancelled.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from localkube.apiserver.policy import Policy
from localkube.apiserver.store import Store


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server finds its keys, and its numbers.

    `pki_dir` holds the files that `pki` writes (CA, serving certificate, kubelet client
    certificate, service account key). `advertise_*` is where pods reach the API server.
    """

    pki_dir: Path
    advertise_address: str = "172.30.0.1"
    advertise_port: int = 6443
    service_cidr: str = "10.96.0.0/16"
    node_port_range: tuple[int, int] = (30000, 32767)
    cluster_domain: str = "cluster.local"
    # Kubernetes' own default for --event-ttl.
    event_ttl_s: float = 3600.0


def create_app(store: Store, config: ServerConfig, policy: Policy | None = None) -> web.Application:
    """Return the application; without `policy` the real one is wired from its modules."""
    raise SystemExit("the request pipeline is not wired yet")


async def serve(
    store: Store,
    config: ServerConfig,
    sockets: Sequence[socket.socket],
    policy: Policy | None = None,
) -> None:
    """Serve on these listening sockets (TLS on each) until cancelled, then shut down cleanly."""
    raise SystemExit("the request pipeline is not wired yet")
