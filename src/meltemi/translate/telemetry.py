"""Access logs and metrics of a chain, from Telemetry objects and the mesh configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from meltemi.ir.telemetry import AccessLog, FileLog, Side, StandardStats, StatsKind
from meltemi.translate.build import Build
from meltemi.translate.log_formats import mesh_format
from meltemi.translate.log_providers import provided_log
from meltemi.translate.telemetry_rules import Metering, logging_rules, metering

T = TypeVar("T")


def _remembered(build: Build, what: str, side: Side, make: Callable[[], T]) -> T:
    """Once per class: many chains ask, and what is wrong is to be reported once."""
    key = ("telemetry", what, build.proxy, side)
    if key not in build.context.memo:
        build.context.memo[key] = make()
    found: T = build.context.memo[key]
    return found


def _files(build: Build, side: Side, *, http: bool, only: str = "") -> tuple[AccessLog, ...]:
    """The logs of one side. Without a word from Telemetry the mesh's own file, if there is one."""
    mesh = build.context.mesh
    rules = _remembered(build, "logging", side, lambda: logging_rules(build, side))
    if rules is None:
        if not mesh.access_log_file:
            return ()
        text, document = mesh_format(mesh)
        return (FileLog(mesh.access_log_file, text=text, json=document, filter=only),)
    chosen = rules

    def make() -> tuple[AccessLog, ...]:
        made = (provided_log(build, rule, http=http, only=only) for rule in chosen)
        return tuple(log for log in made if log is not None)

    return _remembered(build, f"{only}{http}", side, make)


def listener_logs(build: Build, side: Side = Side.CLIENT) -> tuple[AccessLog, ...]:
    """Connections that found no filter chain."""
    if build.context.mesh.disable_envoy_listener_log:
        return ()
    return _files(build, side, http=False, only="no_route")


def _stats(
    side: Side, kind: StatsKind, rules: Metering, security: str = "unknown", *, peer: bool = False
) -> tuple[StandardStats, ...]:
    if not rules.enabled:
        return ()
    disabled = tuple(
        name for name in rules.disabled if name.startswith("tcp") is (kind is StatsKind.TCP)
    )
    return (StandardStats(side, kind, security, peer, disabled, rules.labels),)


def _metering(build: Build, side: Side) -> Metering:
    return _remembered(build, "metrics", side, lambda: metering(build, side))


def client_logs(build: Build, kind: StatsKind) -> tuple[AccessLog, ...]:
    """What the calling side records."""
    stats = _stats(Side.CLIENT, kind, _metering(build, Side.CLIENT))
    return (*stats, *_files(build, Side.CLIENT, http=kind is StatsKind.HTTP))


def server_logs(build: Build, kind: StatsKind, *, mtls: bool) -> tuple[AccessLog, ...]:
    """What the called side records. Only an mTLS peer's word about itself counts."""
    security = "mutual_tls" if mtls else "none"
    stats = _stats(Side.SERVER, kind, _metering(build, Side.SERVER), security, peer=mtls)
    return (*stats, *_files(build, Side.SERVER, http=kind is StatsKind.HTTP))
