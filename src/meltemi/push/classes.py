"""Proxy classes: proxies that get byte-identical configuration.

In: the context and one proxy. Out: a ``ProxyClass`` that holds everything that translation may read about a
proxy: *results* of selectors, never raw labels (pods carry labels that differ for each of them).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import re2

from meltemi.config.mesh import SHAPING, shaping_settings
from meltemi.model.config import Config, Key
from meltemi.model.destination_rule import LocalityLbSetting, ZoneAwareLbSetting
from meltemi.model.extensions import EnvoyFilter
from meltemi.model.mesh import ProxyConfig
from meltemi.model.names import BOOTSTRAP_XDS, SELF_DISCOVERY
from meltemi.model.places import place_label
from meltemi.model.proxy import NodeType, Proxy
from meltemi.model.security import PolicyTargetReference
from meltemi.model.service import PREFER_SAME_NODE, Protocol, Workload
from meltemi.model.topology import Sidecar
from meltemi.push.context import PushContext
from meltemi.registry.index import WORKLOAD_ENTRY

Labels = tuple[tuple[str, str], ...]


def selector(labels: Mapping[str, str] | None) -> Labels:
    """A selector in canonical form."""
    return tuple(sorted((labels or {}).items()))


def selects(wanted: Labels, labels: Mapping[str, str]) -> bool:
    """True when every wanted label is there. The empty selector selects everything."""
    return all(labels.get(key) == text for key, text in wanted)


@dataclass(frozen=True, slots=True)
class ServiceTarget:
    """One port of one service that the proxy's workload serves."""

    hostname: str
    namespace: str
    service_name: str
    port: int
    port_name: str
    protocol: Protocol
    target_port: int


@dataclass(frozen=True, slots=True)
class OwnPods:
    """The endpoints that a proxy which discovers its own service counts as its equals."""

    workload: str
    template: str  # the pods' template: during a roll-out, old and new ones do not count together


@dataclass(frozen=True, slots=True)
class ProxyClass:
    """What translation may know about a proxy.

    ``selectors`` are those of all relevant objects that matched. ``patches`` are the EnvoyFilter patches
    (object, index) whose proxy conditions hold. ``label_values`` are the proxy's values of labels that
    locality priorities compare. ``dns_capture``: names resolve to
    automatically allocated addresses. ``http10``: HTTP/1.0 is accepted, too. ``mark`` is the socket mark that exempts Envoy's own traffic from capture.
    ``settings`` are what the proxy's own ProxyConfig says about traffic, where that differs from the mesh's.
    ``takes_bootstrap``: there are patches of its start configuration, and its agent asks for them. ``own_pods``: the proxy asks for its own service's endpoints, so Envoy can compare zones.
    """

    type: NodeType
    namespace: str
    dns_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    network: str = ""
    locality: str = ""
    sidecar: Key | None = None
    targets: tuple[ServiceTarget, ...] = ()
    selectors: frozenset[Labels] = frozenset()
    patches: tuple[tuple[Key, int], ...] = ()
    label_values: Labels = ()
    mark: int = 0
    families: tuple[str, ...] = ("v4",)
    unprivileged: bool = False
    interception: str = "REDIRECT"
    node: str = ""
    dns_capture: bool = False
    http10: bool = False
    settings: ProxyConfig | None = None
    own_pods: OwnPods | None = None
    takes_bootstrap: bool = False

    @property
    def is_gateway(self) -> bool:
        """True for ingress, egress and east-west gateways."""
        return self.type is NodeType.ROUTER

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        """Whether a selector of a relevant object matched. The empty selector always does."""
        wanted = selector(labels)
        return not wanted or wanted in self.selectors


def sidecar_for(context: PushContext, proxy: Proxy) -> Config[Sidecar] | None:
    """The Sidecar of a proxy: one with a matching selector, else the namespace's, else the root namespace's."""
    if proxy.type is not NodeType.SIDECAR:
        return None
    fallback = None
    for config in context.sidecars:
        if config.meta.namespace != proxy.namespace:
            continue
        wanted = config.spec.workload_selector
        if wanted is not None and wanted.labels:
            if selects(selector(wanted.labels), proxy.labels):
                return config
        elif fallback is None:
            fallback = config
    if fallback is not None:
        return fallback
    for config in context.sidecars:
        if config.meta.namespace == context.root_namespace and (
            config.spec.workload_selector is None or not config.spec.workload_selector.labels
        ):
            return config
    return None


def workload_of(context: PushContext, proxy: Proxy) -> Workload:
    """The proxy's workload as the platform knows it, else as the proxy describes itself."""
    name = proxy.workload
    for address in proxy.addresses:
        known = context.registry.workload(address, proxy.namespace, name)
        if known is not None and known.namespace == proxy.namespace:
            return known
    for address in proxy.addresses:
        # A machine's proxy need not be named as the WorkloadEntry that somebody wrote for it.
        known = context.registry.workload(address, proxy.namespace)
        if known is not None and known.workload_kind == WORKLOAD_ENTRY:
            return known
    return Workload(name, proxy.namespace, proxy.addresses, proxy.labels)


def service_targets(context: PushContext, proxy: Proxy) -> tuple[ServiceTarget, ...]:
    """The service ports that the proxy's workload serves, in order of the services' age."""
    found = []
    for target in context.registry.service_targets(workload_of(context, proxy)):
        service = target.service
        found.append(
            ServiceTarget(
                hostname=service.hostname,
                namespace=service.namespace,
                service_name=service.meta.name
                if service.registry == "Kubernetes"
                else service.hostname,
                port=target.port.number,
                port_name=target.port.name,
                protocol=target.port.protocol,
                target_port=target.target_port,
            )
        )
    return tuple(found)


def _relevant_selectors(context: PushContext, proxy: Proxy) -> set[Labels]:
    """Selectors whose result can change this proxy's configuration."""
    found: set[Labels] = set()
    own = (proxy.namespace, context.root_namespace)
    for kind, members in context.configs.items():
        if kind in ("ServiceEntry", "WorkloadGroup", "ProxyConfig", "Sidecar"):
            continue
        if kind == "VirtualService":
            for config in members:
                found |= _source_labels(config.spec)
        elif kind == "Gateway":
            if proxy.type is NodeType.ROUTER:
                found |= {selector(config.spec.selector) for config in members}
        else:
            for config in members:
                if config.meta.namespace in own:
                    found |= _own_selector(config.spec)
                    found |= _target_selectors(config.spec)
    found.discard(())
    return found


def _own_selector(spec: object) -> set[Labels]:
    chosen = getattr(spec, "selector", None) or getattr(spec, "workload_selector", None)
    labels = getattr(chosen, "match_labels", None) or getattr(chosen, "labels", None)
    return {selector(labels)} if labels else set()


def gateway_target_labels(target: PolicyTargetReference) -> Mapping[str, str]:
    """Labels of the proxies that a reference to a Gateway or a GatewayClass of the Gateway API means; empty for others."""
    if target.group != "gateway.networking.k8s.io":
        return {}
    if target.kind == "Gateway":
        return {"gateway.networking.k8s.io/gateway-name": target.name}
    if target.kind == "GatewayClass":
        return {"gateway.networking.k8s.io/gateway-class-name": target.name}
    return {}


def _target_selectors(spec: object) -> set[Labels]:
    targets = getattr(spec, "target_refs", ()) or (getattr(spec, "target_ref", None),)
    return {
        selector(gateway_target_labels(target))
        for target in targets
        if isinstance(target, PolicyTargetReference)
    }


def _source_labels(spec: object) -> set[Labels]:
    """Source labels of all matches of a VirtualService."""
    found = set()
    for group in ("http", "tls", "tcp"):
        for rule in getattr(spec, group):
            for match in rule.match:
                if match.source_labels:
                    found.add(selector(match.source_labels))
    return found


def _matched_patches(context: PushContext, proxy: Proxy) -> tuple[tuple[Key, int], ...]:
    """EnvoyFilter patches for this proxy: by namespace, selector, version and metadata."""
    found: list[tuple[Key, int]] = []
    for config in context.envoy_filters:
        if config.meta.namespace not in (proxy.namespace, context.root_namespace):
            continue
        wanted = config.spec.workload_selector
        if wanted is not None and not selects(selector(wanted.labels), proxy.labels):
            continue
        if config.spec.target_refs and not _targeted(config, proxy):
            continue
        found.extend(
            (config.key, index)
            for index in range(len(config.spec.config_patches))
            if _proxy_matches(config.spec, index, proxy)
        )
    return tuple(found)


def _patch_bootstrap(context: PushContext, patches: Iterable[tuple[Key, int]]) -> bool:
    specs = {config.key: config.spec for config in context.envoy_filters}
    return any(specs[key].config_patches[index].apply_to == "BOOTSTRAP" for key, index in patches)


def _targeted(config: Config[EnvoyFilter], proxy: Proxy) -> bool:
    """Whether a target is the Gateway (of the object's namespace) or the GatewayClass that the proxy serves."""
    for target in config.spec.target_refs:
        labels = gateway_target_labels(target)
        near = target.kind == "GatewayClass" or config.meta.namespace == proxy.namespace
        if labels and near and selects(selector(labels), proxy.labels):
            return True
    return False


def _proxy_matches(spec: EnvoyFilter, index: int, proxy: Proxy) -> bool:
    match = spec.config_patches[index].match
    if match is None or match.proxy is None:
        return True
    pattern = match.proxy.proxy_version
    if pattern:
        try:
            if re2.search(pattern, proxy.version) is None:
                return False
        except re2.error:
            return False
    return all(str(proxy.metadata.get(k, "")) == v for k, v in match.proxy.metadata.items())


def _priority_labels(context: PushContext) -> set[str]:
    """Labels that locality priorities compare; ``label=value`` entries name theirs themselves."""
    found: set[str] = set()
    mesh = context.mesh
    settings: list[LocalityLbSetting | ZoneAwareLbSetting | None] = [
        mesh.locality_lb_setting,
        mesh.zone_aware_lb_setting,
    ]
    for config in context.destination_rules:
        spec = config.spec
        policies = [spec.traffic_policy, *(s.traffic_policy for s in spec.subsets)]
        for policy in [policy for policy in policies if policy is not None]:
            for balancer in (
                policy.load_balancer,
                *(port.load_balancer for port in policy.port_level_settings),
            ):
                if balancer is not None:
                    settings += [balancer.locality_lb_setting, balancer.zone_aware_lb_setting]
    for setting in settings:
        if setting is not None:
            found |= {entry for entry in setting.failover_priority if "=" not in entry}
    return found


def _priority_label(proxy: Proxy, name: str) -> str:
    """The proxy's own value of a label that locality priorities compare."""
    node = str(proxy.metadata.get("NODE_NAME", ""))
    place = place_label(name, proxy.locality, proxy.network, proxy.cluster_id, node)
    return proxy.labels.get(name, "") if place is None else place


def _own_pods(context: PushContext, proxy: Proxy) -> OwnPods | None:
    if proxy.type is not NodeType.SIDECAR or not _truth(proxy, SELF_DISCOVERY):
        return None
    # By the name that the workload's endpoints have.
    name = workload_of(context, proxy).workload_name or proxy.workload_name
    return OwnPods(name, proxy.labels.get("pod-template-hash", ""))


def _truth(proxy: Proxy, key: str) -> bool:
    return str(proxy.metadata.get(key, "")).lower() in ("true", "1")


def _families(addresses: tuple[str, ...]) -> tuple[str, ...]:
    families = {"v6" if ":" in address else "v4" for address in addresses}
    return tuple(sorted(families)) or ("v4",)


def _settings(context: PushContext, proxy: Proxy) -> ProxyConfig | None:
    raw = proxy.metadata.get("PROXY_CONFIG")
    if not isinstance(raw, Mapping):
        return None
    memo = ("settings", json.dumps({name: raw.get(name) for name in SHAPING}, sort_keys=True))
    if memo not in context.memo:
        context.memo[memo] = shaping_settings(context.mesh.default_config, raw)
    found = context.memo[memo]
    return found if isinstance(found, ProxyConfig) else None


_DIGITS = re.compile(r"^\d+$")


def class_key(context: PushContext, proxy: Proxy) -> ProxyClass:
    """The class of a proxy. Equal classes get equal bytes."""
    chosen = sidecar_for(context, proxy)
    wanted = _relevant_selectors(context, proxy)
    labels = _priority_labels(context)
    patches = _matched_patches(context, proxy)
    mark = str(proxy.metadata.get("MESH_SO_MARK", ""))
    node_local = any(
        service.internal_traffic_local or service.traffic_distribution == PREFER_SAME_NODE
        for service in context.services
    )
    return ProxyClass(
        type=proxy.type,
        namespace=proxy.namespace,
        dns_domain=proxy.dns_domain,
        cluster_id=proxy.cluster_id,
        network=proxy.network,
        locality=proxy.locality,
        sidecar=chosen.key if chosen is not None else None,
        targets=service_targets(context, proxy),
        selectors=frozenset(labels for labels in wanted if selects(labels, proxy.labels)),
        patches=patches,
        takes_bootstrap=_truth(proxy, BOOTSTRAP_XDS) and _patch_bootstrap(context, patches),
        label_values=tuple(sorted((name, _priority_label(proxy, name)) for name in labels)),
        mark=int(mark) if _DIGITS.match(mark) else 0,
        families=_families(proxy.addresses),
        unprivileged=proxy.bind_ports_unprivileged,
        interception=proxy.interception_mode,
        node=str(proxy.metadata.get("NODE_NAME", "")) if node_local else "",
        dns_capture=_truth(proxy, "DNS_CAPTURE"),
        http10=str(proxy.metadata.get("HTTP10", "")) == "1",
        settings=_settings(context, proxy),
        own_pods=_own_pods(context, proxy),
    )
