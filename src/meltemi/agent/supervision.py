"""The life of the Envoy process, as a state machine without a clock or a process.

In: events with the (monotonic) time they happened at. Out: commands. Promises: Envoy starts only after the
certificates are there; a crash is answered with a restart after 0.1 s, then with back-off; a stop drains
before it kills (Envoy drops in-flight requests on SIGTERM); nothing is waited for without a deadline.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from meltemi.agent.backoff import Backoff

CRASH = Backoff(base_s=0.1, max_s=5.0)
STABLE_S = 30.0  # a run of this length makes the crashes before it history
POLL_S = 0.5  # how often open connections are counted while draining
KILL_S = 5.0  # after SIGTERM, Envoy ends at once; this is for one that hangs


class Phase(enum.Enum):
    """Where in its life Envoy is."""

    WAITING = "waiting"  # for certificates
    RUNNING = "running"
    RESTARTING = "restarting"  # crashed; a timer runs
    DRAINING = "draining"  # finishes what it has
    STOPPING = "stopping"  # got SIGTERM
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class DrainPlan:
    """How a stop goes. Istio's settings: ``terminationDrainDuration``, ``EXIT_ON_ZERO_ACTIVE_CONNECTIONS``.

    With ``on_zero_connections`` the drain ends when no connection is open, not before ``minimum_s`` and not
    after ``maximum_s``; without it, after ``duration_s``.
    """

    duration_s: float = 5.0
    on_zero_connections: bool = False
    minimum_s: float = 5.0
    maximum_s: float = 45.0
    inbound_only: bool = True


# --- events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CertificatesReady:
    """The credentials are on disk."""

    now: float


@dataclass(frozen=True, slots=True)
class EnvoyExited:
    """The process is gone; ``code`` is negative for a signal."""

    now: float
    code: int
    chance: float


@dataclass(frozen=True, slots=True)
class StopRequested:
    """SIGTERM, SIGINT or ``/quitquitquit``."""

    now: float


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """``/drain``: refuse new work, and keep running."""

    now: float


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the last ``SetTimer`` has come."""

    now: float


@dataclass(frozen=True, slots=True)
class ConnectionsCounted:
    """Answer to ``CountConnections``; None when Envoy did not answer."""

    now: float
    active: int | None


Event = (
    CertificatesReady
    | EnvoyExited
    | StopRequested
    | DrainRequested
    | TimerFired
    | ConnectionsCounted
)

# --- commands -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpawnEnvoy:
    """Start the process. ``epoch`` counts the starts."""

    epoch: int


@dataclass(frozen=True, slots=True)
class PostAdmin:
    """POST this path to Envoy's admin port; a failure is reported and otherwise ignored."""

    path: str


@dataclass(frozen=True, slots=True)
class CountConnections:
    """Ask Envoy for its open downstream connections."""


@dataclass(frozen=True, slots=True)
class SignalEnvoy:
    """Send SIGTERM, or SIGKILL when ``kill``."""

    kill: bool = False


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire at this time; replaces the timer set before."""

    at: float


@dataclass(frozen=True, slots=True)
class ExitAgent:
    """End with this code."""

    code: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell people. ``level`` is ``info``, ``warning`` or ``error``."""

    level: str
    text: str


Command = SpawnEnvoy | PostAdmin | CountConnections | SignalEnvoy | SetTimer | ExitAgent | Report

# --- the machine --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Supervision:
    """State; ``step`` gives the next one."""

    plan: DrainPlan = DrainPlan()
    phase: Phase = Phase.WAITING
    epoch: int = -1
    started_at: float = 0.0
    crashes: int = 0
    drain_began: float = 0.0
    drained: bool = False

    def step(self, event: Event) -> tuple[Supervision, tuple[Command, ...]]:
        """The state after ``event`` and what to do now, in order."""
        if isinstance(event, CertificatesReady):
            return self._spawn(event.now) if self.phase is Phase.WAITING else (self, ())
        if isinstance(event, EnvoyExited):
            return self._after_exit(event)
        if isinstance(event, StopRequested):
            return self._stop(event.now)
        if isinstance(event, DrainRequested):
            return self._drain_only()
        if isinstance(event, ConnectionsCounted):
            return self._counted(event)
        return self._timer(event.now)

    def _spawn(self, now: float) -> tuple[Supervision, tuple[Command, ...]]:
        epoch = self.epoch + 1
        state = replace(self, phase=Phase.RUNNING, epoch=epoch, started_at=now, drained=False)
        return state, (SpawnEnvoy(epoch),)

    def _after_exit(self, event: EnvoyExited) -> tuple[Supervision, tuple[Command, ...]]:
        how = f"signal {-event.code}" if event.code < 0 else f"code {event.code}"
        if self.phase in (Phase.DRAINING, Phase.STOPPING):
            state = replace(self, phase=Phase.STOPPED)
            return state, (Report("info", f"Envoy ended ({how})"), ExitAgent(0))
        if self.phase is not Phase.RUNNING:
            return self, ()
        crashes = 1 if event.now - self.started_at >= STABLE_S else self.crashes + 1
        delay_s = CRASH.delay_s(crashes, event.chance)
        text = f"Envoy ended unexpectedly ({how}); starting it again in {delay_s:.1f} s"
        state = replace(self, phase=Phase.RESTARTING, crashes=crashes)
        return state, (Report("error", text), SetTimer(event.now + delay_s))

    def _drain_commands(self) -> tuple[Command, ...]:
        """Fail health checks, then close gracefully: new connections are still served meanwhile."""
        scope = "&inboundonly" if self.plan.inbound_only else ""
        keep = "&skip_exit" if self.plan.on_zero_connections else ""
        return (
            PostAdmin("/healthcheck/fail"),
            PostAdmin(f"/drain_listeners?graceful{scope}{keep}"),
        )

    def _drain_only(self) -> tuple[Supervision, tuple[Command, ...]]:
        if self.phase is not Phase.RUNNING or self.drained:
            return self, ()
        report = Report("info", "draining on request; Envoy keeps running")
        return replace(self, drained=True), (report, *self._drain_commands())

    def _stop(self, now: float) -> tuple[Supervision, tuple[Command, ...]]:
        if self.phase in (Phase.WAITING, Phase.RESTARTING):
            return replace(self, phase=Phase.STOPPED), (ExitAgent(0),)
        if self.phase is not Phase.RUNNING:
            return self, ()
        state = replace(self, phase=Phase.DRAINING, drain_began=now, drained=True)
        commands = () if self.drained else self._drain_commands()
        if self.plan.on_zero_connections:
            report = Report("info", "draining until no connection is open")
            return state, (report, *commands, SetTimer(now + self.plan.minimum_s))
        report = Report("info", f"draining for {self.plan.duration_s:g} s")
        return state, (report, *commands, SetTimer(now + self.plan.duration_s))

    def _counted(self, event: ConnectionsCounted) -> tuple[Supervision, tuple[Command, ...]]:
        if self.phase is not Phase.DRAINING:
            return self, ()
        if event.active == 0 or event.now - self.drain_began >= self.plan.maximum_s:
            return self._terminate(event.now)
        return self, (SetTimer(event.now + POLL_S),)

    def _terminate(self, now: float) -> tuple[Supervision, tuple[Command, ...]]:
        return replace(self, phase=Phase.STOPPING), (SignalEnvoy(), SetTimer(now + KILL_S))

    def _timer(self, now: float) -> tuple[Supervision, tuple[Command, ...]]:
        if self.phase is Phase.RESTARTING:
            return self._spawn(now)
        if self.phase is Phase.DRAINING:
            if self.plan.on_zero_connections:
                return self, (CountConnections(),)
            return self._terminate(now)
        if self.phase is Phase.STOPPING:
            text = f"Envoy did not end within {KILL_S:g} s of SIGTERM; killing it"
            return self, (Report("warning", text), SignalEnvoy(kill=True), SetTimer(now + KILL_S))
        return self, ()
