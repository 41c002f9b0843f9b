"""The environment of a proxy on a machine, from a folder of files.

In: the folder (``agent.machine`` names the files) and the environment of the process, which comes first. Out: the variables that a
pod would have from its manifest.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from meltemi.agent import machine

_ANYWHERE = (
    "192.0.2.1",
    9,
)  # nothing is sent there: the route to it tells the machine's own address


class MachineFilesError(Exception):
    """The folder does not describe a machine; the text says why."""


def machine_environment(
    folder: Path, present: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The whole environment, and messages about what was wrong.

    :raises MachineFilesError: when a file is missing or unreadable.
    """
    found, problems = machine.parse_environment(_read(folder / machine.ENVIRONMENT))
    environment = {**found, **present}
    mesh = _yaml(folder / machine.MESH)
    settings = machine.settings_of(mesh, environment.get("PROXY_CONFIG", ""))
    environment["PROXY_CONFIG"] = json.dumps(settings)
    for name, file in (("XDS_ROOT_CA", machine.ROOT), ("MESH_TOKEN_FILE", machine.TOKEN)):
        environment.setdefault(name, str(folder / file))
    _read(Path(environment["XDS_ROOT_CA"]))
    environment.setdefault("POD_NAME", socket.gethostname())
    if not environment.get("INSTANCE_IP"):
        address = str(settings.get("discoveryAddress") or "")
        environment["INSTANCE_IP"] = environment.get("ISTIO_SVC_IP") or _own_address(address)
    return environment, problems


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MachineFilesError(
            f"{path}: {reason}; meltemi x workload entry configure writes the files of a machine"
        ) from error


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        raise MachineFilesError(f"{path}: this is not YAML: {error}") from error


def _own_address(istiod: str) -> str:
    """The address from which this machine reaches istiod, else the world."""
    host, _, port = istiod.rpartition(":")
    for target in ((host.strip("[]"), int(port) if port.isdecimal() else 15012), _ANYWHERE):
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(
                *target, type=socket.SOCK_DGRAM
            ):
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(address)
                    return str(probe.getsockname()[0])
        except OSError:
            continue
    raise MachineFilesError(
        "this machine's address cannot be found out; set ISTIO_SVC_IP in cluster.env"
    )
