"""P2: API server and controllers in one process.

Started by init as `python -m localkube.supervisor.control_plane RUNSPEC` with the API's host
socket inherited. Makes missing keys and kubeconfigs first. Ends cleanly on SIGTERM; a start that
cannot succeed (unreadable state, full disk) is told to the supervisor in words.
"""

import asyncio
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import structlog

from localkube.apiserver import app
from localkube.apiserver.pki import Pki, PkiError, ensure_pki, write_kubeconfig
from localkube.apiserver.store import Store, UnreadableStateError
from localkube.client import ApiClient
from localkube.controllers.group import Controllers
from localkube.kit import logs
from localkube.kit import namespaces as ns
from localkube.kit.tasks import Tasks
from localkube.supervisor.runspec import (
    API_PORT_INSIDE,
    API_SOCKET_VARIABLE,
    NODE_IP,
    RunSpec,
    report,
)
from localkube.supervisor.state import StateDirectory, UserError, storage_error

_log = structlog.get_logger("localkube.control_plane")


def main() -> int:
    """Run until SIGTERM -> exit code."""
    spec = RunSpec.from_json(sys.argv[1])
    ns.die_with_parent(signal.SIGKILL)
    logs.configure("control-plane")
    state = StateDirectory(spec.root, spec.name)
    try:
        pki = prepare_keys(spec, state)
        store = Store(state.database)
    except (PkiError, UnreadableStateError) as error:
        return _fatal(str(error))
    except UserError as error:
        return _fatal(str(error))
    except OSError as error:
        return _fatal(str(storage_error(error, Path(error.filename or state.root))))
    # What is alive now stays alive: keep it out of every later collection.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    try:
        asyncio.run(_run(spec, state, pki, store))
    finally:
        store.close()
    return 0


def _fatal(message: str) -> int:
    _log.error("cannot start", reason=message)
    report("fatal", message=message)
    return 1


def prepare_keys(spec: RunSpec, state: StateDirectory) -> Pki:
    """Keys, certificates and the three kubeconfigs. Raises PkiError or OSError."""
    pki = ensure_pki(state.pki, node_name=spec.node_name)
    inside = API_PORT_INSIDE if spec.isolated else spec.api_port
    cluster = "localkube" if spec.name == "default" else f"localkube-{spec.name}"
    for path, pair, server in (
        (state.kubeconfig, pki.admin, f"https://127.0.0.1:{spec.api_port}"),
        (state.controller_kubeconfig, pki.controller, f"https://127.0.0.1:{inside}"),
        (state.node_kubeconfig, pki.node, f"https://{NODE_IP}:{inside}"),
    ):
        write_kubeconfig(path, pki, pair, server=server, cluster=cluster)
    return pki


async def _run(spec: RunSpec, state: StateDirectory, pki: Pki, store: Store) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sockets = [socket.socket(fileno=int(os.environ[API_SOCKET_VARIABLE]))]
    if spec.isolated:
        sockets.append(_listen_inside())
    config = app.ServerConfig(pki_dir=pki.directory, node_name=spec.node_name)
    client = ApiClient.from_kubeconfig(
        state.controller_kubeconfig, user_agent="localkube-controller-manager"
    )
    controllers = Controllers(client, pki.ca_pem().decode(), spec.load_balancer_network)
    async with Tasks("control plane") as tasks, client:

        async def serve() -> None:
            try:
                await app.serve(store, config, sockets)
            finally:
                stop.set()

        server = tasks.spawn("api server", serve)
        controllers.start()
        await stop.wait()
        await controllers.close()
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


def _listen_inside() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("0.0.0.0", API_PORT_INSIDE))
    sock.listen(1024)
    return sock


if __name__ == "__main__":
    sys.exit(main())
