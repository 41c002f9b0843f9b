"""Route tables of gateways: VirtualServices that are bound to a server and share a host with it."""

from __future__ import annotations

from meltemi.ir.route import Redirect, Route, RouteConfig, VirtualHost
from meltemi.model.config import Config
from meltemi.model.names import resolve_short_name
from meltemi.model.origin import Origin
from meltemi.model.traffic import VirtualService
from meltemi.translate.build import Build
from meltemi.translate.gateway_servers import Bound
from meltemi.translate.http_match import MATCH_ALL, Place
from meltemi.translate.http_routes import sort_catch_all_last, virtual_service_routes
from meltemi.translate.scope import bound_to
from meltemi.translate.virtual_hosts import largest_body
from meltemi.translate.visibility import narrower, specificity


def shared_hosts(build: Build, server: Bound, config: Config[VirtualService]) -> list[str]:
    """Hosts on which a server and a VirtualService agree: the narrower of each overlapping pair."""
    found: dict[str, None] = {}
    namespace = config.meta.namespace
    for host in config.spec.hosts:
        full = resolve_short_name(host, namespace, build.proxy.dns_domain)
        for wanted, pattern in server.hosts:
            if wanted not in ("*", namespace):
                continue
            both = narrower(pattern, full)
            if both is not None:
                found[both] = None
    return list(found)


def _redirect_all(server: Bound) -> tuple[Route, ...]:
    origin = server.config.origin(f"spec.servers[{server.index}].tls.httpsRedirect")
    return (Route("", MATCH_ALL, Redirect(https=True), origins=(origin,)),)


def _is_redirect(server: Bound) -> bool:
    return server.server.tls is not None and server.server.tls.https_redirect


def gateway_route_config(build: Build, name: str, servers: list[Bound]) -> RouteConfig:
    """The table of the servers that share it. Hosts that nobody routes get 404."""
    routes: dict[str, list[Route]] = {}
    origins: dict[str, list[Origin]] = {}
    redirected: dict[str, Bound] = {}
    for server in servers:
        if _is_redirect(server):
            for _, host in server.hosts:
                redirected.setdefault(host, server)
        place = Place(frozenset({server.gateway}), server.number)
        for config in build.scope.virtual_services:
            if not config.spec.http or not bound_to(config, server.gateway):
                continue
            made: tuple[Route, ...] | None = None
            for host in shared_hosts(build, server, config):
                if made is None:
                    made = virtual_service_routes(build, config, place)
                known = routes.setdefault(host, [])
                # The same VirtualService may reach a host through several servers of one table.
                known.extend(route for route in made if route not in known)
                origins.setdefault(host, []).extend((config.origin("spec.hosts"), server.origin()))
    port = servers[0].port
    hosts = []
    for host in sorted({*routes, *redirected}, key=lambda entry: (specificity(entry), entry)):
        redirect = redirected.get(host) or next(
            (s for pattern, s in redirected.items() if narrower(pattern, host) == host), None
        )
        hosts.append(
            VirtualHost(
                name=f"{host}:{port}",
                domains=(host,),
                routes=sort_catch_all_last(routes.get(host, ()))
                or (_redirect_all(redirect) if redirect is not None else ()),
                require_tls=redirect is not None,
                origins=tuple(dict.fromkeys(origins.get(host, ())))
                or ((redirect.origin(),) if redirect is not None else ()),
            )
        )
    if not hosts:
        hosts.append(VirtualHost(f"blackhole:{port}", ("*",), ()))
    return RouteConfig(
        name=name,
        virtual_hosts=tuple(hosts),
        ignore_port_in_host=True,
        max_direct_response_bytes=largest_body(hosts),
        origins=tuple(server.origin() for server in servers),
    )
