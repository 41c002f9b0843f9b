"""Envoy's life as conversations, and invariants over random ones."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meltemi.agent.supervision import (
    CertificatesReady,
    ConnectionsCounted,
    CountConnections,
    DrainPlan,
    DrainRequested,
    EnvoyExited,
    Event,
    ExitAgent,
    Phase,
    PostAdmin,
    Report,
    SetTimer,
    SignalEnvoy,
    SpawnEnvoy,
    StopRequested,
    Supervision,
    TimerFired,
)


def running(plan: DrainPlan | None = None) -> Supervision:
    state, commands = Supervision(plan or DrainPlan()).step(CertificatesReady(0.0))
    assert commands == (SpawnEnvoy(0),)
    return state


def without_reports(commands: tuple[object, ...]) -> list[object]:
    return [command for command in commands if not isinstance(command, Report)]


def test_envoy_starts_after_the_certificates_and_once() -> None:
    """A second announcement (a renewal) starts nothing."""
    state = running()
    assert state.step(CertificatesReady(1.0)) == (state, ())


def test_a_crash_is_answered_within_a_second() -> None:
    """0.1 s after the first crash, then doubling to 5 s; a stable run resets."""
    state, delays = running(), []
    for _ in range(8):
        state, commands = state.step(EnvoyExited(1.0, -9, 0.0))
        (timer,) = without_reports(commands)
        assert isinstance(timer, SetTimer)
        delays.append(round(timer.at - 1.0, 2))
        state, commands = state.step(TimerFired(timer.at))
        assert isinstance(commands[0], SpawnEnvoy)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    state, commands = state.step(EnvoyExited(1000.0, 1, 0.0))
    assert without_reports(commands) == [SetTimer(1000.1)]
    assert state.epoch == 8


def test_a_stop_drains_then_terminates() -> None:
    """Health checks fail first, listeners drain, SIGTERM follows after the duration, and then the end."""
    state, commands = running(DrainPlan(duration_s=5.0)).step(StopRequested(10.0))
    assert without_reports(commands) == [
        PostAdmin("/healthcheck/fail"),
        PostAdmin("/drain_listeners?graceful&inboundonly"),
        SetTimer(15.0),
    ]
    state, commands = state.step(TimerFired(15.0))
    assert commands == (SignalEnvoy(), SetTimer(20.0))
    state, commands = state.step(EnvoyExited(15.1, 0, 0.0))
    assert without_reports(commands) == [ExitAgent(0)]
    assert state.phase is Phase.STOPPED


def test_a_hanging_envoy_is_killed() -> None:
    """SIGKILL five seconds after SIGTERM."""
    state, _ = running().step(StopRequested(0.0))
    state, _ = state.step(TimerFired(5.0))
    _, commands = state.step(TimerFired(10.0))
    assert SignalEnvoy(kill=True) in commands


def test_exit_on_zero_connections() -> None:
    """Counts after the minimum, polls while connections are open, ends at zero or at the maximum."""
    plan = DrainPlan(on_zero_connections=True, minimum_s=5.0, maximum_s=45.0, inbound_only=False)
    state, commands = running(plan).step(StopRequested(0.0))
    assert PostAdmin("/drain_listeners?graceful&skip_exit") in commands
    assert SetTimer(5.0) in commands
    state, commands = state.step(TimerFired(5.0))
    assert commands == (CountConnections(),)
    state, commands = state.step(ConnectionsCounted(5.0, 2))
    assert commands == (SetTimer(5.5),)
    assert state.step(ConnectionsCounted(6.0, None))[1] == (SetTimer(6.5),)
    assert state.step(ConnectionsCounted(6.0, 0))[1][0] == SignalEnvoy()
    assert state.step(ConnectionsCounted(45.0, 2))[1][0] == SignalEnvoy()


def test_a_stop_before_the_start_ends_at_once() -> None:
    """Without an Envoy there is nothing to drain, before the start and between restarts."""
    assert Supervision().step(StopRequested(0.0))[1] == (ExitAgent(0),)
    state, _ = running().step(EnvoyExited(1.0, 1, 0.0))
    assert state.step(StopRequested(1.0))[1] == (ExitAgent(0),)


def test_drain_keeps_running_and_is_not_repeated_by_the_stop() -> None:
    """``/drain`` twice drains once; the stop that follows does not drain again."""
    state, commands = running().step(DrainRequested(0.0))
    assert PostAdmin("/healthcheck/fail") in commands and state.phase is Phase.RUNNING
    assert state.step(DrainRequested(0.0))[1] == ()
    _, commands = state.step(StopRequested(1.0))
    assert without_reports(commands) == [SetTimer(6.0)]


EVENTS = st.one_of(
    st.just(CertificatesReady),
    st.just(StopRequested),
    st.just(DrainRequested),
    st.just(TimerFired),
    st.just(lambda now: EnvoyExited(now, 1, 0.5)),
    st.just(lambda now: ConnectionsCounted(now, 0)),
    st.just(lambda now: ConnectionsCounted(now, 3)),
)


@given(st.lists(EVENTS, max_size=40), st.booleans())
def test_no_conversation_breaks_the_promises(makers: list[object], on_zero: bool) -> None:
    """Never two Envoys at once; a wait always has a timer; after the end there is nothing."""
    state = Supervision(DrainPlan(on_zero_connections=on_zero))
    alive = ended = False
    for now, make in enumerate(makers):
        event: Event = make(float(now))  # type: ignore[operator]
        if isinstance(event, EnvoyExited) and not alive:
            continue
        state, commands = state.step(event)
        if isinstance(event, EnvoyExited):
            alive = False
        for command in commands:
            assert not ended, "a command after the end"
            if isinstance(command, SpawnEnvoy):
                assert not alive
                alive = True
            ended = ended or isinstance(command, ExitAgent)
        assert not (ended and alive)
