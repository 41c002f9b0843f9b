"""The HTTP rules of a VirtualService, or a service's default, as routes for one place."""

from __future__ import annotations

from collections.abc import Iterable

from meltemi.ir.route import Forward, Route, WeightedCluster
from meltemi.model.config import Config
from meltemi.model.names import outbound_cluster
from meltemi.model.service import Port, Service
from meltemi.model.traffic import HTTPMatchRequest, HTTPRoute, VirtualService
from meltemi.translate.build import Build
from meltemi.translate.destinations import (
    all_external,
    any_version_unknown,
    service_hash,
    version_unknown,
)
from meltemi.translate.header_ops import header_ops
from meltemi.translate.http_action import build_action, build_cors, build_fault, default_retry
from meltemi.translate.http_match import (
    MATCH_ALL,
    Place,
    build_match,
    is_catch_all,
    source_applies,
)


def config_path(config: Config[VirtualService]) -> str:
    """API path of a rule, for telemetry metadata."""
    meta = config.meta
    return f"/apis/networking.istio.io/v1/namespaces/{meta.namespace}/virtual-service/{meta.name}"


def _route(
    build: Build,
    config: Config[VirtualService],
    index: int,
    match_index: int | None,
    match: HTTPMatchRequest | None,
    place: Place,
) -> Route | None:
    rule = config.spec.http[index]
    conditions = build_match(match)
    action = build_action(build, config, rule, conditions, place)
    if action is None:
        return None
    name = rule.name
    if match is not None and match.name:
        name = f"{name}.{match.name}" if name else match.name
    origins = config.origins(f"spec.http[{index}]")
    if match_index is not None:
        origins = config.origins(f"spec.http[{index}].match[{match_index}]") + origins
    return Route(
        name=name,
        match=conditions,
        action=action,
        headers=header_ops(rule.headers),
        fault=build_fault(rule.fault) if place.in_mesh or rule.fault is not None else None,
        cors=build_cors(rule.cors_policy),
        external=all_external(build, config, rule.route),
        sniffed=any_version_unknown(build, config, rule.route, place.port),
        decorator=_decorator(action, place),
        config=config_path(config),
        stat_prefix=match.stat_prefix if match is not None else "",
        origins=origins,
    )


def _decorator(action: object, place: Place) -> str:
    """The operation name of spans: ``host:port/*`` of the (first) destination."""
    if not isinstance(action, Forward):
        return ""
    parts = action.clusters[0].cluster.split("|")
    return f"{parts[3]}:{parts[1]}/*" if len(parts) == 4 else f"{place.port}/*"


def _matches(rule: HTTPRoute) -> Iterable[tuple[int | None, HTTPMatchRequest | None]]:
    if not rule.match:
        yield None, None
    yield from enumerate(rule.match)


_NO_CONDITIONS = HTTPMatchRequest()


def virtual_service_routes(
    build: Build, config: Config[VirtualService], place: Place
) -> tuple[Route, ...]:
    """The routes of a VirtualService at a place, in order, up to the first that takes everything."""
    found: list[Route] = []
    for index, rule in enumerate(config.spec.http):
        for match_index, match in _matches(rule):
            if not source_applies(
                match or _NO_CONDITIONS,
                config.meta.namespace,
                config.spec.gateways,
                build.proxy,
                place,
            ):
                continue
            made = _route(build, config, index, match_index, match, place)
            if made is None:
                continue
            found.append(made)
            if is_catch_all(made.match):
                return tuple(found)
    return tuple(found)


def default_route(build: Build, service: Service, port: Port) -> Route:
    """Everything to the service itself, with the default retries."""
    hashing = service_hash(build, service, port.number)
    return Route(
        name="default",
        match=MATCH_ALL,
        action=Forward(
            clusters=(WeightedCluster(outbound_cluster(service.hostname, port.number)),),
            retry=default_retry(build),
            hashes=(hashing,) if hashing is not None else (),
        ),
        external=service.mesh_external,
        sniffed=version_unknown(build, service, port),
        decorator=f"{service.hostname}:{port.number}/*",
        origins=(service.origin,),
    )


def sort_catch_all_last(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Routes of several VirtualServices for one host: those that take everything go last, the first of them wins."""
    ordinary: list[Route] = []
    last: list[Route] = []
    for route in routes:
        (last if is_catch_all(route.match) else ordinary).append(route)
    return tuple(ordinary + last[:1])
