"""The mesh's settings as they are now: ConfigMaps ``istio`` and ``istio-sidecar-injector``, or a file.

In: the ConfigMaps' data, or a file's text. Out: ``World.set_mesh`` and the injection settings. Promises: text that
cannot be used is reported and leaves the last good settings in force.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog

from meltemi.adapters.kube_api import KubeApi, KubeError, collection
from meltemi.adapters.world import World
from meltemi.config.mesh import parse_mesh_config, parse_mesh_networks
from meltemi.inject import InjectionConfig, parse_injection_config
from meltemi.kit.backoff import Backoff
from meltemi.model.mesh import DEFAULT_MESH_CONFIG, MeshConfig
from meltemi.model.origin import Level

log = structlog.get_logger("mesh")
POLL_S = 1.0
SOURCE = "ConfigMap istio, key mesh"


def read_mesh(text: str, source: str) -> MeshConfig | None:
    """The mesh configuration of a text; None when it cannot be used (what is wrong is logged)."""
    mesh, findings = parse_mesh_config(text, source)
    for finding in findings:
        report = log.error if finding.level is Level.ERROR else log.warning
        report("mesh configuration", finding=str(finding))
    return None if any(f.level is Level.ERROR for f in findings) else mesh


async def first_mesh(api: KubeApi | None, path: Path, namespace: str, name: str) -> MeshConfig:
    """The mesh configuration to start with: the trust domain is needed before anything else.

    The mounted file is the same ConfigMap (``namespace``, ``name``). Without it the API server is asked, until it answers: to begin
    with another trust domain would give every workload a wrong name.
    """
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            log.warning("mesh configuration not read", file=str(path), error=str(error))
        else:
            return read_mesh(text, str(path)) or DEFAULT_MESH_CONFIG
    if api is None:
        return DEFAULT_MESH_CONFIG
    url = collection("v1", "configmaps", namespace, name)
    backoff = Backoff(0.1, 5.0)
    while True:
        try:
            data = (await api.json("GET", url)).get("data") or {}
        except KubeError as error:
            if error.code == 404:
                return DEFAULT_MESH_CONFIG
            log.warning("mesh configuration not read yet", error=str(error))
            await asyncio.sleep(backoff.next())
        else:
            return read_mesh(data.get("mesh", ""), SOURCE) or DEFAULT_MESH_CONFIG


class MeshSettings:
    """Keeps the world's mesh configuration and the injector's settings level with their sources."""

    def __init__(self, world: World, revision: str) -> None:
        self._world = world
        self._revision = "" if revision == "default" else revision
        self.injection = replace(InjectionConfig(), revision=self._revision)

    def take_mesh(self, data: Mapping[str, str]) -> None:
        """ConfigMap ``istio``. One that is gone leaves the last settings."""
        if "meshNetworks" in data:
            self._take_networks(data["meshNetworks"])
        if "mesh" not in data:
            return
        mesh = read_mesh(data["mesh"], SOURCE)
        if mesh is None:
            return
        if mesh.trust_domain != self._world.settings.trust_domain:
            log.warning(
                "trustDomain changed; it takes effect when istiod starts again",
                running=self._world.settings.trust_domain,
                wanted=mesh.trust_domain,
            )
        self._world.set_mesh(mesh)

    def _take_networks(self, text: str) -> None:
        networks, findings = parse_mesh_networks(text, "ConfigMap istio, key meshNetworks")
        for finding in findings:
            log.error("networks of the mesh", finding=str(finding))
        if not any(finding.level is Level.ERROR for finding in findings):
            self._world.set_networks(networks)

    def take_injection(self, data: Mapping[str, str]) -> None:
        """ConfigMap ``istio-sidecar-injector``."""
        if not data:
            return
        settings, problems = parse_injection_config(data.get("config", ""), data.get("values", ""))
        for problem in problems:
            log.error("injection settings", problem=problem)
        self.injection = replace(settings, revision=settings.revision or self._revision)

    async def follow_file(self, path: Path) -> None:
        """Read a mesh configuration file whenever it changes, until cancelled."""
        stamp: tuple[int, int] | None = None
        while True:
            try:
                status = path.stat()
                fresh = (status.st_mtime_ns, status.st_size)
                if fresh != stamp:
                    stamp = fresh
                    mesh = read_mesh(path.read_text(encoding="utf-8"), str(path))
                    if mesh is not None:
                        self._world.set_mesh(mesh)
            except (OSError, UnicodeDecodeError) as error:
                if stamp is not None:
                    log.warning("mesh configuration not read", file=str(path), error=str(error))
                stamp = None
            await asyncio.sleep(POLL_S)
