"""P3: the node agent as a process.

Started by init as `python -m localkube.supervisor.node_process RUNSPEC`, in the cluster's
namespaces. Waits for its kubeconfig (the control plane may be writing it right now), then runs the
agent until SIGTERM, which drains the pods.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Final

import structlog

from localkube.kit import logs
from localkube.kit import namespaces as ns
from localkube.node.agent import run as run_agent
from localkube.supervisor.runspec import RunSpec, report

_KUBECONFIG_DEADLINE: Final = 30.0  # seconds
_POLL: Final = 0.01

_log = structlog.get_logger("localkube.node_process")


def main() -> int:
    """Run the node agent until SIGTERM -> exit code."""
    spec = RunSpec.from_json(sys.argv[1])
    ns.die_with_parent(signal.SIGKILL)
    logs.configure("node")
    kubeconfig = Path(spec.node_kubeconfig)
    deadline = time.monotonic() + _KUBECONFIG_DEADLINE
    while not kubeconfig.exists():
        if time.monotonic() > deadline:
            message = f"there is no kubeconfig at {kubeconfig}"
            report("fatal", message=message)
            _log.error("cannot start", reason=message)
            return 1
        time.sleep(_POLL)
    asyncio.run(_run(spec, kubeconfig))
    return 0


async def _run(spec: RunSpec, kubeconfig: Path) -> None:
    agent = asyncio.ensure_future(
        run_agent(
            kubeconfig=kubeconfig,
            node_name=spec.node_name,
            state_dir=spec.root,
            catalogues=[Path(path) for path in spec.catalogues],
            # A cluster of our own is reached inside the namespaces, any other from the host.
            api_through_host=not spec.control_plane,
        )
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.cancel)
    try:
        await agent
    except asyncio.CancelledError:
        _log.info("drained")


if __name__ == "__main__":
    sys.exit(main())
