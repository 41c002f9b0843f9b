"""Analyzers of VirtualServices and DestinationRules: references, conflicts, rules that never match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from meltemi.analyze.context import Analysis
from meltemi.config.paths import item, join
from meltemi.config.reader import nearest
from meltemi.config.validate_virtual_service import covers
from meltemi.model.config import Config
from meltemi.model.topology import Gateway
from meltemi.model.traffic import Destination, HTTPMatchRequest, TCPRoute, TLSRoute, VirtualService
from meltemi.translate.delegates import delegate_of, merge_rules


def destinations(spec: VirtualService) -> Iterator[tuple[str, Destination]]:
    """Every destination of a VirtualService and its path."""
    for index, http in enumerate(spec.http):
        path = item("spec.http", index)
        for number, route in enumerate(http.route):
            yield item(f"{path}.route", number) + ".destination", route.destination
        if http.mirror is not None:
            yield f"{path}.mirror", http.mirror
        for number, mirror in enumerate(http.mirrors):
            yield item(f"{path}.mirrors", number) + ".destination", mirror.destination
    kinds: tuple[tuple[str, Sequence[TLSRoute | TCPRoute]], ...] = (
        ("tls", spec.tls),
        ("tcp", spec.tcp),
    )
    for kind, rules in kinds:
        for index, rule in enumerate(rules):
            for number, target in enumerate(rule.route):
                path = item(item(f"spec.{kind}", index) + ".route", number)
                yield f"{path}.destination", target.destination


def analyze_destinations(context: Analysis) -> None:
    """Hosts, subsets and ports that VirtualServices route to exist (IST0101, IST0112)."""
    for config in context.of("VirtualService"):
        for path, destination in destinations(config.spec):
            services = context.services_for(destination.host, config.meta.namespace)
            if not services:
                _unknown_host(context, config, f"{path}.host", destination.host)
                continue
            ports = {port.number for service in services for port in service.ports}
            if destination.port is None and len(ports) > 1 and not _mesh_only(config.spec):
                listed = ", ".join(map(str, sorted(ports)))
                remedy = "add port: {number: ...}"
                context.add("IST0112", config, path, remedy, host=destination.host, ports=listed)
            elif destination.port is not None and ports and destination.port.number not in ports:
                name = f"{destination.host}:{destination.port.number}"
                remedy = f"use one of {', '.join(map(str, sorted(ports)))}"
                context.add(
                    "IST0101", config, f"{path}.port.number", remedy, kind="port", name=name
                )
            if destination.subset:
                _subset(context, config, path, destination)


def _mesh_only(spec: VirtualService) -> bool:
    """Sidecars pick the port that the client used; gateways have to be told."""
    return not spec.gateways or tuple(spec.gateways) == ("mesh",)


def _unknown_host(context: Analysis, config: Config[Any], path: str, host: str) -> None:
    full = context.hostname(host, config.meta.namespace)
    near = {
        s.meta.name: s.hostname
        for s in context.registry.by_namespace.get(config.meta.namespace, ())
    }
    guess = near.get(nearest(host.partition(".")[0], near), "")
    if not guess and "." in host:
        guess = nearest(host, [s.hostname for s in context.registry.all_services])
    remedy = f"did you mean {guess}?" if guess else "create the Service or a ServiceEntry for it"
    if full != host and not guess:
        remedy += f"; the short name stands for {full}"
    context.add("IST0101", config, path, remedy, kind="host", name=host)


def _subset(context: Analysis, config: Config[Any], path: str, destination: Destination) -> None:
    full = context.hostname(destination.host, config.meta.namespace)
    known = [subset.name for rule in context.rules_for(full) for subset in rule.spec.subsets]
    if destination.subset not in known:
        guess = nearest(destination.subset, known)
        remedy = f"did you mean {guess}?" if guess else f"add it to a DestinationRule for {full}"
        name = f"{destination.host}+{destination.subset}"
        context.add("IST0101", config, f"{path}.subset", remedy, kind="subset", name=name)


def analyze_destination_rules(context: Analysis) -> None:
    """Hosts of DestinationRules exist (IST0101)."""
    for config in context.of("DestinationRule"):
        host = config.spec.host
        if "*" not in host and not context.services_for(host, config.meta.namespace):
            _unknown_host(context, config, "spec.host", host)


def gateway_of(context: Analysis, config: Config[Any], name: str) -> Config[Gateway] | None:
    """The Gateway that a VirtualService names."""
    namespace, _, short = name.rpartition("/")
    namespace = config.meta.namespace if namespace in ("", ".") else namespace
    return context.find("Gateway", namespace, short)


def analyze_gateways(context: Analysis) -> None:
    """Gateways that VirtualServices name exist (IST0101) and serve their hosts (IST0132)."""
    for config in context.of("VirtualService"):
        for index, name in enumerate(config.spec.gateways):
            path = item("spec.gateways", index)
            if name == "mesh":
                continue
            gateway = gateway_of(context, config, name)
            if gateway is None:
                names = [f"{g.meta.namespace}/{g.meta.name}" for g in context.of("Gateway")]
                guess = nearest(name if "/" in name else f"{config.meta.namespace}/{name}", names)
                remedy = f"did you mean {guess}?" if guess else "create it, or write namespace/name"
                context.add("IST0101", config, path, remedy, kind="gateway", name=name)
            elif not _serves(context, gateway, config):
                hosts = ", ".join(config.spec.hosts)
                remedy = "add one of them to the gateway's hosts"
                context.add("IST0132", config, path, remedy, gateway=name, hosts=hosts)


def _serves(context: Analysis, gateway: Config[Gateway], config: Config[VirtualService]) -> bool:
    if not config.spec.hosts:
        return True
    for server in gateway.spec.servers:
        for entry in server.hosts:
            space, slash, host = entry.rpartition("/")
            space = gateway.meta.namespace if space == "." else space
            if slash and space not in ("*", config.meta.namespace):
                continue
            for wanted in config.spec.hosts:
                full = context.hostname(wanted, config.meta.namespace)
                if covers(host, wanted) or covers(wanted, host) or covers(host, full):
                    return True
    return False


def analyze_delegates(context: Analysis) -> None:
    """Delegates exist, have no hosts and are exported (IST0101); their rules can hold together with the root's (MLT0023)."""
    leaves = {
        config.key: config for config in context.of("VirtualService") if not config.spec.hosts
    }
    for config in context.of("VirtualService"):
        for index, rule in enumerate(config.spec.http):
            if rule.delegate is None or not config.spec.hosts:
                continue
            path = item("spec.http", index) + ".delegate"
            leaf = delegate_of(config, rule.delegate, leaves, context.mesh)
            space = rule.delegate.namespace or config.meta.namespace
            name = f"{space}/{rule.delegate.name}"
            if leaf is None:
                remedy = _no_delegate(context, space, rule.delegate.name)
                context.add("IST0101", config, path, remedy, kind="delegate", name=name)
                continue
            for number, inner in enumerate(leaf.spec.http):
                if merge_rules(rule, inner) is None:
                    remedy = "let the delegate's match say more about what the root's match takes"
                    context.add("MLT0023", config, path, remedy, rule=number, name=name)


def _no_delegate(context: Analysis, namespace: str, name: str) -> str:
    found = context.find("VirtualService", namespace, name)
    if found is None:
        return "create it: a VirtualService without hosts"
    if found.spec.hosts:
        return "take the hosts out of it: a delegate has none"
    return "have its exportTo name this namespace"


def analyze_claims(context: Analysis) -> None:
    """Routing on claims of a token needs a RequestAuthentication at the gateway (IST0149)."""
    for config in context.of("VirtualService"):
        for index, rule in enumerate(config.spec.http):
            for number, match in enumerate(rule.match):
                for field, headers in (
                    ("headers", match.headers),
                    ("withoutHeaders", match.without_headers),
                ):
                    for name in headers:
                        if name.startswith("@request.auth.claims"):
                            path = item(item("spec.http", index) + ".match", number) + f".{field}"
                            _claim(context, config, join(path, name), name)


def _claim(context: Analysis, config: Config[VirtualService], path: str, name: str) -> None:
    for gateway in config.spec.gateways:
        found = gateway_of(context, config, gateway) if gateway != "mesh" else None
        if found is None or any(
            _checks_tokens(context, found, c) for c in context.of("RequestAuthentication")
        ):
            continue
        remedy = "add a RequestAuthentication in the gateway's namespace that selects its pods"
        context.add("IST0149", config, path, remedy, key=name, gateway=gateway)


def _checks_tokens(context: Analysis, gateway: Config[Gateway], policy: Config[Any]) -> bool:
    """Whether a policy selects pods of a gateway; where pods are unknown, whether it could."""
    wanted = policy.spec.selector.match_labels if policy.spec.selector else {}
    spaces = {pod.namespace for pod in context.workloads("", gateway.spec.selector)}
    if spaces and policy.meta.namespace not in (*spaces, context.mesh.root_namespace):
        return False
    return all(gateway.spec.selector.get(key, value) == value for key, value in wanted.items())


def analyze_reachability(context: Analysis) -> None:
    """Rules after one that matches everything, or with the same matches (IST0130, IST0131)."""
    for config in context.of("VirtualService"):
        for kind in ("http", "tls", "tcp"):
            _reachability(context, config, kind, getattr(config.spec, kind))


def _reachability(context: Analysis, config: Config[Any], kind: str, rules: Sequence[Any]) -> None:
    seen: dict[Any, int] = {}
    catch_all: int | None = None
    for index, rule in enumerate(rules):
        path = item(f"spec.{kind}", index)
        if catch_all is not None:
            reason = f"rule {catch_all} matches everything"
            context.add("IST0130", config, path, "move it up, or remove it", reason=reason)
            continue
        matches = [without_name(match) for match in rule.match]
        if matches and all(match in seen for match in matches):
            reason = f"rule {seen[matches[0]]} has the same match"
            context.add("IST0130", config, path, "change the match, or remove it", reason=reason)
            continue
        for number, match in enumerate(matches):
            if match in seen:
                where = item(f"{path}.match", number)
                context.add("IST0131", config, where, "remove it", rule=seen[match])
            seen.setdefault(match, index)
        if not matches or any(_matches_all(match) for match in matches):
            catch_all = index


def without_name(match: Any) -> Any:
    """A match without what has no influence on matching."""
    if isinstance(match, HTTPMatchRequest):
        return type(match)(
            **{
                name: getattr(match, name)
                for name in match.__struct_fields__
                if name not in ("name", "stat_prefix")
            }
        )
    return match


def _matches_all(match: Any) -> bool:
    if match == type(match)():
        return True
    return (
        isinstance(match, HTTPMatchRequest)
        and match.uri is not None
        and match.uri.prefix == "/"
        and match == HTTPMatchRequest(uri=match.uri, ignore_uri_case=match.ignore_uri_case)
    )
