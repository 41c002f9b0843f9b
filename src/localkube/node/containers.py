"""One container: started, watched by its probes, restarted with back-off, stopped with grace.

In: its spec and a ``Host`` (what the pod offers it). Out: a ``ContainerRecord`` that always tells
the truth, and Events. Promises: no step blocks another container; a stop ends within its grace
period; every failure has a reason word of Kubernetes and a message.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from localkube.kit import clock
from localkube.kit.tasks import Tasks
from localkube.node.catalogue import Catalogue, Image
from localkube.node.container_io import spawn_logged
from localkube.node.environment import MissingReference
from localkube.node.logs import LogFile, LogOptions, read_records, render_records
from localkube.node.pod_status import ContainerRecord, Running, Terminated, Waiting, will_restart
from localkube.node.probes import ProbeKind, Target, attempt, watch_probe
from localkube.node.runtime.processes import Process, ProcessSpec, StartError
from localkube.node.runtime.rootfs import Plan

# Kubernetes begins at 10 s; programs of one machine start faster than that.
_BACKOFF_FIRST_S: Final = 1.0
_BACKOFF_LONGEST_S: Final = 300.0
_BACKOFF_FORGOTTEN_S: Final = 600.0
_RETRY_CONFIG_S: Final = 1.0
_HOOK_LIMIT_S: Final = 3600.0
_MESSAGE_LIMIT: Final = 4096
_START_ERROR: Final = 128


class Host(Protocol):
    """What a container needs from its pod."""

    catalogue: Catalogue
    grace_s: float

    def changed(self) -> None:
        """Note that the record changed."""

    def event(self, kind: str, reason: str, message: str, container: str) -> None:
        """Record an Event about the container."""

    def describe(self, container: Mapping[str, Any], image: Image) -> tuple[ProcessSpec, Plan, str]:
        """Return process, mounts and working directory. Raises MissingReference, OSError."""

    async def start_process(
        self, spec: ProcessSpec, plan: Plan, stdio: tuple[int, int, int] | None
    ) -> Process:
        """Start in the pod's sandbox. Raises StartError."""

    async def join_process(
        self, spec: ProcessSpec, member: Process, cwd: str, stdio: tuple[int, int, int] | None
    ) -> Process:
        """Start one more process in the container of ``member``. Raises StartError."""

    def log_file(self, container: str, run: int) -> LogFile:
        """Return the log of run number ``run``."""

    def termination_file(self, container: str) -> Path:
        """Return the host file that the container sees as its termination message path."""

    def probe_address(self) -> str:
        """Return the pod's address."""

    def container_id(self, container: str, run: int) -> str:
        """Return a unique id of a run."""


async def first_of(*futures: asyncio.Future[Any]) -> None:
    """Return when one of ``futures`` is done; none is cancelled."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


class ContainerRunner:
    """See the module's docstring. ``run`` in a task; ``stop`` from elsewhere."""

    def __init__(
        self, host: Host, container: Mapping[str, Any], record: ContainerRecord, policy: str
    ) -> None:
        self.container = container
        self.record = record
        self.log: LogFile | None = None
        self.previous_log: LogFile | None = None
        self.process: Process | None = None
        self.stdin: int | None = None
        self.first_start = asyncio.Event()
        self.done = asyncio.Event()
        self.ready_to_follow = asyncio.Event()
        """A sidecar has passed its startup probe: the next container may start."""
        self._host = host
        self._policy = policy
        self._spec: ProcessSpec | None = None
        self._cwd = "/"
        self._crashes = 0
        self._stopping = asyncio.Event()
        self._kill_reason = ""
        self._output: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = Tasks(f"container {record.name}")
        self._grace_override: float | None = None

    # -- the loop ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Start and restart until the container has finished for good or is stopped."""
        try:
            while not self._stopping.is_set():
                if not await self._start():
                    continue
                code = await self._supervise()
                if self._stopping.is_set() or not will_restart(
                    self.record.kind, self._policy, code
                ):
                    break
                await self._back_off()
        finally:
            self.record.finished = True
            self.record.ready = False
            self.first_start.set()
            self.done.set()
            if self.log:
                self.log.close()
            self._host.changed()
            await self._tasks.close()

    async def _start(self) -> bool:
        """Bring one run up; return False if it could not be, after a pause."""
        reference = self.container.get("image") or ""
        image = await self._find_image(reference)
        if image is None:
            return False
        record = self.record
        record.image_id = f"localkube://{image.source}#{image.pattern}"
        try:
            spec, plan, self._cwd = self._host.describe(self.container, image)
        except (MissingReference, OSError) as error:
            reason = "CreateContainerConfigError"
            self._event("Warning", "Failed", f"Error: {error}")
            self.first_start.set()
            await self._wait(reason, str(error), _RETRY_CONFIG_S)
            return False
        record.container_id = self._host.container_id(record.name, record.restart_count)
        self.previous_log, self.log = (
            self.log,
            self._host.log_file(record.name, record.restart_count),
        )
        started_at = clock.rfc3339(clock.now())
        try:
            self._event("Normal", "Pulled", f'Image "{reference}" is in the catalogue')
            self.process, self.stdin, self._output = await spawn_logged(
                self._host.start_process, spec, plan, self.log, bool(self.container.get("stdin"))
            )
        except StartError as error:
            await self._on_start_error(error, started_at)
            return False
        self._spec = spec
        self._event("Normal", "Created", f"Created container: {record.name}")
        self._event("Normal", "Started", f"Started container {record.name}")
        record.state = Running(started_at)
        self._kill_reason = ""
        hook = (self.container.get("lifecycle") or {}).get("postStart")
        if hook:
            await self._post_start(hook)
        record.started = not self.container.get("startupProbe")
        record.ready = record.started and not self.container.get("readinessProbe")
        if record.started:
            self.ready_to_follow.set()
        self.first_start.set()
        self._host.changed()
        self._start_probes()
        return True

    async def _find_image(self, reference: str) -> Image | None:
        catalogue = self._host.catalogue
        text = catalogue.obstacle(reference)
        if not text:
            return catalogue.find(reference)
        first = not isinstance(self.record.state, Waiting) or (
            self.record.state.reason not in ("ErrImagePull", "ImagePullBackOff")
        )
        self.first_start.set()
        if first:
            self._event("Warning", "Failed", f'Failed to pull image "{reference}": {text}')
            self._set_waiting("ErrImagePull", text)
        else:
            self._event("Normal", "BackOff", f'Back-off pulling image "{reference}"')
            self._set_waiting("ImagePullBackOff", f"Back-off pulling image: {text}")
        self._crashes += 1
        pause = min(_BACKOFF_LONGEST_S, _BACKOFF_FIRST_S * 2 ** min(self._crashes, 10))
        await self._unless_stopped(catalogue.changed(pause, reference))
        if catalogue.obstacle(reference):
            return None
        self._crashes = 0
        return catalogue.find(reference)

    async def _on_start_error(self, error: StartError, started_at: str) -> None:
        self._event("Warning", "Failed", f"Error: {error}")
        self.first_start.set()
        self._set_terminated(_START_ERROR, "StartError", str(error), started_at)
        if self.log:
            self.log.close()
        if will_restart(self.record.kind, self._policy, _START_ERROR):
            await self._back_off()
        else:
            self._stopping.set()

    async def _supervise(self) -> int:
        """Wait for the end of this run; return its exit code."""
        assert self.process is not None
        state = self.record.state
        started_at = state.started_at if isinstance(state, Running) else ""
        began = clock.monotonic()
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        try:
            await first_of(self.process.exited, stopped)
            if not self.process.exited.done():
                await self._end_process(f"Stopping container {self.record.name}", self._grace())
        finally:
            stopped.cancel()
        code = await self.process.exited
        self.record.ready = self.record.started = False
        await self._output
        self.close_stdin()
        if self.log:
            self.log.close()
        if clock.monotonic() - began > _BACKOFF_FORGOTTEN_S:
            self._crashes = 0
        reason = "Completed" if code == 0 else "Error"
        message = self._termination_message(code)
        self._set_terminated(code, reason, message, started_at)
        return code

    async def _back_off(self) -> None:
        self._crashes += 1
        record = self.record
        if isinstance(record.state, Terminated):
            record.last = record.state
        # The first restart is immediate, as on Kubernetes.
        pause = 0.0
        if self._crashes > 1:
            pause = min(_BACKOFF_LONGEST_S, _BACKOFF_FIRST_S * 2 ** min(self._crashes - 2, 30))
        if pause:
            text = f"back-off {pause:g}s restarting failed container={record.name}"
            self._event("Warning", "BackOff", f"Back-off restarting failed container {record.name}")
            await self._wait("CrashLoopBackOff", text, pause)
        record.restart_count += 1

    # -- ending ------------------------------------------------------------------------------

    def stop(self, grace_s: float) -> None:
        """Ask the container to end within ``grace_s`` seconds; ``done`` is set then."""
        self._grace_override = grace_s
        self._stopping.set()

    def close_stdin(self) -> None:
        """End the container's input, if it has one."""
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None

    def hurry(self) -> None:
        """Kill at once a container that is being stopped."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)

    def restart(self, reason: str) -> None:
        """End the present run with grace; the restart policy decides what follows."""
        if self.process is None or self.process.exited.done() or self._kill_reason:
            return
        self._kill_reason = reason
        self._tasks.spawn("kill", lambda: self._end_process(reason, self._grace()))

    def _grace(self) -> float:
        return self._host.grace_s if self._grace_override is None else self._grace_override

    async def _end_process(self, why: str, grace_s: float) -> None:
        assert self.process is not None
        process = self.process
        self._event("Normal", "Killing", why)
        deadline = clock.monotonic() + grace_s
        hook = (self.container.get("lifecycle") or {}).get("preStop")
        if hook and grace_s > 0 and not process.exited.done():
            await self._pre_stop(hook, grace_s)
        process.send_signal(signal.SIGTERM)
        # As the kubelet: at least two seconds remain after a slow preStop hook.
        left = deadline - clock.monotonic()
        left = max(left, min(2.0, grace_s))
        await asyncio.wait([process.exited], timeout=left)
        process.send_signal(signal.SIGKILL)
        await process.exited

    # -- hooks and probes --------------------------------------------------------------------

    def target(self) -> Target:
        """Return how probes and hooks reach this container."""
        ports = {
            p["name"]: int(p["containerPort"])
            for p in self.container.get("ports") or []
            if p.get("name")
        }
        return Target(self._host.probe_address(), ports, self.execute)

    async def execute(self, command: Sequence[str], timeout_s: float) -> tuple[int, str]:
        """Run a command in the container; return its exit code and output."""
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            process = await self.join(command, (null, write_end, write_end))
        except StartError as error:
            os.close(read_end)
            return _START_ERROR, str(error)
        finally:
            os.close(write_end)
            os.close(null)
        try:
            code = await asyncio.wait_for(asyncio.shield(process.exited), timeout_s)
            try:
                output = os.read(read_end, 1 << 16)
            except BlockingIOError:
                output = b""
            return code, output.decode(errors="replace")
        finally:
            process.send_signal(signal.SIGKILL)
            os.close(read_end)

    async def join(
        self,
        command: Sequence[str],
        stdio: tuple[int, int, int] | None,
        size: tuple[int, int] | None = None,
    ) -> Process:
        """Start one more process in the running container. Raises StartError."""
        if self.process is None or self.process.exited.done() or self._spec is None:
            raise StartError(f"container {self.record.name} is not running")
        tty = stdio is None
        env = dict(self._spec.env)
        if tty:
            env.setdefault("TERM", "xterm")
        spec = ProcessSpec(
            tuple(command),
            env,
            self._spec.capabilities,
            self._spec.no_new_privileges,
            tty,
            size,
        )
        return await self._host.join_process(spec, self.process, self._cwd, stdio)

    async def _post_start(self, hook: Mapping[str, Any]) -> None:
        assert self.process is not None
        running = asyncio.ensure_future(self._hook(hook, _HOOK_LIMIT_S))
        stopped = asyncio.ensure_future(self._stopping.wait())
        await first_of(running, self.process.exited, stopped)
        stopped.cancel()
        if not running.done():
            running.cancel()
            return
        ok, message = running.result()
        if not ok:
            self._event("Warning", "FailedPostStartHook", f"PostStartHook failed: {message}")
            self.restart(f"Container {self.record.name} failed its postStart hook")

    async def _pre_stop(self, hook: Mapping[str, Any], grace_s: float) -> None:
        assert self.process is not None
        running = asyncio.ensure_future(self._hook(hook, grace_s))
        await first_of(running, self.process.exited)
        if not running.done():
            running.cancel()
            return
        ok, message = running.result()
        if not ok:
            self._event("Warning", "FailedPreStopHook", f"PreStopHook failed: {message}")

    async def _hook(self, hook: Mapping[str, Any], limit_s: float) -> tuple[bool, str]:
        if hook.get("sleep"):
            await asyncio.sleep(min(limit_s, float(hook["sleep"].get("seconds") or 0)))
            return True, ""
        outcome = await attempt(self.target(), hook, limit_s)
        return outcome.ok, outcome.message

    def _start_probes(self) -> None:
        process = self.process
        assert process is not None
        startup = self.container.get("startupProbe")

        async def watch() -> None:
            if startup:
                await self._watch("startup", startup, process)
            async with Tasks(f"probes {self.record.name}") as probes:
                for kind in ("readiness", "liveness"):
                    probe = self.container.get(f"{kind}Probe")
                    if probe:
                        self._spawn_watch(probes, kind, probe, process)
                await process.exited

        async def until_exit() -> None:
            work = asyncio.ensure_future(watch())
            try:
                await first_of(work, process.exited)
            finally:
                work.cancel()

        if startup or self.container.get("readinessProbe") or self.container.get("livenessProbe"):
            self._tasks.spawn("probes", until_exit)

    def _spawn_watch(
        self, probes: Tasks, kind: str, probe: Mapping[str, Any], process: Process
    ) -> None:
        name: ProbeKind = "readiness" if kind == "readiness" else "liveness"
        probes.spawn(kind, lambda: self._watch(name, probe, process))

    async def _watch(self, kind: ProbeKind, probe: Mapping[str, Any], process: Process) -> None:
        def report(healthy: bool, _message: str) -> None:
            if process.exited.done() or process is not self.process:
                return
            if kind == "readiness":
                self._set_ready(healthy)
            elif kind == "startup" and healthy:
                self.record.started = True
                self.ready_to_follow.set()
                self._set_ready(not self.container.get("readinessProbe"))
                self._host.changed()
            elif not healthy:
                name = self.record.name
                self.restart(f"Container {name} failed {kind} probe, will be restarted")

        def observe(message: str) -> None:
            if not self._stopping.is_set():
                self._event("Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {message}")

        await watch_probe(kind, probe, self.target(), report, observe)

    def _set_ready(self, ready: bool) -> None:
        if self.record.ready != ready:
            self.record.ready = ready
            self._host.changed()

    # -- small steps -------------------------------------------------------------------------

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._host.event(kind, reason, message, self.record.name)

    def _set_waiting(self, reason: str, message: str) -> None:
        self.record.state = Waiting(reason, message)
        self._host.changed()

    def _set_terminated(self, code: int, reason: str, message: str, started_at: str) -> None:
        now = clock.rfc3339(clock.now())
        record = self.record
        record.state = Terminated(
            code, reason, message, started_at or now, now, record.container_id
        )
        self._host.changed()

    async def _wait(self, reason: str, message: str, pause_s: float) -> None:
        self._set_waiting(reason, message)
        await self._unless_stopped(asyncio.sleep(pause_s))

    async def _unless_stopped(self, work: Awaitable[None]) -> None:
        running = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await first_of(running, stopped)
        finally:
            running.cancel()
            stopped.cancel()

    def _termination_message(self, code: int) -> str:
        file = self._host.termination_file(self.record.name)
        try:
            text = file.read_bytes()[-_MESSAGE_LIMIT:].decode(errors="replace")
            file.write_bytes(b"")
        except OSError:
            text = ""
        policy = self.container.get("terminationMessagePolicy")
        if not text and code and policy == "FallbackToLogsOnError" and self.log is not None:
            lines = read_records([self.log.path], 80)
            text = render_records(lines, LogOptions())[-2048:].decode(errors="replace")
        return text
