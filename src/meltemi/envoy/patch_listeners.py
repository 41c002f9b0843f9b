"""EnvoyFilter patches on listeners: the listener itself, its chains, network filters, HTTP filters and inspectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meltemi.envoy.anys import pack
from meltemi.envoy.patch_match import (
    chain_holds,
    context_holds,
    direction,
    listener_holds,
    name_holds,
)
from meltemi.ir.patch import Patch, PatchMatch
from meltemi.ir.proxy import ProxyIR

_HCM = "envoy.filters.network.http_connection_manager"
_APPLIES = ("LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER")
Edit = Callable[..., None]


def _chains(listener: Any) -> list[Any]:
    """All chains, the default one included."""
    found = list(listener.filter_chains)
    if listener.HasField("default_filter_chain"):
        found.append(listener.default_filter_chain)
    return found


def _matching_chains(patch: Patch, listener: Any) -> list[Any]:
    return [chain for chain in _chains(listener) if chain_holds(patch.match, listener, chain)]


def _http_filters(patch: Patch, listener: Any, edit: Edit) -> None:
    match = patch.match
    for chain in _matching_chains(patch, listener):
        for entry in chain.filters:
            if entry.name != _HCM or not name_holds(match.filter, entry.name):
                continue
            manager = hcm_pb2.HttpConnectionManager()
            manager.ParseFromString(entry.typed_config.value)
            edit(
                manager.http_filters,
                patch,
                lambda found: name_holds(match.sub_filter, found.name),
                anchored=bool(match.sub_filter),
                empty=hcm_pb2.HttpFilter(),
            )
            _router_last(manager, patch)
            entry.typed_config.CopyFrom(pack(manager))


def _router_last(manager: Any, patch: Patch) -> None:
    """ADD and INSERT_AFTER the router would put a filter where Envoy refuses it: the router stays last."""
    names = [entry.name for entry in manager.http_filters]
    router = "envoy.filters.http.router"
    if patch.operation not in ("ADD", "INSERT_AFTER") or router not in names[:-1]:
        return
    kept = [e for e in manager.http_filters if e.name != router]
    last = [e for e in manager.http_filters if e.name == router]
    copies = []
    for entry in (*kept, *last):
        copy = hcm_pb2.HttpFilter()
        copy.CopyFrom(entry)
        copies.append(copy)
    del manager.http_filters[:]
    manager.http_filters.extend(copies)


def _network_filters(patch: Patch, listener: Any, edit: Edit) -> None:
    match = patch.match
    for chain in _matching_chains(patch, listener):
        edit(
            chain.filters,
            patch,
            lambda found: name_holds(match.filter, found.name),
            anchored=bool(match.filter),
            empty=listener_components_pb2.Filter(),
        )


def _patch(patch: Patch, listener: Any, edit: Edit) -> None:
    match = patch.match
    if patch.apply_to == "HTTP_FILTER":
        _http_filters(patch, listener, edit)
    elif patch.apply_to == "NETWORK_FILTER":
        _network_filters(patch, listener, edit)
    elif patch.apply_to == "FILTER_CHAIN":
        edit(
            listener.filter_chains,
            patch,
            lambda chain: chain_holds(match, listener, chain),
            anchored=False,
            empty=listener_components_pb2.FilterChain(),
        )
    elif patch.apply_to == "LISTENER_FILTER":
        edit(
            listener.listener_filters,
            patch,
            lambda found: name_holds(match.listener_filter, found.name),
            anchored=bool(match.listener_filter),
            empty=listener_components_pb2.ListenerFilter(),
        )


def _whole(patch: Patch, listeners: list[Any], gateway: bool, edit: Edit) -> list[Any]:
    """Patches of whole listeners; a list serves as the repeated field."""
    if patch.operation == "ADD":
        allowed = (
            context_holds(patch.match, "GATEWAY") if gateway else patch.match.context != "GATEWAY"
        )
        if not allowed:
            return listeners
        edit(listeners, patch, lambda _: False, anchored=False, empty=listener_pb2.Listener())
        return listeners
    edit(
        listeners,
        patch,
        lambda found: _holds(patch.match, found, gateway),
        anchored=True,
        empty=listener_pb2.Listener(),
    )
    return listeners


def _holds(match: PatchMatch, listener: Any, gateway: bool) -> bool:
    context = "GATEWAY" if gateway else direction(listener)
    return context_holds(match, context) and listener_holds(match, listener)


def _inline_routes(listener: Any, ir: ProxyIR, patch_routes: Callable[..., None]) -> None:
    """Inbound route tables are inside their listener; route patches reach them there."""
    for chain in _chains(listener):
        for entry in chain.filters:
            if entry.name != _HCM:
                continue
            manager = hcm_pb2.HttpConnectionManager()
            manager.ParseFromString(entry.typed_config.value)
            if manager.HasField("route_config"):
                patch_routes(manager.route_config, ir.patches, direction(listener))
                entry.typed_config.CopyFrom(pack(manager))


def patched_listeners(
    listeners: list[Any], ir: ProxyIR, edit: Edit, patch_routes: Callable[..., None]
) -> list[Any]:
    """The listeners with all their patches applied."""
    current = list(listeners)
    for patch in ir.patches:
        if patch.apply_to == "LISTENER":
            current = _whole(patch, current, ir.gateway, edit)
        elif patch.apply_to in _APPLIES:
            for listener in current:
                if _holds(patch.match, listener, ir.gateway):
                    _patch(patch, listener, edit)
    if any(p.apply_to in ("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE") for p in ir.patches):
        for listener in current:
            _inline_routes(listener, ir, patch_routes)
    return current
