"""One pod on this node, from its binding to its end.

In: versions of the pod object, and the node's services (``NodeServices``). Out: processes, and the
pod's status in the API. Promises: the status is written as soon as something changes (changes that
come together are one write) and again until the server took it; an end always ends: within the
grace period the processes are gone, then the address, the volumes, the logs and the object.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from localkube.client import ApiClient, ApiConnectionError, ApiStatusError
from localkube.client.resources import PODS
from localkube.kit import clock
from localkube.kit.tasks import Tasks, backoff
from localkube.node.catalogue import Catalogue, Image
from localkube.node.containers import ContainerRunner, first_of
from localkube.node.environment import (
    NodeResources,
    build_environment,
    build_service_variables,
    expand,
)
from localkube.node.events import EventRecorder
from localkube.node.hostview import (
    HostView,
    base_environment,
    resolve_capabilities,
    resolve_command,
)
from localkube.node.logs import LogFile
from localkube.node.network.addresses import AddressPool
from localkube.node.network.links import PodNetwork
from localkube.node.objects import ReferencedObjects, find_references
from localkube.node.pod_status import (
    ContainerRecord,
    PodFacts,
    Running,
    Terminated,
    Waiting,
    build_status,
    container_kind,
)
from localkube.node.pod_status_writer import StatusWriter
from localkube.node.podfiles import DnsSettings, build_hosts, build_resolv_conf, pod_hostname
from localkube.node.runtime.processes import Process, ProcessSpec, Runtime, Sandbox, StartError
from localkube.node.runtime.rootfs import Plan, VolumeMount
from localkube.node.tokens import PodTokens
from localkube.node.volumes import PodVolumes, VolumeContext, VolumeError

_DEFAULT_GRACE_S: Final = 30.0
_MOUNT_RETRY_S: Final = 0.5
_OVER: Final = ("Succeeded", "Failed")


@dataclass(slots=True)
class NodeServices:
    """What all pods of a node share."""

    name: str
    client: ApiClient
    runtime: Runtime
    network: PodNetwork
    addresses: AddressPool
    catalogue: Catalogue
    view: HostView
    objects: ReferencedObjects
    events: EventRecorder
    dns: DnsSettings
    resources: NodeResources
    node_ip: str
    memory_dir: Path
    disk_dir: Path
    log_dir: Path
    services: Any  # () -> iterable of Service objects
    next_link: int = 0
    log: Any = field(default_factory=lambda: structlog.get_logger("localkube.node.pod"))


class PodWorker:
    """See the module's docstring. ``start`` once; then ``update``, ``vanish``, ``close``."""

    def __init__(self, node: NodeServices, pod: dict[str, Any]) -> None:
        self.pod = pod
        meta = pod["metadata"]
        self.uid: str = meta["uid"]
        self.namespace: str = meta["namespace"]
        self.name: str = meta["name"]
        self.runners: dict[str, ContainerRunner] = {}
        self.address = ""
        self.sandbox: Sandbox | None = None
        self.catalogue = node.catalogue
        self.grace_s = float(pod["spec"].get("terminationGracePeriodSeconds") or _DEFAULT_GRACE_S)
        self._node = node
        self._tasks = Tasks(f"pod {self.namespace}/{self.name}")
        self._container_tasks = Tasks(f"pod {self.namespace}/{self.name} containers")
        self._ending = asyncio.Event()
        self._vanished = asyncio.Event()
        self._updated = asyncio.Event()
        self._volume_paths: dict[str, Path] = {}
        self._records: list[ContainerRecord] = []
        self._verdict = ("", "", "")
        self._status = StatusWriter(node.client, self)
        old = pod.get("status") or {}
        self._start_time = old.get("startTime") or clock.rfc3339(clock.now())
        self._tokens = PodTokens(node.client, pod)
        self._memory_dir = node.memory_dir / self.uid
        self._log_dir = node.log_dir / f"{self.namespace}_{self.name}_{self.uid}"
        self._volumes = PodVolumes(
            VolumeContext(
                memory_dir=self._memory_dir / "volumes",
                disk_dir=node.disk_dir / self.uid,
                lookup=lambda kind, name: node.objects.data((kind, self.namespace, name)),
                token=self._tokens.get,
                node=node.resources,
            )
        )
        self.finished = asyncio.Event()

    # -- from outside ------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        for container in self._containers():
            self._records.append(self._new_record(container))
        self._tasks.spawn("status", self._status.serve, restart=True)
        self._tasks.spawn("life", self._life)

    def update(self, pod: dict[str, Any]) -> None:
        """Take a newer version of the object."""
        old, self.pod = self.pod, pod
        meta = pod["metadata"]
        if meta.get("deletionTimestamp"):
            grace = meta.get("deletionGracePeriodSeconds")
            self.grace_s = _DEFAULT_GRACE_S if grace is None else float(grace)
            self._ending.set()
            return
        for key in ("labels", "annotations"):
            if old["metadata"].get(key) != meta.get(key):
                self._updated.set()
        for container in self._containers():
            runner = self.runners.get(container["name"])
            if runner is not None and runner.container.get("image") != container.get("image"):
                runner.container = container
                runner.record.image = container.get("image") or ""
                runner.restart(f"Container {container['name']} definition changed, restarting")
        # Conditions of other controllers (readiness gates) are part of what Ready means.
        self._status.changed()

    def vanish(self) -> None:
        """The object is gone (a forced deletion): end at once."""
        self.grace_s = 0.0
        self._vanished.set()
        self._ending.set()
        for runner in self.runners.values():
            runner.hurry()

    def waiting_reason(self, container: str) -> str | None:
        """Return why a container has not run yet; None if the pod has no such container."""
        for record in self._records:
            if record.name == container:
                return (
                    record.state.reason if isinstance(record.state, Waiting) else "PodInitializing"
                )
        return None

    def references_changed(self) -> None:
        """A ConfigMap or Secret that the pod uses changed."""
        self._updated.set()

    async def refresh_tokens(self) -> None:
        """Renew tokens that are due."""
        if self._tokens.due:
            self._updated.set()

    async def close(self, grace_s: float) -> None:
        """Stop everything without touching the API (the agent is stopping)."""
        await self._tasks.close()
        self.grace_s = min(self.grace_s, grace_s)
        if self.sandbox is not None:
            await self._stop_containers()
        self._remove_sandbox()
        self._volumes.remove()

    # -- Host, for the containers ------------------------------------------------------------

    def changed(self) -> None:
        """Write the status soon."""
        self._status.changed()

    def event(self, kind: str, reason: str, message: str, container: str = "") -> None:
        """Record an Event about the pod, or one of its containers."""
        path = ""
        if container:
            main = container_kind(self.pod, container) == "main"
            path = f"spec.{'containers' if main else 'initContainers'}{{{container}}}"
        self._node.events.record(self.pod, kind, reason, message, path)

    def describe(self, container: Mapping[str, Any], image: Image) -> tuple[ProcessSpec, Plan, str]:
        """Return what to run for ``container``. Raises MissingReference, OSError."""
        pod = self._pod_with_addresses()
        links = build_service_variables(
            self._node.services(),
            self.namespace,
            self.pod["spec"].get("enableServiceLinks") is not False,
        )
        env = base_environment(pod_hostname(pod), bool(container.get("tty")))
        env.update(image.env)
        env.update(
            build_environment(
                pod,
                container,
                lambda kind, name: self._node.objects.text((kind, self.namespace, name)),
                self._node.resources,
                links,
            )
        )
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
        plan = self._node.view.build_plan(
            container, self._files(container), self._mounts(container, env), cwd
        )
        return spec, plan, cwd

    async def start_process(
        self, spec: ProcessSpec, plan: Plan, stdio: tuple[int, int, int] | None
    ) -> Process:
        """Start in the pod's sandbox."""
        if self.sandbox is None:
            raise StartError("the pod has no sandbox")
        return await self._node.runtime.run(self.sandbox, spec, plan, stdio)

    async def join_process(
        self, spec: ProcessSpec, member: Process, cwd: str, stdio: tuple[int, int, int] | None
    ) -> Process:
        """Start one more process in a container."""
        if self.sandbox is None:
            raise StartError("the pod has no sandbox")
        return await self._node.runtime.join(self.sandbox, spec, member, cwd, stdio)

    def log_file(self, container: str, run: int) -> LogFile:
        """Return the log of a run; only the last two runs are kept."""
        directory = self._log_dir / container
        for old in (f"{run - 2}.log", f"{run - 2}.log.1"):
            (directory / old).unlink(missing_ok=True)
        return LogFile(directory / f"{run}.log")

    def termination_file(self, container: str) -> Path:
        """Return the host file of the termination message."""
        path: Path = self._memory_dir / "termination" / container
        return path

    def probe_address(self) -> str:
        """Return where the pod listens."""
        return self.address

    def container_id(self, container: str, run: int) -> str:
        """Return an id in the form of a container engine's."""
        text = f"{self.uid}/{container}/{run}/{clock.monotonic()}"
        return f"localkube://{hashlib.sha256(text.encode()).hexdigest()}"

    # -- life --------------------------------------------------------------------------------

    async def _life(self) -> None:
        if (self.pod.get("status") or {}).get("phase") in _OVER:
            await self._ending.wait()
            await self._finish()
            return
        if self.pod["metadata"].get("deletionTimestamp"):
            self._ending.set()
        work = Tasks(f"pod {self.namespace}/{self.name} work")
        try:
            if not self._ending.is_set():
                running = work.spawn("run", self._run_until_done, restart=True)
                work.spawn("updates", self._follow_updates, restart=True)
                ending = asyncio.ensure_future(self._ending.wait())
                deadline = self.pod["spec"].get("activeDeadlineSeconds")
                await asyncio.wait(
                    [running, ending], return_when="FIRST_COMPLETED", timeout=deadline
                )
                if not running.done() and not self._ending.is_set():
                    self._verdict = (
                        "Failed",
                        "DeadlineExceeded",
                        "Pod was active on the node longer than the specified deadline",
                    )
                ending.cancel()
        finally:
            await work.close()
        await self._stop_containers()
        self._remove_sandbox()
        await self._release_network()
        self._status.changed()
        await self._node.objects.release(self.uid)
        await self._ending.wait()
        await self._finish()

    async def _run_until_done(self) -> None:
        """Set the pod up and run it; return when all its main containers have finished."""
        while True:
            await self._set_up()
            assert self.sandbox is not None
            work = asyncio.ensure_future(self._run_containers())
            try:
                await first_of(work, self.sandbox.exited)
            finally:
                work.cancel()
            if work.done() and not work.cancelled():
                work.result()
                return
            self.event("Normal", "SandboxChanged", "Pod sandbox changed, it will be re-created.")
            await self._stop_containers()
            self._remove_sandbox()
            await self._release_network()

    async def _set_up(self) -> None:
        self._remove_sandbox()  # of an attempt that failed half-way
        await self._release_network()
        await self._prepare_volumes()
        attempt_number = 0
        while True:
            try:
                await self._make_sandbox()
                return
            except (StartError, OSError, RuntimeError) as error:
                self.event(
                    "Warning", "FailedCreatePodSandBox", f"Failed to create sandbox: {error}"
                )
                self._remove_sandbox()
                await self._release_network()
                await asyncio.sleep(backoff(attempt_number, 0.2, 10.0))
                attempt_number += 1

    async def _make_sandbox(self) -> None:
        host_network = bool(self.pod["spec"].get("hostNetwork"))
        node = self._node
        hostname = node.name if host_network else pod_hostname(self.pod)
        self.sandbox = await node.runtime.create_sandbox(hostname, host_network)
        if host_network:
            self.address = node.node_ip
        else:
            address = node.addresses.take()
            self.address = address
            node.next_link += 1
            await node.network.attach(self.sandbox.pid, address, node.next_link)
        etc = self._memory_dir / "etc"
        etc.mkdir(parents=True, exist_ok=True)
        (etc / "resolv.conf").write_text(build_resolv_conf(self.pod, node.dns))
        (etc / "hosts").write_text(build_hosts(self.pod, self.address, node.dns))
        (etc / "hostname").write_text(pod_hostname(self.pod) + "\n")
        self._status.changed()

    async def _prepare_volumes(self) -> None:
        attempt_number = 0
        while True:
            self._updated.clear()
            references = find_references(self.pod)
            await self._node.objects.use(self.uid, references, self.references_changed)
            try:
                self._volume_paths = await self._volumes.prepare(self._pod_with_addresses())
                return
            except VolumeError as error:
                self.event("Warning", "FailedMount", str(error))
            pause = backoff(attempt_number, _MOUNT_RETRY_S, 30.0)
            attempt_number += 1
            try:
                await asyncio.wait_for(self._updated.wait(), pause)
            except TimeoutError:
                continue

    async def _run_containers(self) -> None:
        self._container_tasks = tasks = Tasks(f"pod {self.namespace}/{self.name} containers")
        policy = self.pod["spec"].get("restartPolicy") or "Always"
        for container in self.pod["spec"].get("initContainers") or []:
            runner = self._new_runner(container, policy)
            done = tasks.spawn(container["name"], runner.run)
            if runner.record.kind == "sidecar":
                await runner.ready_to_follow.wait()
                continue
            await done
            state = runner.record.state
            if not (isinstance(state, Terminated) and state.exit_code == 0):
                return  # the pod has failed
        mains = []
        for container in self.pod["spec"]["containers"]:
            runner = self._new_runner(container, policy)
            mains.append(tasks.spawn(container["name"], runner.run))
            # A postStart hook holds back the containers after it, as the kubelet does.
            await runner.first_start.wait()
        await asyncio.wait(mains)

    async def _follow_updates(self) -> None:
        """Bring changed objects, labels and tokens into the volumes."""
        while True:
            await self._updated.wait()
            self._updated.clear()
            if self.sandbox is not None:
                await self._volumes.refresh(self._pod_with_addresses())

    # -- the end -----------------------------------------------------------------------------

    async def _stop_containers(self) -> None:
        """Stop main containers together, then sidecars in reverse order, within the grace."""
        end = clock.monotonic() + self.grace_s
        live = [r for r in self.runners.values() if not r.record.finished]
        first = [r for r in live if r.record.kind != "sidecar"]
        rounds = [first, *[[r] for r in reversed(live) if r.record.kind == "sidecar"]]
        for group in rounds:
            left = max(0.0, end - clock.monotonic())
            for runner in group:
                runner.stop(left)
            for runner in group:
                await runner.done.wait()
        await self._container_tasks.close()

    def _remove_sandbox(self) -> None:
        if self.sandbox is not None and not self.sandbox.exited.done():
            os.kill(self.sandbox.pid, signal.SIGKILL)
        self.sandbox = None

    async def _release_network(self) -> None:
        if self.address and self.address != self._node.node_ip:
            await self._node.network.detach(self.address)
            self._node.addresses.give_back(self.address)
            self.address = ""

    async def _finish(self) -> None:
        """Delete what is left of the pod, here and in the API."""
        self._volumes.remove()
        shutil.rmtree(self._memory_dir, ignore_errors=True)
        if not self._vanished.is_set():
            await self._status.send()
            await self._delete_object()
        shutil.rmtree(self._log_dir, ignore_errors=True)
        self.finished.set()

    async def _delete_object(self) -> None:
        attempt_number = 0
        while not self._vanished.is_set():
            try:
                await self._node.client.delete(
                    PODS, self.name, self.namespace, grace_period_seconds=0, uid=self.uid
                )
                return
            except ApiStatusError as error:
                if error.not_found or error.conflict:
                    return
                self._node.log.warning("pod not deleted", pod=self.name, error=str(error))
            except ApiConnectionError as error:
                self._node.log.info("pod not deleted yet", pod=self.name, error=str(error))
            await asyncio.sleep(backoff(attempt_number, 0.2, 10.0))
            attempt_number += 1

    # -- status ------------------------------------------------------------------------------

    def current_status(self, conditions: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the status as of now, None if it is final already.

        ``conditions`` are those that the API has, as far as known.
        """
        if (self.pod.get("status") or {}).get("phase") in _OVER and not self.runners:
            return None
        phase, reason, message = self._verdict
        facts = PodFacts(
            host_ip=self._node.node_ip,
            pod_ip=self.address or (self.pod.get("status") or {}).get("podIP") or "",
            start_time=self._start_time,
            sandbox_ready=self.sandbox is not None and bool(self.address),
            phase=phase,
            reason=reason,
            message=message,
        )
        pod = {**self.pod, "status": {**(self.pod.get("status") or {}), "conditions": conditions}}
        return build_status(pod, self._records, facts, clock.rfc3339(clock.now()))

    # -- small steps -------------------------------------------------------------------------

    def _containers(self) -> list[Mapping[str, Any]]:
        spec = self.pod["spec"]
        return [*(spec.get("initContainers") or []), *spec["containers"]]

    def _new_record(self, container: Mapping[str, Any]) -> ContainerRecord:
        """Return a container's record; a run before this agent's start counts as a restart."""
        name = container["name"]
        kind = container_kind(self.pod, name)
        waits = kind == "main" and bool(self.pod["spec"].get("initContainers"))
        state = Waiting("PodInitializing" if waits else "ContainerCreating")
        record = ContainerRecord(name, container.get("image") or "", kind, state)
        status = self.pod.get("status") or {}
        listed = [
            *(status.get("containerStatuses") or []),
            *(status.get("initContainerStatuses") or []),
        ]
        for old in listed:
            if old["name"] != name:
                continue
            record.restart_count = int(old.get("restartCount") or 0)
            if old.get("containerID"):
                record.restart_count += kind != "init"
                now = clock.rfc3339(clock.now())
                began = ((old.get("state") or {}).get("running") or {}).get("startedAt") or now
                if "running" in (old.get("state") or {}):
                    record.last = Terminated(
                        137,
                        "NodeRestarted",
                        "The node agent was restarted",
                        began,
                        now,
                        old["containerID"],
                    )
        return record

    def _new_runner(self, container: Mapping[str, Any], policy: str) -> ContainerRunner:
        record = next(r for r in self._records if r.name == container["name"])
        if isinstance(record.state, (Running, Terminated)):
            record.restart_count += 1
        record.state = Waiting("ContainerCreating")
        record.finished = False
        runner = ContainerRunner(self, container, record, policy)
        self.runners[record.name] = runner
        return runner

    def _pod_with_addresses(self) -> dict[str, Any]:
        status = dict(self.pod.get("status") or {})
        status.update(hostIP=self._node.node_ip, hostIPs=[{"ip": self._node.node_ip}])
        if self.address:
            status.update(podIP=self.address, podIPs=[{"ip": self.address}])
        return {**self.pod, "status": status}

    def _files(self, container: Mapping[str, Any]) -> dict[str, str]:
        etc = self._memory_dir / "etc"
        message = self.termination_file(container["name"])
        message.parent.mkdir(parents=True, exist_ok=True)
        message.touch()
        path = container.get("terminationMessagePath") or "/dev/termination-log"
        files = {f"/etc/{name}": str(etc / name) for name in ("resolv.conf", "hosts", "hostname")}
        files[path] = str(message)
        mounted = {m["mountPath"] for m in container.get("volumeMounts") or []}
        return {target: source for target, source in files.items() if target not in mounted}

    def _mounts(self, container: Mapping[str, Any], env: Mapping[str, str]) -> list[VolumeMount]:
        mounts = []
        for mount in container.get("volumeMounts") or []:
            source = self._volume_paths[mount["name"]]
            sub_path = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
            if sub_path:
                inner = (source / sub_path).resolve()
                if not inner.is_relative_to(source.resolve()):
                    raise OSError(f"subPath {sub_path!r} leads out of volume {mount['name']}")
                if not inner.exists():
                    inner.mkdir(parents=True)
                source = inner
            mounts.append(
                VolumeMount(
                    source=str(source),
                    target=mount["mountPath"],
                    read_only=bool(mount.get("readOnly")) or self._is_projection(mount["name"]),
                )
            )
        # A mount inside another comes after it.
        return sorted(mounts, key=lambda m: m["target"].count("/"))

    def _is_projection(self, name: str) -> bool:
        for volume in self.pod["spec"].get("volumes") or []:
            if volume["name"] == name:
                return any(
                    volume.get(key) is not None
                    for key in ("configMap", "secret", "projected", "downwardAPI")
                )
        return False
