"""A pod's volumes as directories of the host.

In: the pod, data of referenced objects, tokens. Out: a path per volume, to be bound into
containers. Promises: configMap, secret, projected and downwardAPI volumes change atomically, by the
kubelet's scheme (visible names are links through ``..data``, which is replaced by one rename);
their files lie in memory only.
"""

from __future__ import annotations

import secrets
import shutil
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from localkube.kit import namespaces as ns
from localkube.node.environment import (
    MissingReference,
    NodeResources,
    parse_quantity,
    resolve_field,
    resolve_resource,
)

DATA_LINK: Final = "..data"
_DEFAULT_MODE: Final = 0o644
_TYPE_CHECKS: Final = {
    "Directory": stat.S_ISDIR,
    "File": stat.S_ISREG,
    "Socket": stat.S_ISSOCK,
    "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}

Payload = dict[str, tuple[bytes, int]]
"""Relative path -> (content, mode)."""
DataLookup = Callable[[str, str], Mapping[str, bytes] | None]
"""(``ConfigMap`` or ``Secret``, name) -> data, None if it does not exist."""
TokenSource = Callable[[str, int], Awaitable[bytes]]
"""(audience, lifetime in seconds) -> a service account token of the pod."""


class VolumeError(Exception):
    """A volume cannot be made; the text says which and why."""


@dataclass(frozen=True, slots=True)
class VolumeContext:
    """What volumes of one pod are made from, and where."""

    memory_dir: Path  # on a tmpfs: everything that may be secret
    disk_dir: Path  # emptyDir
    lookup: DataLookup
    token: TokenSource
    node: NodeResources


def write_atomically(directory: Path, payload: Payload) -> bool:
    """Make ``payload`` the content of ``directory`` in one step; return whether it changed."""
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / DATA_LINK
    old = directory / link.readlink() if link.is_symlink() else None
    if old is not None and _read_payload(old) == payload:
        return False
    new = directory / f"..{secrets.token_hex(6)}"
    new.mkdir(mode=0o755)
    for name, (content, mode) in payload.items():
        file = new / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(mode)
    temporary = directory / f"{DATA_LINK}_tmp"
    temporary.symlink_to(new.name)
    temporary.replace(link)
    wanted = {name.split("/", 1)[0] for name in payload}
    for name in wanted:
        visible = directory / name
        if not visible.is_symlink():
            visible.symlink_to(f"{DATA_LINK}/{name}")
    for entry in directory.iterdir():
        if not entry.name.startswith("..") and entry.name not in wanted:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return True


def _read_payload(directory: Path) -> Payload:
    return {
        str(path.relative_to(directory)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in directory.rglob("*")
        if path.is_file()
    }


def select_items(
    data: Mapping[str, bytes], source: Mapping[str, Any], default_mode: int, what: str
) -> Payload:
    """Return the files of one ConfigMap or Secret source: all keys, or its ``items``."""
    items: Sequence[Mapping[str, Any]] = source.get("items") or []
    if not items:
        return {key: (value, default_mode) for key, value in data.items()}
    payload: Payload = {}
    for item in items:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise VolumeError(f"{what} references non-existent key: {item['key']}")
        payload[_safe(item["path"])] = (data[item["key"]], item.get("mode") or default_mode)
    return payload


def _safe(path: str) -> str:
    if path.startswith(("/", "..")) or ".." in path.split("/"):
        raise VolumeError(f"path {path!r} must be relative and must not contain '..'")
    return path


class PodVolumes:
    """All volumes of one pod."""

    def __init__(self, context: VolumeContext) -> None:
        self._context = context
        self._mounted: list[Path] = []

    async def prepare(self, pod: Mapping[str, Any]) -> dict[str, Path]:
        """Make every volume; raise VolumeError for the first that cannot be made."""
        paths: dict[str, Path] = {}
        for volume in pod["spec"].get("volumes") or []:
            name = volume["name"]
            try:
                paths[name] = await self._prepare_one(pod, volume)
            except (MissingReference, VolumeError) as error:
                raise VolumeError(
                    f'MountVolume.SetUp failed for volume "{name}": {error}'
                ) from None
            except OSError as error:
                raise VolumeError(f'volume "{name}": {error}') from error
        return paths

    async def refresh(self, pod: Mapping[str, Any]) -> None:
        """Bring changed ConfigMaps, Secrets, fields and tokens into the running pod."""
        for volume in pod["spec"].get("volumes") or []:
            if is_projection(volume):
                try:
                    payload = await self._payload(pod, volume)
                except (MissingReference, VolumeError):
                    continue  # as the kubelet: the last good content stays
                write_atomically(self._context.memory_dir / volume["name"], payload)

    def remove(self) -> None:
        """Delete everything of the pod."""
        for path in self._mounted:
            try:
                ns.umount(path)
            except OSError:
                continue
        self._mounted.clear()
        shutil.rmtree(self._context.memory_dir, ignore_errors=True)
        shutil.rmtree(self._context.disk_dir, ignore_errors=True)

    async def _prepare_one(self, pod: Mapping[str, Any], volume: Mapping[str, Any]) -> Path:
        name: str = volume["name"]
        if volume.get("emptyDir") is not None:
            return self._empty_dir(name, volume["emptyDir"])
        if volume.get("hostPath"):
            return _host_path(volume["hostPath"])
        if is_projection(volume):
            directory = self._context.memory_dir / name
            write_atomically(directory, await self._payload(pod, volume))
            return directory
        kinds = sorted(volume.keys() - {"name"})
        raise VolumeError(
            f"volumes of type {', '.join(kinds) or '(none)'} are not available on this node; "
            "use emptyDir, hostPath, configMap, secret, projected or downwardAPI"
        )

    def _empty_dir(self, name: str, source: Mapping[str, Any]) -> Path:
        if source.get("medium") != "Memory":
            directory = self._context.disk_dir / name
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o777)
            return directory
        directory = self._context.memory_dir / name
        if directory not in self._mounted:
            directory.mkdir(parents=True, exist_ok=True)
            limit = source.get("sizeLimit")
            size = ""
            if limit:
                size = f",size={int(parse_quantity(limit))}"
            flags = ns.MS_NOSUID | ns.MS_NODEV
            ns.mount("tmpfs", str(directory), "tmpfs", flags, f"mode=777{size}")
            self._mounted.append(directory)
        return directory

    async def _payload(self, pod: Mapping[str, Any], volume: Mapping[str, Any]) -> Payload:
        projected = volume.get("projected")
        if projected is None:
            source = volume.get("configMap") or volume.get("secret") or volume["downwardAPI"]
            mode = source.get("defaultMode")
            return await self._source(pod, volume, _DEFAULT_MODE if mode is None else mode)
        mode = projected.get("defaultMode")
        payload: Payload = {}
        for source in projected.get("sources") or []:
            payload.update(await self._source(pod, source, _DEFAULT_MODE if mode is None else mode))
        return payload

    async def _source(
        self, pod: Mapping[str, Any], source: Mapping[str, Any], mode: int
    ) -> Payload:
        if source.get("downwardAPI") is not None:
            return self._downward(pod, source["downwardAPI"], mode)
        if source.get("serviceAccountToken") is not None:
            token = source["serviceAccountToken"]
            value = await self._context.token(
                token.get("audience") or "", token.get("expirationSeconds") or 3600
            )
            # The kubelet makes tokens private, whatever the default mode says.
            return {_safe(token["path"]): (value, 0o600)}
        for kind, key in (("ConfigMap", "configMap"), ("Secret", "secret")):
            reference = source.get(key)
            if reference is None:
                continue
            name = reference.get("secretName") or reference.get("name") or ""
            data = self._context.lookup(kind, name)
            if data is None:
                if reference.get("optional"):
                    return {}
                raise VolumeError(f'{kind.lower()} "{name}" not found')
            return select_items(data, reference, mode, f"{kind.lower()} {name}")
        return {}  # clusterTrustBundle and what may come: nothing of it exists here

    def _downward(
        self, pod: Mapping[str, Any], source: Mapping[str, Any], default_mode: int
    ) -> Payload:
        payload: Payload = {}
        spec = pod["spec"]
        containers = {
            c["name"]: c for c in [*(spec.get("initContainers") or []), *spec["containers"]]
        }
        for item in source.get("items") or []:
            if item.get("fieldRef"):
                text = resolve_field(pod, item["fieldRef"]["fieldPath"])
            else:
                reference = item["resourceFieldRef"]
                container = containers.get(reference.get("containerName", ""), {})
                text = resolve_resource(container, reference, self._context.node)
            payload[_safe(item["path"])] = (text.encode(), item.get("mode") or default_mode)
        return payload


def is_projection(volume: Mapping[str, Any]) -> bool:
    """Return whether a volume's files come from the API and change with it."""
    return any(
        volume.get(key) is not None for key in ("configMap", "secret", "projected", "downwardAPI")
    )


def _host_path(source: Mapping[str, Any]) -> Path:
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch(exist_ok=True)
    if not path.exists():
        raise VolumeError(f"hostPath {path} does not exist on this machine")
    check = _TYPE_CHECKS.get(kind)
    if check is not None and not check(path.stat().st_mode):
        raise VolumeError(f"hostPath {path} is not a {kind}")
    return path
