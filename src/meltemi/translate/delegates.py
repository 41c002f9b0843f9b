"""VirtualService delegation: roots take over the routes of the VirtualServices that they name.

In: the context. Out: VirtualServices without delegates (those without hosts are gone). A route of a delegate keeps
its own conditions and must also meet the root's; a combination that contradicts itself is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from meltemi.model.config import Config, Key
from meltemi.model.mesh import MeshConfig
from meltemi.model.names import resolve_short_name
from meltemi.model.origin import Origin
from meltemi.model.traffic import (
    Delegate,
    Destination,
    HTTPMatchRequest,
    HTTPRoute,
    StringMatch,
    VirtualService,
)
from meltemi.push.context import PushContext
from meltemi.translate.visibility import is_visible


def resolve_delegates(
    context: PushContext, domain: str = "cluster.local"
) -> tuple[Config[VirtualService], ...]:
    """VirtualServices with hosts, their delegates filled in; ``domain`` completes short names. Remembered in the context."""
    key = ("delegates", domain)
    known = context.memo.get(key)
    if known is not None:
        return tuple(known)
    leaves = {config.key: config for config in context.virtual_services if not config.spec.hosts}
    made = tuple(
        _resolve(config, leaves, context.mesh, domain)
        for config in context.virtual_services
        if config.spec.hosts
    )
    context.memo[key] = made
    return made


def delegate_of(
    config: Config[VirtualService],
    reference: Delegate,
    leaves: Mapping[Key, Config[VirtualService]],
    mesh: MeshConfig,
) -> Config[VirtualService] | None:
    """The one of ``leaves`` (VirtualServices without hosts) that a rule hands over to, if it is there and exported to it."""
    namespace = reference.namespace or config.meta.namespace
    leaf = leaves.get(Key("VirtualService", namespace, reference.name))
    if leaf is None:
        return None
    defaults = mesh.default_virtual_service_export_to
    seen = is_visible(leaf.spec.export_to, defaults, namespace, config.meta.namespace)
    return leaf if seen else None


def _resolve(
    config: Config[VirtualService],
    leaves: Mapping[Key, Config[VirtualService]],
    mesh: MeshConfig,
    domain: str,
) -> Config[VirtualService]:
    if not any(rule.delegate for rule in config.spec.http):
        return config
    rules: list[HTTPRoute] = []
    places: dict[str, tuple[Origin, ...]] = {}

    def take(
        rule: HTTPRoute, origins: tuple[Origin, ...], matches: Iterable[tuple[Origin, ...]]
    ) -> None:
        path = f"spec.http[{len(rules)}]"
        rules.append(rule)
        places[path] = origins
        places.update((f"{path}.match[{number}]", found) for number, found in enumerate(matches))

    for index, rule in enumerate(config.spec.http):
        path = f"spec.http[{index}]"
        outer = [config.origin(f"{path}.match[{number}]") for number in range(len(rule.match))]
        if rule.delegate is None:
            take(rule, (config.origin(path),), ((origin,) for origin in outer))
            continue
        leaf = delegate_of(config, rule.delegate, leaves, mesh)
        for number, written in enumerate(leaf.spec.http if leaf is not None else ()):
            merged = merge_rules(rule, written)
            if leaf is None or written.delegate is not None or merged is None:
                continue
            made, pairs = merged
            place = f"spec.http[{number}]"
            matches = (
                (() if mine is None else (leaf.origin(f"{place}.match[{mine}]"),))
                + (() if theirs is None else (outer[theirs],))
                for theirs, mine in pairs
            )
            qualified = _qualify(made, written, leaf.meta.namespace, domain)
            take(qualified, (leaf.origin(place), config.origin(f"{path}.delegate")), matches)
    spec = msgspec.structs.replace(config.spec, http=tuple(rules))
    return Config(config.kind, config.meta, spec, config.source_map, joined=places)


def _qualify(made: HTTPRoute, written: HTTPRoute, namespace: str, domain: str) -> HTTPRoute:
    """Short names in what the delegate wrote mean services of its own namespace."""

    def full(destination: Destination) -> Destination:
        host = resolve_short_name(destination.host, namespace, domain)
        return msgspec.structs.replace(destination, host=host)

    replace = msgspec.structs.replace
    changes: dict[str, object] = {
        "route": tuple(replace(t, destination=full(t.destination)) for t in written.route)
    }
    if written.mirror is not None:
        changes["mirror"] = full(written.mirror)
    if written.mirrors:
        changes["mirrors"] = tuple(
            replace(m, destination=full(m.destination)) for m in written.mirrors
        )
    return replace(made, **changes)


_FROM_ROOT = (
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirror_percent",
    "mirror_percentage",
    "cors_policy",
    "headers",
)
# Numbers of the root's and the delegate's condition that one condition was made of.
Pairs = tuple[tuple[int | None, int | None], ...]


def merge_rules(root: HTTPRoute, inner: HTTPRoute) -> tuple[HTTPRoute, Pairs] | None:
    """A delegate's rule under its root's conditions, with what only the root sets; None when they contradict each other."""
    matches = _merge_matches(root.match, inner.match)
    if matches is None:
        return None
    unset: tuple[object, ...] = (None, ())
    changes = {
        name: getattr(root, name)
        for name in _FROM_ROOT
        if getattr(inner, name) in unset and getattr(root, name) not in unset
    }
    if inner.mirror is not None or inner.mirrors:
        # The two are exclusive: the delegate's own stay.
        changes.pop("mirror", None)
        changes.pop("mirrors", None)
    name = "-".join(part for part in (root.name, inner.name) if part)
    found = tuple(match for match, _ in matches)
    made = msgspec.structs.replace(inner, match=found, name=name, **changes)
    return made, tuple(pair for _, pair in matches)


def _merge_matches(
    outer: tuple[HTTPMatchRequest, ...], inner: tuple[HTTPMatchRequest, ...]
) -> list[tuple[HTTPMatchRequest, tuple[int | None, int | None]]] | None:
    if not inner:
        return [(one, (index, None)) for index, one in enumerate(outer)]
    if not outer:
        return [(two, (None, index)) for index, two in enumerate(inner)]
    found: list[tuple[HTTPMatchRequest, tuple[int | None, int | None]]] = [
        (both, (index, number))
        for index, one in enumerate(outer)
        for number, two in enumerate(inner)
        if (both := _merge_match(one, two)) is not None
    ]
    return found or None


def _merge_match(one: HTTPMatchRequest, two: HTTPMatchRequest) -> HTTPMatchRequest | None:
    """Both conditions in one, or None when they contradict each other or cannot be combined."""
    changes: dict[str, object] = {}
    for name in ("uri", "scheme", "method", "authority"):
        mine, theirs = getattr(one, name), getattr(two, name)
        if mine is None or theirs is None:
            changes[name] = theirs or mine
        elif (both := _narrow(mine, theirs)) is not None:
            changes[name] = both
        else:
            return None
    for name in ("headers", "query_params", "without_headers", "source_labels"):
        mine, theirs = dict(getattr(one, name)), dict(getattr(two, name))
        if any(mine[key] != theirs[key] for key in mine.keys() & theirs.keys()):
            return None
        changes[name] = type(getattr(two, name))({**mine, **theirs})
    for name in ("port", "source_namespace"):
        mine, theirs = getattr(one, name), getattr(two, name)
        if mine and theirs and mine != theirs:
            return None
        changes[name] = theirs or mine
    changes["gateways"] = two.gateways or one.gateways
    changes["ignore_uri_case"] = two.ignore_uri_case or one.ignore_uri_case
    changes["name"] = "-".join(part for part in (one.name, two.name) if part)
    return msgspec.structs.replace(two, **changes)


def _narrow(outer: StringMatch, inner: StringMatch) -> StringMatch | None:
    """The inner condition when it implies the outer one."""
    if outer == inner:
        return inner
    if outer.prefix is not None:
        text = inner.exact if inner.exact is not None else inner.prefix
        if text is not None and text.startswith(outer.prefix):
            return inner
    return None
