"""Virtual hosts and route tables of sidecars' outbound HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address

from meltemi.ir.route import (
    DirectResponse,
    Forward,
    Route,
    RouteConfig,
    VirtualHost,
    WeightedCluster,
)
from meltemi.model.names import (
    BY_NAME_CLUSTER,
    HTTP_PROXY_TABLE,
    PASSTHROUGH_CLUSTER,
    resolve_short_name,
)
from meltemi.model.origin import Origin
from meltemi.model.service import Port, Protocol, Service
from meltemi.translate.build import Build
from meltemi.translate.destinations import cluster_of
from meltemi.translate.http_match import MATCH_ALL, Place
from meltemi.translate.http_routes import default_route, virtual_service_routes
from meltemi.translate.scope import MESH_GATEWAY

ENVOY_BODY_LIMIT = 4096


def host_in_url(address: str) -> str:
    """An address as it stands in an authority: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def is_single_address(text: str) -> bool:
    """True for an IP address that clients can address (not a CIDR range, not 0.0.0.0)."""
    try:
        return not ip_address(text).is_unspecified
    except ValueError:
        return False


def addresses_of(build: Build, service: Service) -> tuple[str, ...]:
    """Addresses that clients connect to. Automatic ones count only where DNS answers with them, in the pod's families."""
    if service.addresses or not build.proxy.dns_capture:
        return service.addresses
    families = build.proxy.families
    return tuple(a for a in service.auto_allocated if ("v6" if ":" in a else "v4") in families)


def domains_of(build: Build, service: Service, aliases: Iterable[Service] = ()) -> tuple[str, ...]:
    """All authorities by which clients of this namespace may address a service. Ports are ignored by the table."""
    names = dict.fromkeys(_names_of(build, service))
    for alias in aliases:
        names |= dict.fromkeys(_names_of(build, alias))
    return tuple(names)


def _names_of(build: Build, service: Service) -> tuple[str, ...]:
    host, domain = service.hostname, build.proxy.dns_domain
    found = {host: None}
    suffix = f".svc.{domain}"
    if host.endswith(suffix):
        short = host.removesuffix(suffix)  # name.namespace
        name, _, namespace = short.partition(".")
        if namespace == build.proxy.namespace and name != "*":
            # The short form of a wildcard would be every host there is.
            found[name] = None
        found[short] = None
        found[f"{short}.svc"] = None
        if service.headless:
            # Pods of a StatefulSet have names of their own under the service's.
            for base in tuple(found):
                found[f"*.{base}"] = None
    for address in addresses_of(build, service):
        if is_single_address(address):
            found[host_in_url(address)] = None
    return tuple(found)


def _unique(hosts: Iterable[VirtualHost]) -> tuple[VirtualHost, ...]:
    """Envoy refuses a table in which a domain occurs twice: the first virtual host keeps it."""
    taken: set[str] = set()
    kept = []
    for host in hosts:
        domains = tuple(d for d in host.domains if d.lower() not in taken)
        taken |= {domain.lower() for domain in domains}
        if not domains:
            continue
        if domains == host.domains:
            kept.append(host)
        else:
            kept.append(
                VirtualHost(
                    host.name,
                    domains,
                    host.routes,
                    host.require_tls,
                    host.attempt_count,
                    origins=host.origins,
                )
            )
    return tuple(kept)


def service_virtual_host(
    build: Build, service: Service, port: Port, listen_port: int
) -> VirtualHost:
    """One service's virtual host: the VirtualService's routes, or the default one.

    Names of ExternalName Services that stand for it are among its domains, but for those with rules of their own.
    """
    aliases = build.scope.aliases.get(service.hostname, ())
    routes, origins = _ruled_routes(build, service.hostname, listen_port)
    return VirtualHost(
        name=f"{service.hostname}:{listen_port}",
        domains=domains_of(
            build,
            service,
            (a for a in aliases if not _ruled_routes(build, a.hostname, listen_port)[0]),
        ),
        routes=routes or (default_route(build, service, port),),
        origins=(*origins, service.origin),
    )


def _ruled_routes(
    build: Build, host: str, listen_port: int
) -> tuple[tuple[Route, ...], tuple[Origin, ...]]:
    """Routes of the first VirtualService that has some for this host, port and client."""
    place = Place(frozenset({MESH_GATEWAY}), listen_port)
    for config in build.scope.rules_for(host):
        routes = virtual_service_routes(build, config, place)
        if routes:
            return routes, (config.origin("spec.hosts"),)
    return (), ()


def _alias_hosts(build: Build, service: Service, listen_port: int) -> list[VirtualHost]:
    """Virtual hosts of the ExternalName Services that stand for a service and have rules of their own."""
    found = []
    for alias in build.scope.aliases.get(service.hostname, ()):
        routes, origins = _ruled_routes(build, alias.hostname, listen_port)
        if routes:
            name = f"{alias.hostname}:{listen_port}"
            found.append(
                VirtualHost(name, _names_of(build, alias), routes, origins=(*origins, alias.origin))
            )
    return found


def _ruled_hosts(build: Build, listen_port: int) -> list[VirtualHost]:
    """Hosts that only VirtualServices know. They get routes on port 80, where names need no service."""
    if listen_port != 80:
        return []
    found = []
    for host in dict.fromkeys((*build.scope.exact, *(name for name, _ in build.scope.wildcards))):
        if host in build.scope.by_host or host == "*":
            continue
        routes, origins = _ruled_routes(build, host, listen_port)
        if routes:
            domains = [host]
            suffix = f".svc.{build.proxy.dns_domain}"
            short = resolve_short_name(
                host.split(".")[0], build.proxy.namespace, build.proxy.dns_domain
            )
            if host == short and not host.startswith("*"):
                domains.append(host.split(".")[0])
            if host.endswith(suffix):
                domains += [
                    host.removesuffix(suffix),
                    host.removesuffix(f".{build.proxy.dns_domain}"),
                ]
            found.append(
                VirtualHost(
                    f"{host}:{listen_port}",
                    tuple(dict.fromkeys(domains)),
                    routes,
                    origins=origins,
                )
            )
    return found


def fallthrough(build: Build) -> VirtualHost:
    """What happens to authorities that nobody knows: passed through, sent to the egress proxy, or refused (502)."""
    policy = build.scope.outbound
    if policy.mode == "REGISTRY_ONLY":
        refuse = Route("block_all", MATCH_ALL, DirectResponse(502))
        return VirtualHost("block_all", ("*",), (refuse,))
    by_name = policy.mode == "ALLOW_ANY_DYNAMIC_DNS"
    cluster = BY_NAME_CLUSTER if by_name else PASSTHROUGH_CLUSTER
    if policy.egress_proxy is not None:
        cluster = cluster_of(build, policy.egress_proxy, build.proxy.namespace, 0)
    route = Route("allow_any", MATCH_ALL, Forward((WeightedCluster(cluster),)), external=True)
    return VirtualHost("allow_any", ("*",), (route,), attempt_count=False)


def largest_body(hosts: Iterable[VirtualHost]) -> int:
    """The size of the largest direct response when Envoy's own limit (4096) is too small for it, else 0."""
    sizes = (
        len(route.action.body_bytes or route.action.body.encode())
        for host in hosts
        for route in host.routes
        if isinstance(route.action, DirectResponse)
    )
    largest = max(sizes, default=0)
    return largest if largest > ENVOY_BODY_LIMIT else 0


def is_routable(port: Port) -> bool:
    """Whether HTTP routes can apply: declared HTTP, or sniffed."""
    return port.protocol.is_http or port.protocol.is_unknown


def port_route_config(build: Build, listen_port: int, name: str = "") -> RouteConfig:
    """The table of all services with an HTTP (or sniffed) port of this number.

    On a Unix socket, or the port of an HTTP proxy, each service in scope has the one port that it shows there.
    """
    hosts = []
    for service in build.scope.services:
        port = service.port(listen_port)
        if port is None and name not in ("", str(listen_port)):
            port = next(iter(service.ports), None)
        if port is not None and port.protocol is not Protocol.UDP and is_routable(port):
            hosts.append(service_virtual_host(build, service, port, listen_port))
            hosts += _alias_hosts(build, service, listen_port)
    # A rule's own wildcard host may cover services; exact domains win in Envoy whatever the order.
    hosts += _ruled_hosts(build, listen_port)
    kept = (*_unique(hosts), fallthrough(build))
    return RouteConfig(
        name=name or str(listen_port),
        virtual_hosts=kept,
        ignore_port_in_host=True,
        max_direct_response_bytes=largest_body(kept),
    )


def proxy_route_config(build: Build) -> RouteConfig:
    """The table of the port for HTTP proxying: all HTTP services, told apart by name and port together.

    Port 80 may be left out of the name. There is no original destination: names that nobody knows are refused unless
    they are looked up.
    """
    numbers = sorted({port.number for service in build.scope.services for port in service.ports})
    hosts = [
        replace(host, domains=tuple(_with_port(host.domains, number)))
        for number in numbers
        for host in port_route_config(build, number).virtual_hosts
        if host.domains != ("*",)
    ]
    kept = (*_unique(hosts), fallthrough(build))
    largest = largest_body(kept)
    return RouteConfig(HTTP_PROXY_TABLE, kept, max_direct_response_bytes=largest)


def _with_port(domains: Iterable[str], number: int) -> Iterator[str]:
    for domain in domains:
        if number == 80:
            yield domain
        yield f"{domain}:{number}"


def service_route_config(build: Build, service: Service, port: Port) -> RouteConfig:
    """The table of one sniffed port: whatever the authority, the service's routes."""
    host = service_virtual_host(build, service, port, port.number)
    only = VirtualHost(host.name, ("*",), host.routes, origins=host.origins)
    return RouteConfig(
        name=f"{service.hostname}:{port.number}",
        virtual_hosts=(only,),
        ignore_port_in_host=True,
        max_direct_response_bytes=largest_body((only,)),
        origins=(service.origin,),
    )
