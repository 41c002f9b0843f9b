"""What of the host a container sees: its mount plan, capabilities and basic variables.

In: a container's spec, its image, its pod's files. Out: ``Plan`` and ``ProcessSpec`` for the fork
server. Promises: containers see the host's programs read-only; dot entries of home directories
and localkube's own state stay hidden unless Python or a catalogue lies in them.

Every process of a pod runs as uid 0 of its user namespace, which is the user who started localkube
(rootless), or as root. Only that one uid is mapped, so runAsUser, runAsGroup and fsGroup are
accepted but have no effect.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from localkube.node.catalogue import SYSTEM_PATH, Image
from localkube.node.runtime.rootfs import Plan, VolumeMount
from localkube.node.runtime.syscalls import CAPABILITIES

# What container engines give by default.
DEFAULT_CAPABILITIES: Final = frozenset(
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "  # noqa: SIM905
    "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE".split()
)
_OWN_TOP_LEVEL: Final = frozenset(
    {"proc", "sys", "dev", "tmp", "run", "var", "root", "home", "boot", "lost+found"}
)


class HostView:
    """The host directories that every container of this node sees."""

    def __init__(self, staging: Path, state_dir: Path, extra: Iterable[str] = ()) -> None:
        self._staging = str(staging)
        self._hide = [str(state_dir)]
        top = [
            str(path)
            for path in sorted(Path("/").iterdir())
            if path.name not in _OWN_TOP_LEVEL and path.name[0] != "." and _shown(str(path))
        ]
        candidates = dict.fromkeys([str(Path.home()), "/root"])
        self._homes = [
            home
            for home in candidates
            if home != "/" and os.access(home, os.R_OK | os.X_OK) and not _below(home, top)
        ]
        self._top = top
        self._extra = [*_python_directories()]
        self.set_extra(extra)

    def set_extra(self, directories: Iterable[str]) -> None:
        """Also show these directories (of catalogues), wherever they are."""
        wanted = {os.path.realpath(path) for path in [*self._extra, *directories]}
        needed = sorted(path for path in wanted if _shown(path) and not self._covered(path))
        # A parent first, and nothing twice.
        self._needed = [p for p in needed if not _below(p, [o for o in needed if o != p])]

    def _covered(self, path: str) -> bool:
        if _below(path, self._top):
            return True
        for home in self._homes:
            if path.startswith(f"{home}/"):
                return not path[len(home) + 1 :].startswith(".")
        return False

    def build_plan(
        self,
        container: Mapping[str, Any],
        files: Mapping[str, str],
        volumes: list[VolumeMount],
        working_dir: str,
    ) -> Plan:
        """Return the mount plan of one container."""
        security = container.get("securityContext") or {}
        return Plan(
            staging=self._staging,
            host_dirs=[*self._top, *self._needed],
            homes=self._homes,
            hide=self._hide,
            files=dict(files),
            volumes=volumes,
            working_dir=working_dir,
            read_only=bool(security.get("readOnlyRootFilesystem")),
            privileged=bool(security.get("privileged")),
        )


def _shown(path: str) -> bool:
    place = Path(path)
    return place.is_dir() and not place.is_symlink() and os.access(path, os.X_OK)


def _below(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


def _python_directories() -> list[str]:
    """Return where this Python and its packages are (the built-in images run it)."""
    places = [sys.prefix, sys.base_prefix, str(Path(sys.executable).parent)]
    return [*places, *(path for path in sys.path if path and Path(path).is_dir())]


def resolve_capabilities(container: Mapping[str, Any], image: Image) -> frozenset[str]:
    """Return the capabilities of a container: defaults, minus drop, plus add, plus the image's."""
    security = container.get("securityContext") or {}
    if security.get("privileged"):
        return frozenset(CAPABILITIES)
    wanted = security.get("capabilities") or {}
    result = set(DEFAULT_CAPABILITIES)
    for name in wanted.get("drop") or []:
        if name.upper() == "ALL":
            result.clear()
        result.discard(name.upper().removeprefix("CAP_"))
    for name in wanted.get("add") or []:
        if name.upper() == "ALL":
            result.update(CAPABILITIES)
        result.add(name.upper().removeprefix("CAP_"))
    return frozenset(result) | image.capabilities


def resolve_command(container: Mapping[str, Any], image: Image) -> tuple[list[str], list[str]]:
    """Return command and arguments: those of the pod replace those of the image."""
    command = container.get("command") or []
    args = container.get("args")
    if command:
        return list(command), list(args or [])
    return list(image.command), list(image.args if args is None else args)


def base_environment(hostname: str, tty: bool) -> dict[str, str]:
    """Return the variables that every container has."""
    values = {
        "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
        "HOME": "/root",
        "HOSTNAME": hostname,
    }
    if tty:
        values["TERM"] = "xterm"
    return values
