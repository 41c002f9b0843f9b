"""The Node object of this machine, its status and its heartbeat Lease.

In: name, addresses, port. Out: a Node that is Ready while the agent lives. Promises: an existing
Node keeps what others wrote on it; the heartbeat (every 10 s, as the kubelet's) goes on through any
API outage; a Node that was deleted is registered again.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError, PatchType
from localkube.client.resources import LEASES, NODES
from localkube.kit import clock
from localkube.kit.tasks import backoff
from localkube.node.environment import NodeResources

_HEARTBEAT_S: Final = 10.0
_STATUS_EVERY: Final = 30  # heartbeats: five minutes, the kubelet's figure
_LEASE_NAMESPACE: Final = "kube-node-lease"
_MAX_PODS: Final = 250
_KUBELET_VERSION: Final = "v1.37.0"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What the Node object says."""

    name: str
    ip: str
    port: int
    version: str


def read_resources(directory: Path) -> NodeResources:
    """Return what this machine has: processors, memory, free disk of ``directory``."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(directory).total
    return NodeResources(Decimal(os.cpu_count() or 1), Decimal(memory), Decimal(disk))


def build_status(
    identity: NodeIdentity, resources: NodeResources, now: str, old: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the Node's status."""
    amounts = {
        "cpu": str(resources.cpu),
        "memory": f"{int(resources.memory) // 1024}Ki",
        "ephemeral-storage": f"{int(resources.ephemeral_storage) // 1024}Ki",
        "pods": str(_MAX_PODS),
    }
    known = {c["type"]: c for c in old.get("conditions") or []}
    conditions = []
    for name, value, reason, message in (
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "memory is available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "disk space is available"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "process ids are available"),
        ("Ready", "True", "KubeletReady", "localkube node agent is ready"),
    ):
        before = known.get(name) or {}
        changed = before.get("status") != value
        conditions.append(
            {
                "type": name,
                "status": value,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": now if changed else before.get("lastTransitionTime", now),
            }
        )
    return {
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": conditions,
        "addresses": [
            {"type": "InternalIP", "address": identity.ip},
            {"type": "Hostname", "address": identity.name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": identity.port}},
        "nodeInfo": _node_info(identity),
    }


def _node_info(identity: NodeIdentity) -> dict[str, str]:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    boot_id = _read("/proc/sys/kernel/random/boot_id")
    machine_id = _read("/etc/machine-id")
    try:
        os_name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        os_name = "Linux"
    return {
        "architecture": machine,
        "operatingSystem": "linux",
        "kernelVersion": platform.release(),
        "osImage": os_name,
        "bootID": boot_id,
        "machineID": machine_id,
        "systemUUID": machine_id,
        "containerRuntimeVersion": f"localkube://{identity.version}",
        "kubeletVersion": f"{_KUBELET_VERSION}+localkube",
        "kubeProxyVersion": "",
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


class Registration:
    """Registers the Node and keeps it fresh."""

    def __init__(
        self, client: ApiClient, identity: NodeIdentity, resources: NodeResources, pod_cidr: str
    ) -> None:
        self._client = client
        self._identity = identity
        self._resources = resources
        self._pod_cidr = pod_cidr
        self._log = structlog.get_logger("localkube.node.registration")

    async def register(self) -> dict[str, Any]:
        """Create or complete the Node; return it. Waits for the API server as long as it takes."""
        attempt = 0
        while True:
            try:
                return await self._register()
            except (ApiStatusError, ApiConnectionError) as error:
                self._log.warning("node not registered yet", error=str(error))
            await asyncio.sleep(backoff(attempt, 0.1, 5.0))
            attempt += 1

    async def serve(self) -> None:
        """Send heartbeats until cancelled."""
        beats = 0
        while True:
            try:
                await self._renew_lease()
                if beats % _STATUS_EVERY == 0 and beats:
                    await self._register()
                beats += 1
            except ApiStatusError as error:
                self._log.warning("heartbeat refused", error=str(error))
            except ApiConnectionError as error:
                self._log.info("heartbeat not delivered", error=str(error))
            await asyncio.sleep(_HEARTBEAT_S)

    async def _register(self) -> dict[str, Any]:
        name = self._identity.name
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _node_info(self._identity)["architecture"],
        }
        try:
            node = await self._client.get(NODES, name)
        except ApiStatusError as error:
            if not error.not_found:
                raise
            body = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": labels},
                "spec": {"podCIDR": self._pod_cidr, "podCIDRs": [self._pod_cidr]},
            }
            node = await self._client.create(NODES, body)
        if not (node.get("spec") or {}).get("podCIDR"):
            patch = {"spec": {"podCIDR": self._pod_cidr, "podCIDRs": [self._pod_cidr]}}
            node = await self._client.patch(NODES, name, patch)
        now = clock.rfc3339(clock.now())
        status = build_status(self._identity, self._resources, now, node.get("status") or {})
        return await self._client.patch(
            NODES, name, {"status": status}, type=PatchType.STRATEGIC, subresource="status"
        )

    async def _renew_lease(self) -> None:
        name = self._identity.name
        renewed = {"renewTime": clock.rfc3339_micro(clock.now())}
        try:
            await self._client.patch(LEASES, name, {"spec": renewed}, _LEASE_NAMESPACE)
        except ApiStatusError as error:
            if not error.not_found:
                raise
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": _LEASE_NAMESPACE},
                "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, **renewed},
            }
            await self._client.create(LEASES, body)
