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
from pathlib import Path
from typing import Any, Final

import structlog

from localkube.client import ApiConnectionError, ApiStatusError
from localkube.client.resources import PODS
from localkube.kit import clock
from localkube.kit.tasks import Tasks, backoff
from localkube.node.catalogue import Image
from localkube.node.container_spec import PodPlaces, describe_container
from localkube.node.containers import ContainerRunner, first_of
from localkube.node.logs import LogFile
from localkube.node.node_services import NodeServices
from localkube.node.objects import find_references
from localkube.node.pod_status import (
    ContainerRecord,
    PodFacts,
    Running,
    Terminated,
    Waiting,
    build_status,
    container_kind,
    end_lost_runs,
    restore_record,
)
from localkube.node.pod_status_writer import StatusWriter
from localkube.node.podfiles import build_hosts, build_resolv_conf, pod_hostname
from localkube.node.runtime.processes import Process, ProcessSpec, Sandbox, StartError
from localkube.node.runtime.rootfs import Plan
from localkube.node.tokens import PodTokens
from localkube.node.volumes import PodVolumes, VolumeContext, VolumeError

_DEFAULT_GRACE_S: Final = 30.0
_MOUNT_RETRY_S: Final = 0.5
_OVER: Final = ("Succeeded", "Failed")


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
        self._policy: str = pod["spec"].get("restartPolicy") or "Always"
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
        self._log = structlog.get_logger("localkube.node.pod")
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
            now = clock.rfc3339(clock.now())
            self._records.append(restore_record(self.pod, container, now))
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

    def old_log(self, container: str) -> LogFile | None:
        """Return the newest log that an earlier agent wrote of a container."""
        files = sorted((self._log_dir / container).glob("*.log"), key=lambda f: int(f.stem))
        if not files:
            return None
        log = LogFile(files[-1])
        log.close()
        return log

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
        places = PodPlaces(self._volume_paths, self._memory_dir, self.termination_file)
        return describe_container(self._node, self._pod_with_addresses(), container, image, places)

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

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port on the pod's loopback, past traffic capture. Raises OSError."""
        if self.sandbox is None:
            raise ConnectionRefusedError(f"pod {self.name} has no sandbox")
        return await self._node.network.connect(self.sandbox.pid, port)

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
        elif self._policy == "Never" and end_lost_runs(self._records):
            self._verdict = ("Failed", "NodeRestarted", "The node agent was restarted")
            self._status.changed()
            await self._ending.wait()
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
        if self._ending.is_set() and self.grace_s > 0 and self.address:
            # New connections stop coming before the program learns that it shall end.
            await self._node.unrouted(self.address)
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
            await self._stop_containers()
            self._remove_sandbox()
            await self._release_network()
            if self._policy == "Never":
                return
            self.event("Normal", "SandboxChanged", "Pod sandbox changed, it will be re-created.")

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
        for container in self.pod["spec"].get("initContainers") or []:
            runner = self._new_runner(container)
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
            runner = self._new_runner(container)
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
                self._log.warning("pod not deleted", pod=self.name, error=str(error))
            except ApiConnectionError as error:
                self._log.info("pod not deleted yet", pod=self.name, error=str(error))
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

    def _new_runner(self, container: Mapping[str, Any]) -> ContainerRunner:
        record = next(r for r in self._records if r.name == container["name"])
        if isinstance(record.state, (Running, Terminated)):
            record.restart_count += 1
        record.state = Waiting("ContainerCreating")
        record.finished = False
        runner = ContainerRunner(self, container, record, self._policy)
        self.runners[record.name] = runner
        return runner

    def _pod_with_addresses(self) -> dict[str, Any]:
        status = dict(self.pod.get("status") or {})
        status.update(hostIP=self._node.node_ip, hostIPs=[{"ip": self._node.node_ip}])
        if self.address:
            status.update(podIP=self.address, podIPs=[{"ip": self.address}])
        return {**self.pod, "status": status}
