"""A captured pod whose proxy has the application's own user: only the socket mark tells them apart.

Run as a program: ``captured_proxy.py DIRECTORY``. istiod runs in the neighbouring network namespace, behind the
captured path, so both the certificate request and Envoy's stream need the mark. Prints what happened as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent.capture_world import NEIGHBOUR, POD, build_world, call
from agent.control_plane import Authority, ControlPlane
from agent.world import Application, Container
from meltemi.adapters.capture_nft import apply_rules
from meltemi.agent.capture import CaptureConfig, build_rules

PORT = 15012


def main() -> None:
    directory = Path(sys.argv[1])
    authority = Authority()

    def start() -> None:
        plane = ControlPlane(authority, port=PORT, host=NEIGHBOUR)
        shape = Container(directory / "neighbour", plane)
        shape.admin, shape.inbound = 15000, 15006
        shape.serve(Application())
        plane.start()

    (directory / "neighbour").mkdir()
    (directory / "pod").mkdir()
    neighbour = build_world(start)  # its pipes keep the neighbour alive
    apply_rules(build_rules(CaptureConfig()))
    container = Container(directory / "pod", ControlPlane(authority, port=PORT))
    container.config = {"discoveryAddress": f"{NEIGHBOUR}:{PORT}"}
    container.environment = {"ISTIO_META_INTERCEPTION_MODE": "REDIRECT", "INSTANCE_IP": POD}
    container.start()
    try:
        container.await_ready()
        node = json.loads((directory / "pod" / "proxy" / "envoy-rev.json").read_text())["node"]
        stats = container.get(container.admin, "/stats?filter=control_plane.connected_state")[1]
        print(
            json.dumps(
                {
                    "mark": node["metadata"].get("MESH_SO_MARK"),
                    "stream": stats.strip(),
                    "application": call((NEIGHBOUR, PORT)),
                }
            )
        )
    finally:
        container.signal()
        container.wait()
        container.close()
        del neighbour


if __name__ == "__main__":
    main()
