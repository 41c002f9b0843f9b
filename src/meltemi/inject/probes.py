"""Send a kubelet's probes of the application through Envoy's health listener.

In: a pod's containers. Out: the same containers with probes and HTTP lifecycle hooks pointed at the health
port, and the JSON from which the agent builds the listener (``agent.probes``). Without this, a kubelet's
plaintext HTTP probe fails where mTLS is strict, and a TCP probe succeeds whenever Envoy listens. Exec probes
and probes of other hosts stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PROBES = {"livenessProbe": "livez", "readinessProbe": "readyz", "startupProbe": "startupz"}
_HOOKS = {"preStop": "prestopz", "postStart": "poststartz"}
_KEPT = ("timeoutSeconds", "periodSeconds")


def rewrite_probes(
    containers: list[dict[str, Any]], health_port: int, skip: str
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """New containers, the probes by path, and errors. ``skip`` is the proxy's own container."""
    probes: dict[str, Any] = {}
    errors: list[str] = []
    made = []
    for container in containers:
        if container.get("name") == skip:
            made.append(container)
            continue
        made.append(_rewrite(container, health_port, probes, errors))
    return made, probes, errors


def _rewrite(
    container: dict[str, Any], health_port: int, probes: dict[str, Any], errors: list[str]
) -> dict[str, Any]:
    name = str(container.get("name"))
    changed = dict(container)
    for kind, path in _PROBES.items():
        probe = container.get(kind)
        if probe:
            where = f"container {name}, {kind}"
            target = f"/app-health/{name}/{path}"
            changed[kind] = _one(container, probe, health_port, target, probes, errors, where)
    lifecycle = container.get("lifecycle") or {}
    for kind, path in _HOOKS.items():
        hook = lifecycle.get(kind)
        if hook and "httpGet" in hook:
            target = f"/app-lifecycle/{name}/{path}"
            where = f"container {name}, {kind}"
            new = _one(container, hook, health_port, target, probes, errors, where)
            changed["lifecycle"] = {**(changed.get("lifecycle") or {}), kind: new}
    return changed


def _one(
    container: Mapping[str, Any],
    probe: dict[str, Any],
    health_port: int,
    path: str,
    probes: dict[str, Any],
    errors: list[str],
    where: str,
) -> dict[str, Any]:
    action = next((kind for kind in ("httpGet", "tcpSocket", "grpc") if probe.get(kind)), "")
    if not action or probe[action].get("host"):
        return probe
    port = resolve_port(container, probe[action].get("port"))
    if port is None:
        errors.append(
            f"{where}: port {probe[action].get('port')!r} is neither a number nor the name of a port of "
            "the container; correct it, or set annotation sidecar.istio.io/rewriteAppHTTPProbers to "
            '"false"'
        )
        return probe
    if port == health_port:
        return probe
    entry: dict[str, Any] = {action: {**probe[action], "port": port}}
    entry.update({key: probe[key] for key in _KEPT if key in probe})
    probes[path] = entry
    rest = {key: value for key, value in probe.items() if key != action}
    return {**rest, "httpGet": {"path": path, "port": health_port}}


def resolve_port(container: Mapping[str, Any], port: Any) -> int | None:
    """The number of a port that may be a name, or None when the container has no such port."""
    if isinstance(port, int):
        return port
    if isinstance(port, str) and port.isascii() and port.isdecimal():
        return int(port)
    for declared in container.get("ports") or ():
        if port and declared.get("name") == port:
            return int(declared["containerPort"])
    return None
