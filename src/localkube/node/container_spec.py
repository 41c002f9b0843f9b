"""What exactly a container runs: command, variables, rights and mounts.

In: pod, container, image, the pod's prepared volumes. Out: values for the fork server. Only reads,
but for what mounts need: empty files, subPath directories, scripts for an image's programs.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localkube.node.catalogue import SYSTEM_PATH, Image
from localkube.node.environment import build_environment, build_service_variables, expand
from localkube.node.hostview import base_environment, resolve_capabilities, resolve_command
from localkube.node.node_services import NodeServices
from localkube.node.podfiles import pod_hostname
from localkube.node.runtime.processes import ProcessSpec
from localkube.node.runtime.rootfs import Plan, VolumeMount
from localkube.node.volumes import is_projection

_PROGRAMS = "/usr/local/bin"  # where an image's programs without a path of their own are


@dataclass(frozen=True, slots=True)
class PodPlaces:
    """Where a pod's things are on the host."""

    volumes: Mapping[str, Path]
    memory_dir: Path
    termination_file: Callable[[str], Path]


def describe_container(
    node: NodeServices,
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    image: Image,
    places: PodPlaces,
) -> tuple[ProcessSpec, Plan, str]:
    """Return process, mounts and working directory. Raises MissingReference, OSError."""
    env = _environment(node, pod, container, image)
    command, args = resolve_command(container, image)
    words = tuple(expand(word, env) for word in [*command, *args])
    if not words:
        raise OSError(f"neither the pod nor the catalogue ({image.source}) names a command")
    security = container.get("securityContext") or {}
    spec = ProcessSpec(
        words,
        env,
        resolve_capabilities(container, image),
        no_new_privileges=not security.get("privileged"),
        tty=bool(container.get("tty")),
    )
    cwd = container.get("workingDir") or image.working_dir
    mounts = _mounts(pod, container, env, places.volumes)
    files = _files(container, places) | _programs(container["name"], image, places)
    return spec, node.view.build_plan(container, files, mounts, cwd), cwd


def _environment(
    node: NodeServices, pod: Mapping[str, Any], container: Mapping[str, Any], image: Image
) -> dict[str, str]:
    namespace = pod["metadata"]["namespace"]
    links = pod["spec"].get("enableServiceLinks") is not False
    hostname = node.name if pod["spec"].get("hostNetwork") else pod_hostname(pod)
    env = base_environment(hostname, bool(container.get("tty")))
    env.update(image.env)
    env.update(
        build_environment(
            pod,
            container,
            lambda kind, name: node.objects.text((kind, namespace, name)),
            node.resources,
            build_service_variables(node.services(), namespace, links),
        )
    )
    return env


def _files(container: Mapping[str, Any], places: PodPlaces) -> dict[str, str]:
    """Return the node's own files in the container, but those that the pod mounts itself."""
    etc = places.memory_dir / "etc"
    message = places.termination_file(container["name"])
    message.parent.mkdir(parents=True, exist_ok=True)
    message.touch()
    path = container.get("terminationMessagePath") or "/dev/termination-log"
    files = {f"/etc/{name}": str(etc / name) for name in ("resolv.conf", "hosts", "hostname")}
    files[path] = str(message)
    mounted = {m["mountPath"] for m in container.get("volumeMounts") or []}
    return {target: source for target, source in files.items() if target not in mounted}


def _programs(container: str, image: Image, places: PodPlaces) -> dict[str, str]:
    """Return scripts for the image's programs that this machine lacks, by their path in the container."""
    found = {}
    for name, command in image.programs.items():
        path = name if name.startswith("/") else f"{_PROGRAMS}/{name}"
        if Path(path).exists() or (path != name and shutil.which(name, path=SYSTEM_PATH)):
            continue
        script = places.memory_dir / "programs" / container / path.strip("/").replace("/", "-")
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        script.chmod(0o755)
        found[path] = str(script)
    return found


def _mounts(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    env: Mapping[str, str],
    volumes: Mapping[str, Path],
) -> list[VolumeMount]:
    projections = {v["name"] for v in pod["spec"].get("volumes") or [] if is_projection(v)}
    mounts = []
    for mount in container.get("volumeMounts") or []:
        name = mount["name"]
        source = volumes[name]
        sub_path = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
        if sub_path:
            source = _inner(source, sub_path, name)
        read_only = bool(mount.get("readOnly")) or name in projections
        mounts.append(
            VolumeMount(source=str(source), target=mount["mountPath"], read_only=read_only)
        )
    # A mount inside another comes after it.
    return sorted(mounts, key=lambda m: m["target"].count("/"))


def _inner(source: Path, sub_path: str, name: str) -> Path:
    inner = (source / sub_path).resolve()
    if not inner.is_relative_to(source.resolve()):
        raise OSError(f"subPath {sub_path!r} leads out of volume {name}")
    if not inner.exists():
        inner.mkdir(parents=True)
    return inner
