"""The certificate life cycle as conversations: event in, commands out."""

from __future__ import annotations

from meltemi.agent.certificates import (
    AnnounceReady,
    Issued,
    Lifecycle,
    RenewalForced,
    Report,
    RequestCertificate,
    RequestFailed,
    SetTimer,
    Started,
    TimerFired,
    Validity,
)

DAY = 86400.0
CERT = Validity(1000.0, 1000.0 + DAY)


def issued() -> Lifecycle:
    state, _ = Lifecycle().step(Started(1000.0, 0.5))
    state, _ = state.step(Issued(1000.0, 0.5, CERT))
    return state


def timer(commands: tuple[object, ...]) -> float:
    return next(command.at for command in commands if isinstance(command, SetTimer))


def test_a_first_certificate_is_asked_for_and_announced_once() -> None:
    """Start asks; the answer announces readiness and sets the renewal to half the lifetime."""
    state, commands = Lifecycle().step(Started(1000.0, 0.5))
    assert commands == (RequestCertificate(),)
    state, commands = state.step(Issued(1000.0, 0.5, CERT))
    assert AnnounceReady() in commands and timer(commands) == 1000.0 + DAY / 2
    state, commands = state.step(TimerFired(1000.0 + DAY / 2))
    assert commands == (RequestCertificate(),)
    _, commands = state.step(Issued(44200.0, 0.5, Validity(44200.0, 44200.0 + DAY)))
    assert AnnounceReady() not in commands


def test_renewal_is_spread_by_one_percent() -> None:
    """The renewal falls between 49 % and 51 % of the lifetime."""
    times = [Lifecycle().renewal_at(CERT, chance) - 1000.0 for chance in (0.0, 1.0)]
    assert times == [DAY * 0.51, DAY * 0.49]


def test_a_found_certificate_is_used_without_asking() -> None:
    """A restart within the first half of the life needs no istiod; an expired one is not used."""
    _, commands = Lifecycle().step(Started(2000.0, 0.5, CERT))
    assert RequestCertificate() not in commands and AnnounceReady() in commands
    _, commands = Lifecycle().step(Started(1000.0 + 2 * DAY, 0.5, CERT))
    assert commands == (RequestCertificate(),)


def test_the_first_certificate_is_retried_quickly_then_slower() -> None:
    """Delays double from a quarter of a second to ten seconds, with up to a quarter added by chance."""
    state, _ = Lifecycle().step(Started(0.0, 0.5))
    delays = []
    for _ in range(8):
        state, commands = state.step(RequestFailed(0.0, 0.0, "no"))
        delays.append(timer(commands))
        state, commands = state.step(TimerFired(0.0))
        assert commands == (RequestCertificate(),)
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    _, commands = state.step(RequestFailed(0.0, 0.999, "no"))
    assert 10.0 < timer(commands) < 12.6


def test_a_failed_renewal_keeps_the_certificate_and_warns_before_the_end() -> None:
    """Warning at first, error when a fifth of the life is left, and again when it is over."""
    state = issued()
    levels = []
    for share in (0.5, 0.85, 1.01):
        now = 1000.0 + DAY * share
        state, _ = state.step(TimerFired(now))
        state, commands = state.step(RequestFailed(now, 0.0, "istiod is away"))
        report = commands[0]
        assert isinstance(report, Report) and "istiod is away" in report.text
        levels.append((report.level, report.text.split(";")[0].split(" ")[2]))
        assert state.validity == CERT
    assert [level for level, _ in levels] == ["warning", "error", "error"]


def test_only_one_request_is_under_way() -> None:
    """A forced renewal asks when its delay is over, and not again while that runs."""
    state, commands = issued().step(RenewalForced(2000.0, 3.0))
    assert commands == (SetTimer(2003.0),)
    state, commands = state.step(TimerFired(2003.0))
    assert commands == (RequestCertificate(),)
    for event in (RenewalForced(2001.0), TimerFired(2002.0)):
        state, commands = state.step(event)
        assert commands == ()


def test_success_forgets_failures() -> None:
    """After a success the next failure starts with the shortest delay."""
    state = issued()
    for _ in range(5):
        state, _ = state.step(RequestFailed(2000.0, 0.0, "no"))
    state, _ = state.step(Issued(2000.0, 0.5, CERT))
    _, commands = state.step(RequestFailed(2000.0, 0.0, "no"))
    assert timer(commands) == 2001.0


def test_a_short_life_is_not_slept_through() -> None:
    """However often renewal failed, the next attempt comes within a tenth of what is left of the life."""
    state, _ = Lifecycle().step(Started(0.0, 0.5))
    state, _ = state.step(Issued(0.0, 0.5, Validity(0.0, 60.0)))
    for now in (30.0, 31.0, 33.0, 36.0, 40.0, 45.0, 50.0):
        state, commands = state.step(RequestFailed(now, 0.9, "no"))
        assert timer(commands) - now <= max(1.0, (60.0 - now) / 10) + 1e-9
    state, commands = state.step(RequestFailed(61.0, 0.0, "no"))
    assert timer(commands) - 61.0 == 10.0, "after the end, as often as without a first one"
