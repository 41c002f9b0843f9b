"""Whether a proxy is ready, from Envoy's own words.

In: the text of Envoy's ``/stats`` (``STATS_FILTER`` names what is needed). Out: ready, or the reason in
Istio's words. Ready means: workers run, the server is LIVE (not draining), clusters and listeners from
istiod have been accepted or refused at least once.
"""

from __future__ import annotations

from dataclasses import dataclass

STATS_FILTER = (
    "^(cluster_manager\\.cds|listener_manager\\.lds)\\.update_(success|rejected)$"
    "|^listener_manager\\.workers_started$|^server\\.state$"
)
_LIVE = 0
_STATES = ("live", "draining", "pre-initializing", "initializing")


@dataclass(frozen=True, slots=True)
class Readiness:
    """``reason`` says what is missing, and is empty when ready."""

    ready: bool
    reason: str = ""


def parse_stats(text: str) -> dict[str, int]:
    """Numbers by name of Envoy's text format; histograms and texts are skipped."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        name, sign, value = line.partition(": ")
        if sign and value.isdecimal():
            found[name] = int(value)
    return found


def judge_readiness(text: str) -> Readiness:
    """The verdict on one answer of ``/stats``."""
    stats = parse_stats(text)
    cds = stats.get("cluster_manager.cds.update_success", 0)
    cds_bad = stats.get("cluster_manager.cds.update_rejected", 0)
    lds = stats.get("listener_manager.lds.update_success", 0)
    lds_bad = stats.get("listener_manager.lds.update_rejected", 0)
    if not (cds + cds_bad and lds + lds_bad):
        counts = f"cds updates: {cds} successful, {cds_bad} rejected; lds updates: {lds} successful, {lds_bad} rejected"
        hint = "" if cds or cds_bad or lds or lds_bad else " (is istiod reachable?)"
        return Readiness(False, f"config not fully received from XDS server{hint}: {counts}")
    if not stats.get("listener_manager.workers_started", 0):
        return Readiness(False, "workers have not yet started")
    state = stats.get("server.state", 3)
    if state != _LIVE:
        name = _STATES[state] if state < len(_STATES) else str(state)
        return Readiness(False, f"server is not live, current state is: {name}")
    return Readiness(True)


def count_connections(text: str, own: tuple[str, ...]) -> int:
    """Open downstream connections in ``/stats`` text, without the agent's ``own`` listeners."""
    total = 0
    for name, value in parse_stats(text).items():
        if not (name.startswith("listener.") and name.endswith(".downstream_cx_active")):
            continue
        listener = name.removeprefix("listener.").removesuffix(".downstream_cx_active")
        if "worker_" in listener or "main_thread" in listener:
            continue
        if not listener.startswith("admin") and not listener.endswith(own):
            total += value
    return total
