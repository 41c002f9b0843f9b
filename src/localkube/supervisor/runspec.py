"""What the supervisor tells its children, as one JSON argument.

Small and importing nothing heavy: it is read by every process of a cluster at its start.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

STATUS_VARIABLE: Final = "LOCALKUBE_STATUS"
API_SOCKET_VARIABLE: Final = "LOCALKUBE_API_SOCKET"
LOCK_VARIABLE: Final = "LOCALKUBE_LOCK"
NODE_IP: Final = "172.30.0.1"
API_PORT_INSIDE: Final = 6443


@dataclass(frozen=True)
class RunSpec:
    """One run of a cluster (or, without control_plane, of a node that joins another one)."""

    name: str
    state_dir: str
    api_port: int
    load_balancer_network: str
    control_plane: bool
    node: bool
    node_name: str
    node_kubeconfig: str
    catalogues: tuple[str, ...]
    drain_seconds: float = 45.0

    @property
    def isolated(self) -> bool:
        """Whether namespaces are made: pods need them, an API server alone does not."""
        return self.node

    @property
    def root(self) -> Path:
        """The state directory."""
        return Path(self.state_dir)

    def to_json(self) -> str:
        """The argument for a child."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "RunSpec":
        """Read a child's argument."""
        document = json.loads(text)
        document["catalogues"] = tuple(document["catalogues"])
        return cls(**document)


def report(event: str, **fields: Any) -> None:
    """Tell the supervisor something (a no-op in a process that has none)."""
    descriptor = os.environ.get(STATUS_VARIABLE)
    if descriptor:
        try:
            os.write(int(descriptor), (json.dumps({"event": event, **fields}) + "\n").encode())
        except OSError:
            pass  # the supervisor is gone, and we are about to be
