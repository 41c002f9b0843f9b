"""Feed ``World`` from a folder of YAML, watching it: the mesh without Kubernetes (``--configDir``).

In: files ``*.yaml``, ``*.yml``, ``*.json`` with the mesh's kinds and with Services, EndpointSlices, Pods,
Nodes, Namespaces, Secrets, Ingresses. Out: calls of the world's methods. Promises: a file that cannot be read keeps its
last good objects and is reported; a later definition of the same object in another file is reported and ignored.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import structlog

from meltemi.adapters.world import World
from meltemi.config.decode import load
from meltemi.config.kinds import KINDS
from meltemi.config.yaml_source import parse_yaml
from meltemi.model import kubernetes as k8s
from meltemi.model.config import AnyConfig, Key
from meltemi.model.origin import Finding, Level

log = structlog.get_logger("files")
POLL_S = 0.5
SUFFIXES = frozenset({".yaml", ".yml", ".json"})
CLUSTER_SCOPED = frozenset({"Namespace", "Node", "IngressClass"})
FILE_MAX = 16 * 1024 * 1024


@dataclass(slots=True)
class _File:
    """What one file gave."""

    stamp: tuple[int, int] = (0, 0)
    objects: dict[Key, AnyConfig | None] = field(default_factory=dict)
    findings: dict[Key, list[Finding]] = field(default_factory=dict)


class FileSource:
    """One folder, subfolders included."""

    def __init__(self, folder: Path, world: World) -> None:
        self._folder = folder
        self._world = world
        self._files: dict[Path, _File] = {}
        self.findings: dict[Path, list[Finding]] = {}

    async def run(self) -> None:
        """Follow changes until cancelled. Call ``scan`` once before."""
        while True:
            await asyncio.sleep(POLL_S)
            self.scan()

    def scan(self) -> bool:
        """Read what changed; True when something did."""
        seen = self._stamps()
        changed = [p for p, stamp in seen.items() if self._known(p) != stamp]
        gone = [path for path in self._files if path not in seen]
        for path in gone:
            old = self._files.pop(path)
            self.findings.pop(path, None)
            self._drop(old.objects.keys() | old.findings.keys())
        for path in changed:
            self._read(path, seen[path])
        return bool(changed or gone)

    def _known(self, path: Path) -> tuple[int, int] | None:
        known = self._files.get(path)
        return known.stamp if known else None

    def _stamps(self) -> dict[Path, tuple[int, int]]:
        stamps = {}
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in SUFFIXES:
                try:
                    status = path.stat()
                except OSError:
                    continue
                stamps[path] = (status.st_mtime_ns, status.st_size)
        return stamps

    def _read(self, path: Path, stamp: tuple[int, int]) -> None:
        known = self._files.setdefault(path, _File())
        known.stamp = stamp
        try:
            if stamp[1] > FILE_MAX:
                raise ValueError(f"the file is larger than {FILE_MAX} bytes")
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            log.error("file not read; its last good objects stay", file=str(path), error=str(error))
            return
        raws, findings = parse_yaml(text, str(path))
        self.findings[path] = findings
        broken = [f for f in findings if f.level is Level.ERROR]
        for finding in broken:
            log.error("file is wrong", finding=str(finding))
        if broken and not raws:
            return
        fresh = _File(stamp)
        for raw in raws:
            config, found = load(raw)
            namespace = raw.namespace or ("" if raw.kind in CLUSTER_SCOPED else "default")
            key = Key(raw.kind, namespace, raw.name)
            if config is None and not found:
                continue
            if self._owner(key) not in (None, path):
                log.warning(
                    "object is defined twice; this one is ignored", file=str(path), key=str(key)
                )
                continue
            if config is not None and config.meta.namespace != namespace:
                config = replace(config, meta=replace(config.meta, namespace=namespace))
            fresh.objects[key] = config
            fresh.findings[key] = found
        self._files[path] = fresh
        self._drop((known.objects.keys() | known.findings.keys()) - fresh.objects.keys())
        for key, config in fresh.objects.items():
            self._put(key, config, fresh.findings[key])

    def _owner(self, key: Key) -> Path | None:
        return next((path for path, file in self._files.items() if key in file.objects), None)

    def _put(self, key: Key, config: AnyConfig | None, findings: list[Finding]) -> None:
        if key.kind in KINDS:
            self._world.put_config(key, config, findings)
            return
        for finding in findings:
            log.error("object is wrong", finding=str(finding))
        if config is None:
            self._world.drop_native(key.kind, key.namespace, key.name)
        elif isinstance(config.spec, k8s.K8s):
            self._world.put_native(_placed(config.spec, key))

    def _drop(self, keys: set[Key]) -> None:
        for key in keys:
            if key.kind in KINDS:
                self._world.drop_config(key)
            else:
                self._world.drop_native(key.kind, key.namespace, key.name)


def _placed(value: k8s.K8s, key: Key) -> k8s.K8s:
    """The object with its namespace filled in, as an API server would."""
    metadata: k8s.ObjectMeta = value.metadata  # type: ignore[attr-defined]
    if metadata.namespace == key.namespace:
        return value
    placed = msgspec.structs.replace(metadata, namespace=key.namespace)
    return msgspec.structs.replace(value, metadata=placed)
