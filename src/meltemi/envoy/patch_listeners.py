"""EnvoyFilter patches on listeners: the listener itself, its chains, network filters, HTTP filters and inspectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)

from meltemi.envoy.anys import pack
from meltemi.envoy.patch_edit import MERGES, Editor, PatchRecord, replace_entries
from meltemi.envoy.patch_match import (
    added_here,
    chain_holds,
    context_holds,
    direction,
    listener_holds,
    name_holds,
)
from meltemi.ir.patch import Patch, PatchMatch
from meltemi.ir.proxy import ProxyIR

_HCM = "envoy.filters.network.http_connection_manager"
_ROUTER = "envoy.filters.http.router"
_APPLIES = ("FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER")
# Where ``filterClass`` puts an added filter: behind the last of these, in this order of classes.
_PEER = ("envoy.filters.http.header_mutation", "envoy.filters.http.header_to_metadata")
_AUTHN = ("envoy.filters.http.jwt_authn",)
_AUTHZ = ("envoy.filters.http.rbac", "envoy.filters.http.ext_authz")
_BEHIND = {"AUTHN": _AUTHN, "AUTHZ": (*_AUTHN, *_AUTHZ)}
PatchRoutes = Callable[[Any, Iterable[Patch], str, PatchRecord], None]


def _chains(listener: Any) -> list[Any]:
    """All chains, the default one included."""
    found = list(listener.filter_chains)
    if listener.HasField("default_filter_chain"):
        found.append(listener.default_filter_chain)
    return found


def _managers(chains: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(filter, its HTTP connection manager) of chains; what is done to the manager is kept."""
    for chain in chains:
        for entry in chain.filters:
            if entry.name != _HCM:
                continue
            manager = hcm_pb2.HttpConnectionManager()
            manager.ParseFromString(entry.typed_config.value)
            yield entry, manager
            entry.typed_config.CopyFrom(pack(manager))


def _matching_chains(patch: Patch, listener: Any) -> list[Any]:
    return [chain for chain in _chains(listener) if chain_holds(patch.match, listener, chain)]


def _http_filters(patch: Patch, listener: Any, editor: Editor) -> None:
    match = patch.match
    for entry, manager in _managers(_matching_chains(patch, listener)):
        if not name_holds(match.filter, entry.name):
            continue
        if patch.operation == "ADD" and patch.filter_class in ("AUTHN", "AUTHZ", "STATS"):
            _add_by_class(manager.http_filters, patch, editor)
        else:
            editor.edit(
                manager.http_filters,
                patch,
                lambda found: name_holds(match.sub_filter, found.name),
                anchored=bool(match.sub_filter),
                empty=hcm_pb2.HttpFilter(),
            )
        _router_last(manager, patch)


def _add_by_class(filters: Any, patch: Patch, editor: Editor) -> None:
    """AUTHN: behind authentication; AUTHZ: behind authorization too; STATS: behind everything but the router."""
    names = [entry.name for entry in filters]
    behind = _BEHIND.get(patch.filter_class)
    if behind is None:
        position = names.index(_ROUTER) if _ROUTER in names else len(names)
    else:
        # What the peer says about itself is taken off before anything else.
        first = 1 if names and names[0] in _PEER else 0
        position = max((i + 1 for i, name in enumerate(names) if name in behind), default=first)
    made = editor.value(patch, hcm_pb2.HttpFilter())
    if made is not None:
        kept = list(filters)
        kept.insert(position, made)
        replace_entries(filters, kept)
        editor.record.applied.add(patch)


def _router_last(manager: Any, patch: Patch) -> None:
    """ADD and INSERT_AFTER the router would put a filter where Envoy refuses it: the router stays last."""
    names = [entry.name for entry in manager.http_filters]
    if patch.operation not in ("ADD", "INSERT_AFTER") or _ROUTER not in names[:-1]:
        return
    kept = [e for e in manager.http_filters if e.name != _ROUTER]
    last = [e for e in manager.http_filters if e.name == _ROUTER]
    replace_entries(manager.http_filters, [*kept, *last])


def _network_filters(patch: Patch, listener: Any, editor: Editor) -> None:
    match = patch.match
    for chain in _matching_chains(patch, listener):
        editor.edit(
            chain.filters,
            patch,
            lambda found: name_holds(match.filter, found.name),
            anchored=bool(match.filter),
            empty=listener_components_pb2.Filter(),
        )


def _filter_chains(patch: Patch, listener: Any, editor: Editor) -> None:
    def holds(chain: Any) -> bool:
        named = {entry.name for entry in chain.filters}
        wanted = patch.match.filter
        return chain_holds(patch.match, listener, chain) and (
            not wanted or any(name_holds(wanted, name) for name in named)
        )

    editor.edit(
        listener.filter_chains,
        patch,
        holds,
        anchored=False,
        empty=listener_components_pb2.FilterChain(),
    )
    if not listener.HasField("default_filter_chain") or not holds(listener.default_filter_chain):
        return
    if patch.operation in MERGES:
        editor.merge(patch, listener.default_filter_chain)
    elif patch.operation == "REMOVE":
        listener.ClearField("default_filter_chain")
        editor.record.applied.add(patch)


def _patch(patch: Patch, listener: Any, editor: Editor) -> None:
    match = patch.match
    if patch.apply_to == "HTTP_FILTER":
        _http_filters(patch, listener, editor)
    elif patch.apply_to == "NETWORK_FILTER":
        _network_filters(patch, listener, editor)
    elif patch.apply_to == "FILTER_CHAIN":
        _filter_chains(patch, listener, editor)
    else:
        editor.edit(
            listener.listener_filters,
            patch,
            lambda found: name_holds(match.listener_filter, found.name),
            anchored=bool(match.listener_filter),
            empty=listener_components_pb2.ListenerFilter(),
        )


def _whole(patch: Patch, listeners: list[Any], gateway: bool, editor: Editor) -> None:
    """Patches of whole listeners; a list serves as the repeated field."""
    if patch.operation == "ADD":
        if added_here(patch.match, gateway):
            editor.add_named(listeners, patch, listener_pb2.Listener())
        return
    editor.edit(
        listeners,
        patch,
        lambda found: _holds(patch.match, found, gateway),
        anchored=True,
        empty=listener_pb2.Listener(),
    )


def _holds(match: PatchMatch, listener: Any, gateway: bool) -> bool:
    context = "GATEWAY" if gateway else direction(listener)
    return context_holds(match, context) and listener_holds(match, listener)


def patched_listeners(
    listeners: list[Any], ir: ProxyIR, record: PatchRecord, patch_routes: PatchRoutes
) -> list[Any]:
    """The listeners with all their patches applied."""
    current, editor = list(listeners), Editor(record)
    for patch in ir.patches:
        if patch.apply_to == "LISTENER":
            _whole(patch, current, ir.gateway, editor)
        elif patch.apply_to in _APPLIES:
            for listener in current:
                if _holds(patch.match, listener, ir.gateway):
                    _patch(patch, listener, editor)
    if any(p.apply_to in ("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE") for p in ir.patches):
        # Inbound route tables are inside their listener; route patches reach them there.
        for listener in current:
            for _, manager in _managers(_chains(listener)):
                if manager.HasField("route_config"):
                    patch_routes(manager.route_config, ir.patches, direction(listener), record)
    return current
