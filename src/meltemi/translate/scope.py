"""What one class of proxies can see: services and VirtualServices, after exportTo and Sidecar.

Istio's SidecarScope. Depends only on namespace and Sidecar, so it is computed once per context and pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

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
    """Visible services (each hostname once), rules for the mesh, and the outbound policy.

    ``aliases`` are ExternalName Services, by the host of the service in scope that they stand for. They are no
    services of their own; ``by_host`` has the real one under their names, too.
    """

    services: tuple[Service, ...]
    by_host: Mapping[str, Service]
    virtual_services: tuple[Config[VirtualService], ...]
    outbound: OutboundTrafficPolicy
    sidecar: Config[Sidecar] | None = None
    aliases: Mapping[str, tuple[Service, ...]] = field(default_factory=dict)
    exact: Mapping[str, tuple[Config[VirtualService], ...]] = field(default_factory=dict)
    wildcards: tuple[tuple[str, Config[VirtualService]], ...] = ()

    def rules_for(self, hostname: str) -> Iterable[Config[VirtualService]]:
        """The rules for a host in order of precedence: exact ones, then the longest wildcard; the oldest first.

        The first that says something for a protocol, port and client holds for it.
        """
        yield from self.exact.get(hostname, ())
        for pattern, config in self.wildcards:
            if covers(pattern, hostname):
                yield config


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


def visible_services(
    context: PushContext, namespace: str, wanted: Callable[[Service], bool]
) -> dict[str, Service]:
    """Wanted services that a namespace sees, each hostname once: its own first, then Kubernetes', then the oldest."""
    defaults = context.mesh.default_service_export_to
    chosen: dict[str, Service] = {}
    for service in context.services:
        if not is_visible(service.export_to, defaults, service.namespace, namespace):
            continue
        if not wanted(service):
            continue
        known = chosen.get(service.hostname)
        if known is None or _prefers(service, known, namespace):
            chosen[service.hostname] = service
    return chosen


def _prefers(new: Service, old: Service, namespace: str) -> bool:
    if old.namespace == namespace or new.namespace == namespace:
        return old.namespace != namespace
    return new.registry == "Kubernetes" and old.registry != "Kubernetes"


def _egress_patterns(sidecar: Config[Sidecar], own: str) -> list[tuple[str, str]] | None:
    """(namespace, host) patterns of a Sidecar's egress; None when it does not restrict."""
    if not sidecar.spec.egress:
        return None
    return [
        pattern for listener in sidecar.spec.egress for pattern in _host_patterns(listener, own)
    ]


def _host_patterns(listener: IstioEgressListener, own: str) -> list[tuple[str, str]]:
    """(namespace, host) patterns of one egress listener. ``.`` is the proxy's namespace, also in a mesh-wide Sidecar."""
    found = []
    for entry in listener.hosts:
        namespace, _, host = entry.rpartition("/")
        if namespace == ".":
            namespace = own
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
    for config in resolve_delegates(context, proxy.dns_domain):
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
    patterns = _egress_patterns(sidecar, proxy.namespace) if sidecar is not None else None
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
        patterns = _host_patterns(sidecar.spec.egress[index], proxy.namespace)
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
    by_host = _services_in_scope(context, proxy, patterns, rules)
    aliases = _take_aliases(by_host)
    services = tuple(service for host, service in by_host.items() if host == service.hostname)
    exact: dict[str, tuple[Config[VirtualService], ...]] = {}
    wildcards: list[tuple[str, Config[VirtualService]]] = []
    for config in rules:
        if not bound_to(config, MESH_GATEWAY):
            continue
        for host in config.spec.hosts:
            full = resolve_short_name(host, config.meta.namespace, proxy.dns_domain)
            if full.startswith("*"):
                wildcards.append((full, config))
            else:
                exact[full] = (*exact.get(full, ()), config)
    return Scope(
        services=services,
        by_host=by_host,
        virtual_services=tuple(rules),
        outbound=_outbound_policy(context, sidecar),
        sidecar=sidecar,
        aliases=aliases,
        exact=exact,
        wildcards=tuple(sorted(wildcards, key=lambda entry: specificity(entry[0]))),
    )


def _outbound_policy(
    context: PushContext, sidecar: Config[Sidecar] | None
) -> OutboundTrafficPolicy:
    """The Sidecar's policy, else the mesh's. One that names no mode means the first of the API's, REGISTRY_ONLY."""
    own = sidecar.spec.outbound_traffic_policy if sidecar is not None else None
    if own is None:
        return context.mesh.outbound_traffic_policy
    return own if own.mode is not None else msgspec.structs.replace(own, mode="REGISTRY_ONLY")


def _services_in_scope(
    context: PushContext,
    proxy: ProxyClass,
    patterns: list[tuple[str, str]] | None,
    rules: list[Config[VirtualService]],
) -> dict[str, Service]:
    """Services that the Sidecar names, and those that its rules and ExternalName Services lead to."""

    def named(service: Service) -> bool:
        return _allowed(patterns, service.namespace, service.hostname)

    found = visible_services(context, proxy.namespace, named)
    if patterns is None:
        return found
    implied = _destinations(rules, proxy.dns_domain) - found.keys()
    implied |= {s.external_name for s in found.values() if s.external_name} - found.keys()
    if implied:
        found |= visible_services(context, proxy.namespace, lambda s: s.hostname in implied)
    return found


def _take_aliases(by_host: dict[str, Service]) -> dict[str, tuple[Service, ...]]:
    """ExternalName Services whose target is in scope; ``by_host`` gets the target under their names.

    DNS sends their clients to the target itself, so its rules, identities and endpoints must hold for them.
    """
    found: dict[str, list[Service]] = {}
    for host, alias in list(by_host.items()):
        target, seen = alias, {host}
        while target.external_name and target.external_name not in seen:
            seen.add(target.external_name)
            known = by_host.get(target.external_name)
            if known is None:
                break
            target = known
        if target is not alias and not target.external_name:
            found.setdefault(target.hostname, []).append(alias)
    for host, aliases in found.items():
        for alias in aliases:
            by_host[alias.hostname] = by_host[host]
    return {host: tuple(aliases) for host, aliases in found.items()}


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
