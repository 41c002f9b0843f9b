"""VirtualService delegation: roots take over the routes of the VirtualServices that they name.

In: the context. Out: VirtualServices without delegates (those without hosts are gone). A route of a delegate keeps
its own conditions and must also meet the root's; a combination that contradicts itself is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from meltemi.model.config import Config
from meltemi.model.traffic import HTTPMatchRequest, HTTPRoute, StringMatch, VirtualService
from meltemi.push.context import PushContext
from meltemi.translate.visibility import is_visible


def resolve_delegates(context: PushContext) -> tuple[Config[VirtualService], ...]:
    """VirtualServices with hosts, their delegates filled in. Remembered in the context."""
    known = context.memo.get("delegates")
    if known is not None:
        return tuple(known)
    leaves = {
        (config.meta.namespace, config.meta.name): config
        for config in context.virtual_services
        if not config.spec.hosts
    }
    made = tuple(
        _resolve(config, leaves, context)
        for config in context.virtual_services
        if config.spec.hosts
    )
    context.memo["delegates"] = made
    return made


def _resolve(
    config: Config[VirtualService],
    leaves: Mapping[tuple[str, str], Config[VirtualService]],
    context: PushContext,
) -> Config[VirtualService]:
    if not any(rule.delegate for rule in config.spec.http):
        return config
    rules: list[HTTPRoute] = []
    for rule in config.spec.http:
        if rule.delegate is None:
            rules.append(rule)
            continue
        namespace = rule.delegate.namespace or config.meta.namespace
        leaf = leaves.get((namespace, rule.delegate.name))
        defaults = context.mesh.default_virtual_service_export_to
        if leaf is None or not is_visible(
            leaf.spec.export_to, defaults, namespace, config.meta.namespace
        ):
            continue
        rules.extend(
            merged
            for inner in leaf.spec.http
            if inner.delegate is None and (merged := _merge(rule, inner)) is not None
        )
    spec = msgspec.structs.replace(config.spec, http=tuple(rules))
    return Config(config.kind, config.meta, spec, config.source_map)


def _merge(root: HTTPRoute, inner: HTTPRoute) -> HTTPRoute | None:
    matches = _merge_matches(root.match, inner.match)
    if matches is None:
        return None
    changes = {
        name: getattr(root, name)
        for name in (
            "rewrite",
            "timeout",
            "retries",
            "fault",
            "mirror",
            "mirror_percentage",
            "cors_policy",
            "headers",
        )
        if getattr(inner, name) is None and getattr(root, name) is not None
    }
    name = "-".join(part for part in (root.name, inner.name) if part)
    return msgspec.structs.replace(inner, match=matches, name=name, **changes)


def _merge_matches(
    outer: tuple[HTTPMatchRequest, ...], inner: tuple[HTTPMatchRequest, ...]
) -> tuple[HTTPMatchRequest, ...] | None:
    if not outer or not inner:
        return outer or inner
    found = [both for one in outer for two in inner if (both := _merge_match(one, two)) is not None]
    return tuple(found) or None


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
