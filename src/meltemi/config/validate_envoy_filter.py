"""What makes an EnvoyFilter wrong, beyond its schema. In: a decoded object. Out: findings in the report."""

from __future__ import annotations

import importlib
import json

from meltemi.config import checks
from meltemi.config.paths import item, join
from meltemi.config.reader import Report
from meltemi.model.config import Config
from meltemi.model.extensions import EnvoyConfigObjectPatch, EnvoyFilter, FilterMatch
from meltemi.model.frozen import thaw

_LISTENER = "envoy.config.listener.v3"
# applyTo -> (generated module, type of the value)
_TYPES = {
    "LISTENER": (f"{_LISTENER}.listener_pb2", f"{_LISTENER}.Listener"),
    "FILTER_CHAIN": (f"{_LISTENER}.listener_components_pb2", f"{_LISTENER}.FilterChain"),
    "NETWORK_FILTER": (f"{_LISTENER}.listener_components_pb2", f"{_LISTENER}.Filter"),
    "LISTENER_FILTER": (f"{_LISTENER}.listener_components_pb2", f"{_LISTENER}.ListenerFilter"),
    "HTTP_FILTER": (
        "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    ),
    "ROUTE_CONFIGURATION": (
        "envoy.config.route.v3.route_pb2",
        "envoy.config.route.v3.RouteConfiguration",
    ),
    "VIRTUAL_HOST": (
        "envoy.config.route.v3.route_components_pb2",
        "envoy.config.route.v3.VirtualHost",
    ),
    "HTTP_ROUTE": ("envoy.config.route.v3.route_components_pb2", "envoy.config.route.v3.Route"),
    "CLUSTER": ("envoy.config.cluster.v3.cluster_pb2", "envoy.config.cluster.v3.Cluster"),
    "EXTENSION_CONFIG": (
        "envoy.config.core.v3.extension_pb2",
        "envoy.config.core.v3.TypedExtensionConfig",
    ),
    "BOOTSTRAP": ("envoy.config.bootstrap.v3.bootstrap_pb2", "envoy.config.bootstrap.v3.Bootstrap"),
}
# What each kind of configuration can undergo; the others take every operation.
_OPERATIONS = {
    "CLUSTER": ("ADD", "MERGE", "MERGE_AND_REPLACE_LIST", "REMOVE"),
    "ROUTE_CONFIGURATION": ("MERGE", "MERGE_AND_REPLACE_LIST"),
    "EXTENSION_CONFIG": ("ADD",),
    "BOOTSTRAP": ("MERGE", "MERGE_AND_REPLACE_LIST"),
    "LISTENER": ("ADD", "MERGE", "MERGE_AND_REPLACE_LIST", "REMOVE"),
    "FILTER_CHAIN": ("ADD", "MERGE", "MERGE_AND_REPLACE_LIST", "REMOVE"),
}


def validate_envoy_filter(config: Config[EnvoyFilter], report: Report) -> None:
    """All rules of EnvoyFilters."""
    spec = config.spec
    if spec.workload_selector is not None:
        checks.selector(spec.workload_selector.labels, "spec.workloadSelector.labels", report)
    checks.targets(spec, report)
    for index, entry in enumerate(spec.config_patches):
        path = item("spec.configPatches", index)
        if entry.apply_to == "INVALID":
            report.error(f"{path}.applyTo", "is required", "as in HTTP_FILTER")
        if entry.patch is None:
            report.error(f"{path}.patch", "is required", "add operation and value")
            continue
        _patch(entry, path, report)
        _filter_match(config, index, report)


def _patch(entry: EnvoyConfigObjectPatch, path: str, report: Report) -> None:
    patch = entry.patch
    assert patch is not None
    allowed = _OPERATIONS.get(entry.apply_to)
    if patch.operation == "INVALID":
        report.error(f"{path}.patch.operation", "is required", "as in MERGE or INSERT_BEFORE")
    elif allowed is not None and patch.operation not in allowed:
        text = f"{patch.operation} does not exist for applyTo {entry.apply_to}"
        report.error(f"{path}.patch.operation", text, f"use {' or '.join(allowed)}")
    if patch.operation == "REMOVE":
        if patch.value is not None:
            report.warn(f"{path}.patch.value", "has no use with REMOVE", "remove it")
    elif patch.value is None:
        report.error(f"{path}.patch.value", "is required", "write Envoy configuration")
    elif entry.apply_to in _TYPES:
        _value(entry.apply_to, json.dumps(thaw(patch.value)), f"{path}.patch.value", report)
    if patch.filter_class != "UNSPECIFIED" and (
        patch.operation != "ADD" or entry.apply_to != "HTTP_FILTER"
    ):
        text = "has an effect only for applyTo HTTP_FILTER with operation ADD"
        report.warn(f"{path}.patch.filterClass", text, "remove it")


def _value(apply_to: str, body: str, path: str, report: Report) -> None:
    """Whether the value is of the type that Envoy expects there; fields of other versions are ignored, as in Istio."""
    # Only who uses EnvoyFilters pays for the generated types.
    from meltemi.kit.messages import message_for, parse

    module, name = _TYPES[apply_to]
    importlib.import_module(module)
    try:
        _, ignored = parse(body, message_for(name))
    except ValueError as error:
        remedy = f"write it as Envoy's reference describes {name}"
        report.error(path, f"is no {name.rpartition('.')[2]}: {error}", remedy)
        return
    if ignored:
        report.warn(path, f"a part of it is ignored: {ignored}", "check the name of the field")


_MATCHES = {
    "LISTENER": "listener",
    "FILTER_CHAIN": "listener",
    "NETWORK_FILTER": "listener",
    "HTTP_FILTER": "listener",
    "LISTENER_FILTER": "listener",
    "ROUTE_CONFIGURATION": "route_configuration",
    "VIRTUAL_HOST": "route_configuration",
    "HTTP_ROUTE": "route_configuration",
    "CLUSTER": "cluster",
}


_WIRE = {
    "listener": "listener",
    "route_configuration": "routeConfiguration",
    "cluster": "cluster",
}


def _filter_match(config: Config[EnvoyFilter], index: int, report: Report) -> None:
    entry = config.spec.config_patches[index]
    match, path = entry.match, item("spec.configPatches", index) + ".match"
    if match is None:
        return
    wanted = _MATCHES.get(entry.apply_to)
    if match.context == "WAYPOINT":
        report.warn(path, "there are no waypoints, so it selects nothing", "use another context")
    for name in ("listener", "route_configuration", "cluster"):
        if wanted and getattr(match, name) is not None and name != wanted:
            text = f"does not select anything for applyTo {entry.apply_to}"
            report.error(join(path, _WIRE[name]), text, f"use {_WIRE[wanted]}")
    if match.proxy is not None:
        checks.regex(match.proxy.proxy_version or None, f"{path}.proxy.proxyVersion", report)
    chain = match.listener.filter_chain if match.listener else None
    if chain is not None and chain.filter is not None:
        _filter(chain.filter, entry.apply_to, f"{path}.listener.filterChain.filter", report)


def _filter(match: FilterMatch, apply_to: str, where: str, report: Report) -> None:
    if apply_to not in ("NETWORK_FILTER", "HTTP_FILTER", "FILTER_CHAIN"):
        report.error(where, f"has no use for applyTo {apply_to}", "remove it")
    elif not match.name:
        report.error(f"{where}.name", "is required", "name the filter")
