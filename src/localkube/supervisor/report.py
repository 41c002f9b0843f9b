"""What `localkube status` tells: the cluster as data, and as a table for people.

In: API answers. Out: a plain dict (for -o json and yaml) and rich tables.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from localkube.supervisor.readiness import ApiProbe, condition_true
from localkube.supervisor.state import StateDirectory

if TYPE_CHECKING:
    from rich.console import RenderableType

FORWARDED_PORTS = "localkube/forwarded-ports"


def collect(state: StateDirectory, port: int, pid: int) -> dict[str, Any]:
    """Ask the API server for everything that status shows."""
    probe = ApiProbe(state, port)
    ready = probe.api_ready()
    result: dict[str, Any] = {
        "name": state.name,
        "running": True,
        "pid": pid,
        "server": f"https://127.0.0.1:{port}",
        "ready": ready,
        "kubeconfig": str(state.kubeconfig),
        "logs": str(state.logs),
        "nodes": [],
        "pods": [],
        "services": [],
    }
    if ready:
        for field, path, describe in (
            ("nodes", "/api/v1/nodes", _node),
            ("pods", "/api/v1/pods", _pod),
            ("services", "/api/v1/services", _service),
        ):
            listing = probe.get_json(path, timeout=5.0) or {}
            result[field] = [describe(item) for item in listing.get("items") or []]
    probe.close()
    return result


def _node(node: dict[str, Any]) -> dict[str, Any]:
    return {"name": node["metadata"]["name"], "ready": condition_true(node, "Ready")}


def _pod(pod: dict[str, Any]) -> dict[str, Any]:
    meta, status = pod["metadata"], pod.get("status", {})
    containers = status.get("containerStatuses") or []
    total = len(pod["spec"].get("containers") or [])
    phase = "Terminating" if meta.get("deletionTimestamp") else status.get("phase", "Pending")
    for container in [*(status.get("initContainerStatuses") or []), *containers]:
        state = container.get("state") or {}
        reason = (state.get("waiting") or {}).get("reason")
        if reason and reason not in ("PodInitializing", "ContainerCreating"):
            phase = reason
    return {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "ready": f"{sum(bool(c.get('ready')) for c in containers)}/{total}",
        "status": phase,
        "restarts": sum(int(c.get("restartCount") or 0) for c in containers),
        "ip": status.get("podIP", ""),
    }


def _service(service: dict[str, Any]) -> dict[str, Any]:
    meta, spec = service["metadata"], service["spec"]
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress") or []
    forwarded = (meta.get("annotations") or {}).get(FORWARDED_PORTS, "")
    return {
        "namespace": meta["namespace"],
        "name": meta["name"],
        "type": spec.get("type", "ClusterIP"),
        "clusterIP": spec.get("clusterIP", ""),
        "address": ingress[0].get("ip", "") if ingress else "",
        "ports": [port["port"] for port in spec.get("ports") or []],
        "forwardedPorts": dict(
            pair.split("=", 1) for pair in forwarded.split(",") if pair.count("=") == 1
        ),
    }


def tables(report: dict[str, Any]) -> Iterable["RenderableType"]:
    """The same for people."""
    from rich.table import Table
    from rich.text import Text

    yield Text.assemble(
        ("localkube ", "bold"),
        (report["name"], "bold cyan"),
        f"  {report['server']}  ",
        ("ready", "green") if report["ready"] else ("not ready", "red"),
        f"  (pid {report['pid']})",
    )
    nodes = Table("NODE", "READY", box=None, pad_edge=False)
    for node in report["nodes"]:
        nodes.add_row(node["name"], "yes" if node["ready"] else "no")
    yield nodes
    pods = Table("NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "IP", box=None, pad_edge=False)
    for pod in report["pods"]:
        pods.add_row(
            pod["namespace"],
            pod["name"],
            pod["ready"],
            pod["status"],
            str(pod["restarts"]),
            pod["ip"],
        )
    if pods.row_count:
        yield pods
    services = Table("NAMESPACE", "SERVICE", "TYPE", "ON THIS MACHINE", box=None, pad_edge=False)
    for service in report["services"]:
        if service["type"] == "LoadBalancer":
            services.add_row(
                service["namespace"], service["name"], service["type"], _reachable(service)
            )
    if services.row_count:
        yield services


def _reachable(service: dict[str, Any]) -> str:
    if not service["address"]:
        return "pending"
    places = []
    for port in service["ports"]:
        forwarded = service["forwardedPorts"].get(str(port))
        note = f" (for {port})" if forwarded else ""
        places.append(f"{service['address']}:{forwarded or port}{note}")
    return ", ".join(places)
