"""PeerAuthentication: whether a workload takes plaintext, mTLS or both, per port.

Workload policies win over the namespace's, that over the mesh's; UNSET inherits; the default is PERMISSIVE. Of several
at one level the oldest holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from meltemi.ir.value import Pairs
from meltemi.model.config import Config
from meltemi.model.origin import Origin
from meltemi.model.security import MutualTLS, PeerAuthentication
from meltemi.push.classes import ProxyClass, selector
from meltemi.push.context import PushContext

Mode = Literal["DISABLE", "PERMISSIVE", "STRICT"]


@dataclass(frozen=True, slots=True)
class PeerPolicy:
    """The modes of one workload: ``default`` for all ports but those in ``ports``."""

    default: Mode = "PERMISSIVE"
    ports: tuple[tuple[int, Mode], ...] = ()
    origins: tuple[Origin, ...] = ()

    def at(self, port: int) -> Mode:
        """The mode of a port of the workload."""
        return dict(self.ports).get(port, self.default)


def _mode(settings: MutualTLS | None) -> Mode | None:
    if settings is None or settings.mode == "UNSET":
        return None
    return settings.mode


def _has_selector(config: Config[PeerAuthentication]) -> bool:
    return config.spec.selector is not None and bool(config.spec.selector.match_labels)


def _general(context: PushContext, namespace: str) -> list[Config[PeerAuthentication]]:
    """Policies without selector that hold in a namespace: its own (oldest), then the mesh's."""
    found = []
    for place in dict.fromkeys((namespace, context.root_namespace)):
        for config in context.peer_authentications:
            if config.meta.namespace == place and not _has_selector(config):
                found.append(config)
                break
    return found


def namespace_mode(context: PushContext, namespace: str) -> tuple[Mode, tuple[Origin, ...]]:
    """The mode of a namespace without regard to workloads."""
    for config in _general(context, namespace):
        mode = _mode(config.spec.mtls)
        if mode is not None:
            return mode, (config.origin("spec.mtls.mode"),)
    return "PERMISSIVE", ()


def peer_policy(context: PushContext, proxy: ProxyClass) -> PeerPolicy:
    """What the workloads of a class accept."""
    default, origins = namespace_mode(context, proxy.namespace)
    for config in _own(context, proxy):
        mode = _mode(config.spec.mtls)
        if mode is not None:
            default, origins = mode, (config.origin("spec.mtls.mode"),)
        ports = []
        for port, settings in sorted(config.spec.port_level_mtls.items()):
            ports.append((int(port), _mode(settings) or default))
        return PeerPolicy(default, tuple(ports), origins or (config.origin(),))
    return PeerPolicy(default, (), origins)


def _own(context: PushContext, proxy: ProxyClass) -> Iterable[Config[PeerAuthentication]]:
    """Policies whose selector matches the workload, oldest first."""
    for config in context.peer_authentications:
        chosen = config.spec.selector
        if (
            config.meta.namespace == proxy.namespace
            and chosen is not None
            and chosen.match_labels
            and proxy.matches(chosen.match_labels)
        ):
            yield config


def plaintext_workloads(context: PushContext, namespace: str) -> tuple[tuple[Pairs, int], ...]:
    """(labels, port) of a namespace's workloads that refuse mTLS; clients must not use it with them.

    A workload policy that turns mTLS on again inside a namespace that disables it is honoured by leaving the
    namespace's entry out; its other workloads are then asked by their endpoints' own tlsMode only.
    """
    default, _ = namespace_mode(context, namespace)
    found: list[tuple[Pairs, int]] = []
    exceptions = False
    for config in context.peer_authentications:
        if config.meta.namespace != namespace or not _has_selector(config):
            continue
        chosen = config.spec.selector
        labels = selector(chosen.match_labels if chosen is not None else None)
        own = _mode(config.spec.mtls)
        if own == "DISABLE":
            found.append((labels, 0))
        elif own is not None and default == "DISABLE":
            exceptions = True
        for port, settings in sorted(config.spec.port_level_mtls.items()):
            if _mode(settings) == "DISABLE":
                found.append((labels, int(port)))
    if default == "DISABLE" and not exceptions:
        found.append(((), 0))
    return tuple(found)
