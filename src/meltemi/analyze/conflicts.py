"""Analyzers of objects that claim the same: what Istio's rules make of it, told to all of them.

* VirtualServices of the mesh for one host: the oldest counts (IST0109).
* VirtualServices of a gateway for one host: they are merged, oldest first, so a match that both have is the older's (MLT0022).
* DestinationRules of one namespace for one host: they are merged; the oldest's trafficPolicy and the first subset of a name
  count (MLT0021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from meltemi.analyze.context import Analysis
from meltemi.analyze.routes import gateway_of, without_name
from meltemi.config.paths import item
from meltemi.model.config import Config
from meltemi.model.destination_rule import DestinationRule
from meltemi.model.traffic import VirtualService

Rules = list[Config[DestinationRule]]
Routes = list[Config[VirtualService]]


def analyze_mesh_hosts(context: Analysis) -> None:
    """Inside the mesh one VirtualService per host counts (IST0109)."""
    owners: dict[str, Routes] = {}
    for config in context.of("VirtualService"):
        if config.spec.gateways and "mesh" not in config.spec.gateways:
            continue
        for host in dict.fromkeys(config.spec.hosts):
            owners.setdefault(context.hostname(host, config.meta.namespace), []).append(config)
    for host, group in owners.items():
        for config in group:
            others = [c for c in group if c is not config and _meets(context, c, config)]
            if others:
                path = item("spec.hosts", _index_of(context, config, host))
                remedy = "join them into one VirtualService"
                context.add("IST0109", config, path, remedy, host=host, others=_names(others))


def _index_of(context: Analysis, config: Config[VirtualService], host: str) -> int:
    space = config.meta.namespace
    return next(
        (i for i, name in enumerate(config.spec.hosts) if context.hostname(name, space) == host), 0
    )


def _names(configs: Iterable[Config[Any]]) -> str:
    return ", ".join(f"{c.meta.namespace}/{c.meta.name}" for c in configs)


def _meets(context: Analysis, one: Config[Any], two: Config[Any]) -> bool:
    """True when some namespace sees both."""
    if one.meta.namespace == two.meta.namespace:
        return True
    default = context.mesh.default_virtual_service_export_to
    seen = []
    for config in (one, two):
        names = config.spec.export_to or default
        seen.append({config.meta.namespace if name == "." else name for name in names} - {"~"})
    return "*" in seen[0] or "*" in seen[1] or bool(seen[0] & seen[1])


def analyze_gateway_routes(context: Analysis) -> None:
    """Rules with one match for one host of one gateway, in several VirtualServices (MLT0022)."""
    owners: dict[tuple[str, str, Any], list[tuple[Config[VirtualService], str]]] = {}
    for config in context.of("VirtualService"):
        for gateway in _gateways(context, config):
            for host in dict.fromkeys(config.spec.hosts):
                for match, path in _matches(config.spec):
                    owners.setdefault((gateway, host, match), []).append((config, path))
    told: set[tuple[Any, str]] = set()
    for (gateway, host, _), group in owners.items():
        for config, path in group:
            others = [other for other, _ in group if other.key != config.key]
            if others and (config.key, path) not in told:
                told.add((config.key, path))
                remedy = "give the rules different matches, or join the objects"
                names = _names(others)
                context.add(
                    "MLT0022", config, path, remedy, others=names, host=host, gateway=gateway
                )


def _gateways(context: Analysis, config: Config[VirtualService]) -> Iterable[str]:
    """The Gateways that there are of those that it names, as namespace/name."""
    for name in config.spec.gateways:
        found = gateway_of(context, config, name) if name != "mesh" else None
        if found is not None:
            yield f"{found.meta.namespace}/{found.meta.name}"


def _matches(spec: VirtualService) -> Iterable[tuple[Any, str]]:
    """Every HTTP match, without what does not matter for matching; None is every request."""
    for index, rule in enumerate(spec.http):
        path = item("spec.http", index)
        if not rule.match:
            yield None, path
        for number, match in enumerate(rule.match):
            yield without_name(match), item(f"{path}.match", number)


def analyze_rules_of_a_host(context: Analysis) -> None:
    """Settings of a DestinationRule that an older one for the same host overrules (MLT0021)."""
    owners: dict[tuple[Any, ...], Rules] = {}
    for config in context.of("DestinationRule"):
        spec, space = config.spec, config.meta.namespace
        key = (space, context.hostname(spec.host, space), spec.workload_selector)
        owners.setdefault(key, []).append(config)
    for (_, host, _), group in owners.items():
        if len(group) > 1:
            _overruled(context, host, group, _policy, "only the oldest trafficPolicy counts")
            _overruled(
                context, host, group, _subsets, "of two subsets of one name the oldest counts"
            )


def _policy(config: Config[DestinationRule]) -> dict[str, str]:
    return {"": "spec.trafficPolicy"} if config.spec.traffic_policy is not None else {}


def _subsets(config: Config[DestinationRule]) -> dict[str, str]:
    return {
        subset.name: item("spec.subsets", index) for index, subset in enumerate(config.spec.subsets)
    }


def _overruled(
    context: Analysis,
    host: str,
    group: Rules,
    parts: Callable[[Config[DestinationRule]], dict[str, str]],
    what: str,
) -> None:
    """Tell all objects of a group that have the same part."""
    for config in group:
        for name, path in parts(config).items():
            others = [c for c in group if c is not config and name in parts(c)]
            if others:
                remedy = "join them into one DestinationRule"
                values = {"others": _names(others), "host": host, "what": what}
                context.add("MLT0021", config, path, remedy, **values)
