"""A sidecar's outbound side: virtualOutbound, a listener per HTTP port, listeners per address for TCP.

Two services may claim the same address and port; the older one keeps it and the other is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_network

from meltemi.ir.listener import ChainMatch, FilterChain, Inspection, Listener
from meltemi.ir.route import RouteConfig, WeightedCluster
from meltemi.ir.value import Origins
from meltemi.model.names import (
    BLACKHOLE_CLUSTER,
    HTTP_PROXY_TABLE,
    PASSTHROUGH_CLUSTER,
    VIRTUAL_OUTBOUND,
)
from meltemi.model.origin import Origin
from meltemi.model.service import Port, Protocol, Resolution, Service
from meltemi.translate.build import Build
from meltemi.translate.chain_conflicts import without_overlap
from meltemi.translate.destinations import cluster_of
from meltemi.translate.egress import LOOPBACK, View, egress_views
from meltemi.translate.http_match import Place
from meltemi.translate.network_filters import client_tcp, outbound_manager
from meltemi.translate.scope import MESH_GATEWAY
from meltemi.translate.tcp_routes import service_chain, tcp_chains, tls_chains
from meltemi.translate.telemetry import listener_logs
from meltemi.translate.virtual_hosts import (
    addresses_of,
    is_single_address,
    port_route_config,
    proxy_route_config,
    service_route_config,
)

WILDCARD = "0.0.0.0"
# Those of the proxy and its agent: admin, agent, health, DNS, metrics.
PROXY_PORTS = frozenset({15000, 15020, 15021, 15053, 15090})
# What http_inspector reports for cleartext HTTP.
PLAINTEXT_HTTP = ("http/1.0", "http/1.1", "h2c")


@dataclass
class _Ports:
    """What is gathered while services are walked through."""

    http: dict[int, list[Service]] = field(default_factory=dict)
    chains: dict[tuple[str, int], list[FilterChain]] = field(default_factory=dict)
    owners: dict[tuple[str, int], Service] = field(default_factory=dict)
    sniffed: dict[tuple[str, int], tuple[Service, Port]] = field(default_factory=dict)
    pods: dict[tuple[str, int], str] = field(default_factory=dict)


def _ranges(service: Service) -> tuple[str, ...]:
    """The CIDR ranges among a service's addresses."""
    found = []
    for address in service.addresses:
        if is_single_address(address):
            continue
        try:
            net = ip_network(address, strict=False)
        except ValueError:
            continue
        if net.prefixlen:
            found.append(str(net))
    return tuple(found)


def _binds(build: Build, service: Service) -> list[tuple[str, str]]:
    """(address, pod address or '') that TCP listeners of a service bind: its VIPs, its pods, or everything."""
    addresses = [a for a in addresses_of(build, service) if is_single_address(a)]
    if addresses:
        return [(address, "") for address in addresses]
    if service.headless and not service.mesh_external:
        pods = build.context.facts_of(service).addresses
        if pods:
            return [(address, address) for address in pods]
    return [(WILDCARD, "")]


def _tcp_chains(build: Build, service: Service, port: Port, bind: str) -> list[FilterChain]:
    """A service port's chains at one address: rules by SNI, rules for TCP, and what they leave to the service itself.

    TLS rules leave nothing: they name all that a client may ask for.
    """
    ranges = _ranges(service) if bind == WILDCARD else ()
    place = Place(frozenset({MESH_GATEWAY}), port.number)
    found: list[FilterChain] = []
    for config in build.scope.rules_for(service.hostname):
        if port.protocol.is_tls:
            found += tls_chains(build, config, place, ranges)
        found += tcp_chains(build, config, place, ranges)
    if found and port.protocol.is_tls:
        return found
    names: tuple[str, ...] = ()
    transport = ""
    if port.protocol.is_tls and bind == WILDCARD:
        # Without an address of its own the service is told apart by the name that the client asks for.
        names = (service.hostname,)
        transport = "tls"
    match = ChainMatch(prefixes=ranges, server_names=names, transport_protocol=transport)
    if any(chain.match == match for chain in found):
        return found
    return [*found, service_chain(build, service, port, match)]


def _add_chains(
    build: Build, ports: _Ports, key: tuple[str, int], service: Service, chains: list[FilterChain]
) -> None:
    """Add a service's chains to a listener; what another service already claimed is reported."""
    known = ports.chains.setdefault(key, [])
    owner = ports.owners.setdefault(key, service)
    for chain in chains:
        kept = without_overlap(known, chain)
        if kept is not None:
            known.append(kept)
        if kept is not chain and owner is not service:
            build.report_both(
                "MLT0101",
                f"{service.hostname} and {owner.hostname} both claim {key[0]}:{key[1]}; "
                f"{owner.hostname} is older and keeps it",
                (service.origin, owner.origin),
                "give one of them an address, another port, or an HTTP port name",
            )


def _gather(view: View) -> _Ports:
    ports = _Ports()
    for service in view.build.scope.services:
        for port in service.ports:
            if port.protocol is not Protocol.UDP and port.number and port.number not in view.taken:
                _gather_port(view, ports, service, port)
    return ports


def _gather_port(view: View, ports: _Ports, service: Service, port: Port) -> None:
    build = view.build
    number = view.port or (0 if view.address.startswith("unix://") else port.number)
    if port.protocol.is_http:
        ports.http.setdefault(number, []).append(service)
        return
    if service.resolution is Resolution.ALIAS and not port.protocol.is_tls:
        # An address that only DNS knows: bytes to it cannot be told from bytes to anything else on this port.
        if port.protocol.is_unknown:
            ports.http.setdefault(number, []).append(service)
        return
    for bind, pod in [(WILDCARD, "")] if view.address else _binds(build, service):
        key = (view.address or bind, number)
        if port.protocol.is_unknown and bind == WILDCARD:
            ports.http.setdefault(number, []).append(service)
            continue
        if port.protocol.is_unknown and key not in ports.chains:
            ports.sniffed.setdefault(key, (service, port))
        if pod:
            ports.pods[key] = pod
        _add_chains(build, ports, key, service, _tcp_chains(build, service, port, bind))


def fallback_cluster(build: Build) -> str:
    """Where connections go that no listener knows."""
    policy = build.scope.outbound
    if policy.mode == "REGISTRY_ONLY":
        return BLACKHOLE_CLUSTER
    if policy.egress_proxy is not None:
        return cluster_of(build, policy.egress_proxy, build.proxy.namespace, 0)
    return PASSTHROUGH_CLUSTER


def _fallback_chain(build: Build, name: str) -> FilterChain:
    cluster = fallback_cluster(build)
    return FilterChain(
        name=name,
        match=ChainMatch(),
        filters=(client_tcp(build, cluster, (WeightedCluster(cluster),)),),
    )


def virtual_outbound(build: Build) -> Listener:
    """The listener that captured connections reach; it hands them to the listener of their destination."""
    port = build.context.mesh.proxy_listen_port
    blackhole = FilterChain(
        name="virtualOutbound-blackhole",
        match=ChainMatch(destination_port=port),
        filters=(client_tcp(build, BLACKHOLE_CLUSTER, (WeightedCluster(BLACKHOLE_CLUSTER),)),),
    )
    return Listener(
        name=VIRTUAL_OUTBOUND,
        address=WILDCARD,
        port=port,
        chains=(blackhole, _fallback_chain(build, "virtualOutbound-catchall-tcp")),
        bind_to_port=True,
        use_original_dst=True,
        access_logs=listener_logs(build),
    )


def _http_chain(build: Build, prefix: str, rds: str, origins: Origins) -> FilterChain:
    return FilterChain(
        name="",
        match=ChainMatch(transport_protocol="raw_buffer", application_protocols=PLAINTEXT_HTTP),
        filters=(outbound_manager(build, f"outbound_{prefix}", rds, origins),),
        origins=origins,
    )


def _http_listener(view: View, number: int, services: list[Service], ports: _Ports) -> Listener:
    """``0.0.0.0_9080``: HTTP by route table, everything else as if there were no such listener."""
    build = view.build
    address = view.address or WILDCARD
    name = f"{address}_{number}"
    origins = tuple(service.origin for service in services)
    key = (address, number)
    chains = ports.chains.pop(key, ())
    extra = tuple(chain for chain in chains if chain.match != ChainMatch())
    default = next((chain for chain in chains if chain.match == ChainMatch()), None)
    if default is not None:
        owner = ports.owners[key]
        build.report(
            "MLT0107",
            f"{owner.hostname} has no address of its own, and {services[0].hostname} speaks HTTP on port {number}: "
            "what looks like HTTP goes there, and protocols in which the server speaks first wait in vain",
            owner.origin,
            "give it an address, or another port",
        )
    return Listener(
        name=name,
        address=address,
        port=number,
        chains=(_http_chain(build, name, view.table(number), origins), *extra),
        default_chain=default or _default_chain(build, number, services),
        bind_to_port=view.bound,
        inspection=Inspection(
            tls=True, http=True, timeout_s=build.context.mesh.protocol_detection_timeout
        ),
        origins=origins,
    )


def _default_chain(build: Build, number: int, services: list[Service]) -> FilterChain:
    """Where an HTTP port's other bytes go: to the only service, when it does not say what it speaks; else past the mesh."""
    port = services[0].port(number)
    alone = len(services) == 1 and services[0].resolution is not Resolution.ALIAS
    if alone and port is not None and port.protocol.is_unknown:
        return service_chain(build, services[0], port, ChainMatch())
    return _fallback_chain(build, "PassthroughFilterChain")


def _address_listener(
    view: View, key: tuple[str, int], chains: list[FilterChain], ports: _Ports
) -> Listener:
    """``10.0.0.1_3306``: TCP or TLS to one address, with HTTP in front when the protocol is unknown."""
    build = view.build
    bind, number = key
    name = f"{bind}_{number}"
    sniffed = ports.sniffed.get(key)
    everything = [chain for chain in chains if chain.match == ChainMatch()]
    specific = [chain for chain in chains if chain.match != ChainMatch()]
    default = everything[0] if everything else None
    if default is None and bind == WILDCARD:
        default = _fallback_chain(build, "PassthroughFilterChain")
    timeout = build.context.mesh.protocol_detection_timeout
    wants_tls = any(c.match.transport_protocol or c.match.server_names for c in specific)
    inspection = Inspection(tls=wants_tls, timeout_s=timeout if wants_tls else None)
    if sniffed is not None:
        service, port = sniffed
        rds = f"{service.hostname}:{port.number}"
        specific.insert(0, _http_chain(build, name, rds, (service.origin,)))
        inspection = Inspection(tls=True, http=True, timeout_s=timeout)
    if default is not None and not specific:
        specific, default = [default], None
    return Listener(
        name=name,
        address=bind,
        port=number,
        chains=tuple(specific),
        default_chain=default,
        bind_to_port=view.bound,
        inspection=inspection,
        pod_only=ports.pods.get(key, ""),
        origins=(ports.owners[key].origin,),
    )


def _proxy_listener(build: Build, port: int) -> Listener:
    """``127.0.0.1_15007``: applications that are told of an HTTP proxy (``http_proxy``) name the service in their request."""
    name = f"{LOOPBACK}_{port}"
    manager = outbound_manager(build, f"outbound_{name}", HTTP_PROXY_TABLE, ())
    chain = FilterChain(name="", match=ChainMatch(), filters=(manager,))
    return Listener(name=name, address=LOOPBACK, port=port, chains=(chain,), bind_to_port=True)


def _is_free(build: Build, port: int, listeners: list[Listener]) -> bool:
    """Whether the port for HTTP proxying is nobody else's; it is told when it is not."""
    sidecar = build.scope.sidecar
    served = {target.target_port for target in build.proxy.targets}
    if sidecar is not None:
        served |= {entry.port.number for entry in sidecar.spec.ingress if entry.port is not None}
    known = {listener.port for listener in listeners}
    own = PROXY_PORTS | {build.context.mesh.proxy_inbound_listen_port}
    if port not in known | served | own:
        return True
    build.report(
        "MLT0101",
        f"proxyHttpPort {port} is not opened: the proxy, its workload or a service has this port",
        Origin("MeshConfig", path="proxyHttpPort"),
        "choose a port that nobody else has, such as 15007",
    )
    return False


def outbound_listeners(build: Build) -> tuple[list[Listener], list[RouteConfig]]:
    """All outbound listeners and the route tables they name."""
    listeners = [] if build.proxy.interception == "NONE" else [virtual_outbound(build)]
    routes: list[RouteConfig] = []
    for view in egress_views(build):
        ports = _gather(view)
        for number, services in sorted(ports.http.items()):
            listeners.append(_http_listener(view, number, services, ports))
            routes.append(port_route_config(view.build, number, view.table(number)))
        for key, chains in sorted(ports.chains.items()):
            listeners.append(_address_listener(view, key, chains, ports))
        for service, port in ports.sniffed.values():
            routes.append(service_route_config(view.build, service, port))
    forward = build.context.mesh.proxy_http_port
    if forward and _is_free(build, forward, listeners):
        listeners.append(_proxy_listener(build, forward))
        routes.append(proxy_route_config(build))
    unique = {listener.name: listener for listener in reversed(listeners)}
    return (
        list(reversed(unique.values())),
        list({config.name: config for config in routes}.values()),
    )
