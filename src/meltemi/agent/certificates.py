"""The life of a workload's certificate, as a state machine without a clock.

In: events with the time they happened at (seconds since the epoch) and, where chance is needed, a number in
[0, 1). Out: commands. Promises: at most one request is under way; a certificate in use is never given up
because a renewal failed; retries go on for ever, with back-off. Asking istiod and writing files is left to
the adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meltemi.agent.backoff import Backoff

# Without a certificate nothing works, so asking again soon is worth more than istiod's peace.
FIRST = Backoff(base_s=0.25, max_s=10.0)
RENEWAL = Backoff(base_s=1.0, max_s=60.0)
# The nearer the end, the more often: a renewal is tried several times more however short the life is.
PATIENCE_RATIO = 0.1
# Warn when less than this share of the lifetime is left and renewal has failed.
WARN_RATIO = 0.2


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is valid, in seconds since the epoch."""

    not_before: float
    not_after: float

    @property
    def lifetime_s(self) -> float:
        """Length of the validity."""
        return self.not_after - self.not_before


# --- events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The agent runs; ``found`` is the certificate that an earlier run left, if it can be used."""

    now: float
    chance: float
    found: Validity | None = None


@dataclass(frozen=True, slots=True)
class Issued:
    """istiod signed; the new certificate is written."""

    now: float
    chance: float
    validity: Validity


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request came to nothing."""

    now: float
    chance: float
    reason: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of the last ``SetTimer`` has come."""

    now: float


@dataclass(frozen=True, slots=True)
class RenewalForced:
    """A reason outside of time to ask for a new certificate: the mesh's root changed.

    ``delay_s`` spreads the proxies of a mesh, which all hear of it at about the same time.
    """

    now: float
    delay_s: float = 0.0


Event = Started | Issued | RequestFailed | TimerFired | RenewalForced

# --- commands -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RequestCertificate:
    """Make a key and ask istiod to sign it."""


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire at this time; replaces the timer set before."""

    at: float


@dataclass(frozen=True, slots=True)
class AnnounceReady:
    """There is a usable certificate: Envoy may start. Sent once."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell people. ``level`` is ``info``, ``warning`` or ``error``."""

    level: str
    text: str


Command = RequestCertificate | SetTimer | AnnounceReady | Report

# --- the machine --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """State; ``step`` gives the next one. ``grace_ratio`` and ``grace_jitter`` are Istio's settings."""

    grace_ratio: float = 0.5
    grace_jitter: float = 0.01
    validity: Validity | None = None
    requesting: bool = False
    announced: bool = False
    failures: int = 0
    again: bool = False

    def renewal_at(self, validity: Validity, chance: float) -> float:
        """When to renew: the grace period (ratio +- jitter of the lifetime) before the end."""
        ratio = self.grace_ratio + self.grace_jitter * (2.0 * chance - 1.0)
        ratio = min(1.0, max(0.0, ratio))
        return validity.not_after - validity.lifetime_s * ratio

    def step(self, event: Event) -> tuple[Lifecycle, tuple[Command, ...]]:
        """The state after ``event`` and what to do now, in order."""
        if isinstance(event, Started):
            return self._start(event)
        if isinstance(event, Issued):
            return self._adopt(event.validity, event.now, event.chance, found=False)
        if isinstance(event, RequestFailed):
            return self._retry(event)
        if isinstance(event, RenewalForced):
            return self._force(event)
        if self.requesting:
            return self, ()
        return replace(self, requesting=True), (RequestCertificate(),)

    def _force(self, event: RenewalForced) -> tuple[Lifecycle, tuple[Command, ...]]:
        if self.requesting:
            # The answer on its way may still be from before the change.
            return replace(self, again=True), ()
        return self, (SetTimer(event.now + event.delay_s),)

    def _start(self, event: Started) -> tuple[Lifecycle, tuple[Command, ...]]:
        found = event.found
        if found and found.not_before <= event.now < found.not_after:
            return self._adopt(found, event.now, event.chance, found=True)
        return replace(self, requesting=True), (RequestCertificate(),)

    def _adopt(
        self, validity: Validity, now: float, chance: float, found: bool
    ) -> tuple[Lifecycle, tuple[Command, ...]]:
        at = now if self.again else max(now, self.renewal_at(validity, chance))
        left_s = round(validity.not_after - now)
        text = "kept the certificate of an earlier run" if found else "certificate issued"
        commands: list[Command] = [
            Report("info", f"{text}; valid for {left_s} s, renewal in {round(at - now)} s")
        ]
        if not self.announced:
            commands.append(AnnounceReady())
        commands.append(SetTimer(at))
        state = replace(
            self, validity=validity, requesting=False, announced=True, failures=0, again=False
        )
        return state, tuple(commands)

    def _retry(self, event: RequestFailed) -> tuple[Lifecycle, tuple[Command, ...]]:
        failures = self.failures + 1
        left_s = self.validity.not_after - event.now if self.validity else 0.0
        if left_s > 0:
            delay_s = RENEWAL.delay_s(failures, event.chance)
            delay_s = min(delay_s, max(RENEWAL.base_s, PATIENCE_RATIO * left_s))
        else:
            delay_s = FIRST.delay_s(failures, event.chance)
        again = f"asking again in {delay_s:.1f} s"
        report = Report("warning", f"no certificate yet: {event.reason}; {again}")
        if self.validity:
            if left_s <= 0:
                text = f"the certificate expired {round(-left_s)} s ago and renewal fails"
                report = Report("error", f"{text}: {event.reason}; {again}")
            elif left_s < WARN_RATIO * self.validity.lifetime_s:
                text = f"the certificate expires in {round(left_s)} s and renewal fails"
                report = Report("error", f"{text}: {event.reason}; {again}")
            else:
                text = "renewal failed, the present certificate stays in use"
                report = Report("warning", f"{text}: {event.reason}; {again}")
        state = replace(self, requesting=False, failures=failures)
        return state, (report, SetTimer(event.now + delay_s))
