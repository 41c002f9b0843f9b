"""What one class of proxies can see: services and VirtualServices, after exportTo and Sidecar.

Istio's SidecarScope. Depends only on namespace and Sidecar, so it is computed once per context and pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meltemi.model.config import Config
from meltemi.model.names import resolve_short_name
from meltemi.model.service import Service
from meltemi.model.topology import IstioEgressListener, OutboundTrafficPolicy, Sidecar
from meltemi.model.traffic import VirtualService
from meltemi.push.classes import ProxyClass
from meltemi.push.context import PushContext
from meltemi.translate.delegates import resolve_delegates
from meltemi.translate.visibility import covers, is_visible, specificity

MESH_GATEWAY = "mesh"


@dataclass(frozen=True, eq=False)
class Scope:
    """Visible services (each hostname once), rules for the mesh, and the outbound policy."""

    services: tuple[Service, ...]
    by_host: Mapping[str, Service]
    virtual_services: tuple[Config[VirtualService], ...]
    outbound: OutboundTrafficPolicy
    sidecar: Config[Sidecar] | None = None
    exact: Mapping[str, Config[VirtualService]] = field(default_factory=dict)
    wildcards: tuple[tuple[str, Config[VirtualService]], ...] = ()

    def virtual_service(self, hostname: str) -> Config[VirtualService] | None:
        """The rule for a host: an exact one, else the one with the longest wildcard. The oldest wins a tie."""
        found = self.exact.get(hostname)
        if found is not None:
            return found
        for pattern, config in self.wildcards:
            if covers(pattern, hostname):
                return config
        return None


def bound_to(config: Config[VirtualService], gateway: str) -> bool:
    """Whether any part of a VirtualService applies at ``gateway`` (``mesh`` or ``namespace/name``)."""
    namespace = config.meta.namespace
    own = [qualified(name, namespace) for name in config.spec.gateways] or [MESH_GATEWAY]
    if gateway in own:
        return True
    return any(
        gateway == qualified(name, namespace)
        for group in (config.spec.http, config.spec.tls, config.spec.tcp)
        for rule in group
        for match in rule.match
        for name in match.gateways
    )


def qualified(gateway: str, namespace: str) -> str:
    """``namespace/name`` of a gateway reference; ``mesh`` stays."""
    if gateway == MESH_GATEWAY or "/" in gateway:
        return gateway.replace("./", f"{namespace}/", 1) if gateway.startswith("./") else gateway
    if "." in gateway:  # deprecated form name.namespace
        name, _, rest = gateway.partition(".")
        return f"{rest.split('.')[0]}/{name}"
    return f"{namespace}/{gateway}"


def visible_services(context: PushContext, namespace: str) -> dict[str, Service]:
    """Services that a namespace sees, each hostname once: its own first, then Kubernetes', then the oldest."""
    defaults = context.mesh.default_service_export_to
    chosen: dict[str, Service] = {}
    for service in context.services:
        if not is_visible(service.export_to, defaults, service.namespace, namespace):
            continue
        known = chosen.get(service.hostname)
        if known is None or _prefers(service, known, namespace):
            chosen[service.hostname] = service
    return chosen


def _prefers(new: Service, old: Service, namespace: str) -> bool:
    if old.namespace == namespace or new.namespace == namespace:
        return old.namespace != namespace
    return new.registry == "Kubernetes" and old.registry != "Kubernetes"


def _egress_patterns(sidecar: Config[Sidecar]) -> list[tuple[str, str]] | None:
    """(namespace, host) patterns of a Sidecar's egress; None when it does not restrict."""
    if not sidecar.spec.egress:
        return None
    return [
        pattern for listener in sidecar.spec.egress for pattern in _host_patterns(sidecar, listener)
    ]


def _host_patterns(
    sidecar: Config[Sidecar], listener: IstioEgressListener
) -> list[tuple[str, str]]:
    """(namespace, host) patterns of one egress listener."""
    found = []
    for entry in listener.hosts:
        namespace, _, host = entry.rpartition("/")
        if namespace == ".":
            namespace = sidecar.meta.namespace
        found.append((namespace or "*", host))
    return found


def _allowed(patterns: list[tuple[str, str]] | None, namespace: str, host: str) -> bool:
    if patterns is None:
        return True
    return any(
        wanted != "~" and wanted in ("*", namespace) and (covers(name, host) or covers(host, name))
        for wanted, name in patterns
    )


def _sidecar(context: PushContext, proxy: ProxyClass) -> Config[Sidecar] | None:
    if proxy.sidecar is None:
        return None
    return next((c for c in context.sidecars if c.key == proxy.sidecar), None)


def _rules(
    context: PushContext, proxy: ProxyClass, patterns: list[tuple[str, str]] | None
) -> list[Config[VirtualService]]:
    defaults = context.mesh.default_virtual_service_export_to
    found = []
    for config in resolve_delegates(context):
        spec, owner = config.spec, config.meta.namespace
        if not is_visible(spec.export_to, defaults, owner, proxy.namespace):
            continue
        hosts = [resolve_short_name(host, owner, proxy.dns_domain) for host in spec.hosts]
        if any(_allowed(patterns, owner, host) for host in hosts):
            found.append(config)
    return found


def build_scope(context: PushContext, proxy: ProxyClass) -> Scope:
    """The scope of a class, remembered in the context."""
    memo = ("scope", proxy.namespace, proxy.sidecar, proxy.is_gateway)
    known = context.memo.get(memo)
    if isinstance(known, Scope):
        return known
    sidecar = _sidecar(context, proxy)
    patterns = _egress_patterns(sidecar) if sidecar is not None else None
    made = _assemble(context, proxy, sidecar, patterns)
    context.memo[memo] = made
    return made


def egress_scope(context: PushContext, proxy: ProxyClass, index: int) -> Scope:
    """What one egress listener of the proxy's Sidecar sees, remembered in the context."""
    memo = ("egress", proxy.namespace, proxy.sidecar, index)
    known = context.memo.get(memo)
    if isinstance(known, Scope):
        return known
    sidecar = _sidecar(context, proxy)
    patterns = None
    if sidecar is not None:
        patterns = _host_patterns(sidecar, sidecar.spec.egress[index])
    made = _assemble(context, proxy, sidecar, patterns)
    context.memo[memo] = made
    return made


def _assemble(
    context: PushContext,
    proxy: ProxyClass,
    sidecar: Config[Sidecar] | None,
    patterns: list[tuple[str, str]] | None,
) -> Scope:
    rules = _rules(context, proxy, patterns)
    wanted = _destinations(rules, proxy.dns_domain) if patterns is not None else set()
    by_host = {
        host: service
        for host, service in visible_services(context, proxy.namespace).items()
        if _allowed(patterns, service.namespace, host) or host in wanted
    }
    exact: dict[str, Config[VirtualService]] = {}
    wildcards: list[tuple[str, Config[VirtualService]]] = []
    for config in rules:
        if not bound_to(config, MESH_GATEWAY):
            continue
        for host in config.spec.hosts:
            full = resolve_short_name(host, config.meta.namespace, proxy.dns_domain)
            if full.startswith("*"):
                wildcards.append((full, config))
            else:
                exact.setdefault(full, config)
    outbound = context.mesh.outbound_traffic_policy
    if sidecar is not None and sidecar.spec.outbound_traffic_policy is not None:
        outbound = sidecar.spec.outbound_traffic_policy
    return Scope(
        services=tuple(by_host.values()),
        by_host=by_host,
        virtual_services=tuple(rules),
        outbound=outbound,
        sidecar=sidecar,
        exact=exact,
        wildcards=tuple(sorted(wildcards, key=lambda entry: specificity(entry[0]))),
    )


def _destinations(rules: list[Config[VirtualService]], domain: str) -> set[str]:
    """Hosts that visible rules send traffic to: a Sidecar's scope includes them."""
    found = set()
    for config in rules:
        for group in (config.spec.http, config.spec.tls, config.spec.tcp):
            for rule in group:
                for target in rule.route:
                    found.add(
                        resolve_short_name(target.destination.host, config.meta.namespace, domain)
                    )
    return found
