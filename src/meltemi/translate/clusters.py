"""Clusters: outbound per service, port and subset; inbound per target port; and the fixed ones."""

from __future__ import annotations

from dataclasses import replace

from meltemi.ir.cluster import (
    Balancer,
    Balancing,
    Cluster,
    ClusterType,
    HttpOptions,
    HttpVersion,
    StaticEndpoint,
)
from meltemi.ir.endpoint import EndpointNeed, LocalityPolicy
from meltemi.ir.peer import mesh_metadata
from meltemi.ir.ranking import locality_weights, priority_of
from meltemi.ir.value import Origins
from meltemi.model.destination_rule import Subset, TrafficPolicy
from meltemi.model.names import (
    BLACKHOLE_CLUSTER,
    BY_NAME_CLUSTER,
    INBOUND_PASSTHROUGH_CLUSTER,
    LOCAL_CLUSTER,
    PASSTHROUGH_CLUSTER,
    outbound_cluster,
)
from meltemi.model.service import Endpoint, Port, Protocol, Resolution, Service
from meltemi.push.classes import selector
from meltemi.translate import cluster_policy as tuning
from meltemi.translate.build import Build
from meltemi.translate.mtls import plaintext_workloads
from meltemi.translate.rules import Rule, effective_policy, pool_of, rule_for
from meltemi.translate.stat_names import stat_name
from meltemi.translate.upstream_tls import choose_tls, unknown_hosts_tls

_TYPES = {
    Resolution.CLIENT_SIDE_LB: ClusterType.EDS,
    Resolution.DNS_LB: ClusterType.STRICT_DNS,
    Resolution.DNS_ROUND_ROBIN_LB: ClusterType.LOGICAL_DNS,
    Resolution.PASSTHROUGH: ClusterType.ORIGINAL_DST,
    Resolution.DYNAMIC_DNS: ClusterType.BY_NAME,
    Resolution.ALIAS: ClusterType.STRICT_DNS,
}
INBOUND_BIND = "127.0.0.6"  # exempt from capture by its source address
_DNS = (ClusterType.STRICT_DNS, ClusterType.LOGICAL_DNS)


def short_name(service: Service) -> str:
    """The service's own name, for telemetry: of a Kubernetes Service, or the host."""
    return service.meta.name if service.registry == "Kubernetes" else service.hostname


def cluster_type(build: Build, service: Service, policy: TrafficPolicy) -> ClusterType:
    """How endpoints are found. A gateway has no original destination to pass through to."""
    kind = _TYPES[service.resolution]
    if kind is ClusterType.ORIGINAL_DST and build.proxy.is_gateway:
        return ClusterType.EDS if not service.mesh_external or service.headless else kind
    simple = policy.load_balancer.simple if policy.load_balancer is not None else None
    if simple == "PASSTHROUGH" and kind is ClusterType.EDS:
        return ClusterType.ORIGINAL_DST
    return kind


def _inline(
    build: Build, service: Service, port: Port, subset: Subset | None, policy: TrafficPolicy
) -> tuple[StaticEndpoint, ...]:
    """Endpoints of a DNS service. One without any resolves its own host name."""
    wanted = subset.labels if subset is not None else {}
    everything = build.context.facts_of(service).inline
    mine = own_cluster(build, service)
    known = [
        endpoint
        for endpoint in everything
        if endpoint.service_port in ("", port.name)
        and all(endpoint.labels.get(key) == text for key, text in wanted.items())
        and endpoint.cluster in (mine or endpoint.cluster, "")
    ]
    if not everything:
        target = service.external_name or service.hostname
        if target.startswith("*"):
            return ()
        return (StaticEndpoint(target, port.target_port or port.number),)
    locality = tuning.locality_policy(policy, build.context.mesh, build.proxy, service)
    return _ranked(known, port, locality, build.proxy.locality)


def _ranked(
    endpoints: list[Endpoint], port: Port, policy: LocalityPolicy, mine: str
) -> tuple[StaticEndpoint, ...]:
    """The endpoints with priorities (without gaps, as Envoy wants them) and localities' weights."""
    weights: dict[tuple[int, str], int] = {}
    ranks = [priority_of(policy, mine, endpoint) for endpoint in endpoints]
    for rank, endpoint in zip(ranks, endpoints, strict=True):
        place = (rank, endpoint.locality)
        weights[place] = weights.get(place, 0) + (endpoint.weight or 1)
    if policy.distribute:
        shares = locality_weights(policy, {endpoint.locality for endpoint in endpoints})
        weights = {(rank, name): shares.get(name, 0) for rank, name in weights}
    dense = {rank: index for index, rank in enumerate(sorted(set(ranks)))}
    return tuple(
        StaticEndpoint(
            address=endpoint.address,
            port=endpoint.port or port.target_port or port.number,
            weight=endpoint.weight or 1,
            locality=endpoint.locality,
            priority=dense[rank],
            locality_weight=weights[rank, endpoint.locality],
            mesh=mesh_metadata(endpoint),
            tls_mode=endpoint.tls_mode,
        )
        for rank, endpoint in zip(ranks, endpoints, strict=True)
        if weights[rank, endpoint.locality]
    )


def _origins(
    service: Service, rule: Rule | None, subset: tuple[Subset, object, int] | None
) -> Origins:
    found = [service.origin]
    if rule is not None:
        if subset is not None:
            _, config, index = subset
            found += [c.origin(f"spec.subsets[{index}]") for c in rule.configs if c is config]
        elif rule.policy is not None:
            found.append(rule.configs[0].origin("spec.trafficPolicy"))
    return tuple(found)


def _outbound(
    build: Build,
    service: Service,
    port: Port,
    rule: Rule | None,
    subset: tuple[Subset, object, int] | None,
) -> Cluster | None:
    mesh = build.context.mesh
    chosen = subset[0] if subset is not None else None
    policy = effective_policy(build, rule, port.number, chosen)
    kind = cluster_type(build, service, policy)
    endpoints = _inline(build, service, port, chosen, policy) if kind in _DNS else ()
    if kind in _DNS and not endpoints:
        return None
    if kind is ClusterType.LOGICAL_DNS:
        endpoints = endpoints[:1]
    http = tuning.http_options(policy, mesh, port)
    name = chosen.name if chosen is not None else ""
    tls = choose_tls(
        build.context,
        service,
        port,
        name,
        kind,
        policy.tls,
        http2=http.version is HttpVersion.HTTP2,
        secrets=build.proxy.is_gateway or (rule is not None and rule.selects_clients),
    )
    if tls.auto_sni:
        http = replace(http, auto_sni=True, auto_san=tls.auto_san)
    tcp = pool_of(policy)[0]
    described = (service.hostname, short_name(service), service.namespace)
    target = port.target_port or port.number
    proxy_protocol = {"V1": 1, "V2": 2}
    return Cluster(
        name=outbound_cluster(service.hostname, port.number, name),
        type=kind,
        stat_name=stat_name(
            mesh.outbound_cluster_stat_name, described, port.number, port.name, target, name
        ),
        connect_timeout_s=tcp.connect_timeout or mesh.connect_timeout,
        balancer=tuning.balancer(policy, mesh, kind, build.proxy),
        thresholds=tuning.thresholds(policy),
        http=http,
        outlier=tuning.outlier(policy.outlier_detection),
        keepalive=tuning.keepalive(policy, mesh),
        tls=tls.always,
        auto_tls=tls.auto,
        endpoints=endpoints,
        dns_refresh_s=mesh.dns_refresh_rate if kind in _DNS else None,
        tcp_idle_timeout_s=tcp.idle_timeout,
        proxy_protocol=proxy_protocol[policy.proxy_protocol.version]
        if policy.proxy_protocol
        else 0,
        service=described,
        rule=rule.path if rule is not None else "",
        external=service.mesh_external,
        origins=_origins(service, rule, subset),
    )


def own_cluster(build: Build, service: Service) -> str:
    """The proxy's own cluster where the mesh says that the service's endpoints elsewhere are not for it; else "".

    The entry of ``serviceSettings`` that names the host most precisely decides.
    """
    best, local = -1, False
    for entry in build.context.mesh.service_settings:
        for pattern in entry.hosts:
            wild = pattern.startswith("*")
            holds = service.hostname.endswith(pattern[1:]) if wild else service.hostname == pattern
            precision = len(pattern) if wild else len(pattern) + 1
            if holds and precision > best:
                best = precision
                local = entry.settings is not None and entry.settings.cluster_local
    return build.proxy.cluster_id if local else ""


def _compared(policy: LocalityPolicy, mine: str) -> str:
    """What of the proxy's own place its endpoints' ranking depends on."""
    if not policy.enabled:
        return ""
    return mine.split("/")[0] if policy.by_region else mine


def own_service(build: Build) -> list[EndpointNeed]:
    """The endpoints of the proxy's own service, if it asks for them: those of its region, workload and template.

    They are the first service's that selects it, and none when no service does: it is answered all the same, because Envoy
    waits for them before it asks for anything else.
    """
    own = build.proxy.own_pods
    if own is None:
        return []
    targets = build.proxy.targets[:1]
    return [
        EndpointNeed(
            cluster=LOCAL_CLUSTER,
            hostname=targets[0].hostname if targets else "",
            namespace=targets[0].namespace if targets else "",
            port_name=targets[0].port_name if targets else "",
            port=targets[0].port if targets else 0,
            subset=(("pod-template-hash", own.template),) if own.template else (),
            policy=LocalityPolicy(enabled=True, by_region=True),
            region=build.proxy.locality.split("/")[0],
            workload=own.workload,
        )
    ]


def endpoint_need(
    build: Build, service: Service, port: Port, rule: Rule | None, subset: Subset | None
) -> EndpointNeed:
    policy = effective_policy(build, rule, port.number, subset)
    name = subset.name if subset is not None else ""
    locality = tuning.locality_policy(policy, build.context.mesh, build.proxy, service)
    networks = build.context.networks
    return EndpointNeed(
        cluster=outbound_cluster(service.hostname, port.number, name),
        hostname=service.hostname,
        namespace=service.namespace,
        port_name=port.name,
        port=port.number,
        subset=selector(subset.labels if subset is not None else None),
        # Only a policy that compares localities makes clusters differ between them.
        locality=_compared(locality, build.proxy.locality),
        network=build.proxy.network if networks.gateways else "",
        gateways=networks.gateways,
        ranges=networks.ranges,
        clusters=networks.clusters,
        policy=locality,
        plaintext=plaintext_workloads(build.context, service.namespace),
        node=build.proxy.node if service.internal_traffic_local else "",
        only_cluster=own_cluster(build, service),
    )


def outbound_clusters(build: Build) -> tuple[list[Cluster], list[EndpointNeed]]:
    """Every visible service's ports and subsets, and what the EDS ones need."""
    clusters: list[Cluster] = []
    needs: list[EndpointNeed] = []
    for service in build.scope.services:
        rule = rule_for(build, service)
        for port in service.ports:
            if port.protocol is Protocol.UDP:
                continue
            variants = (None, *(rule.subsets if rule is not None else ()))
            for variant in variants:
                made = _outbound(build, service, port, rule, variant)
                if made is None:
                    continue
                clusters.append(made)
                if made.type is ClusterType.EDS:
                    subset = variant[0] if variant is not None else None
                    needs.append(endpoint_need(build, service, port, rule, subset))
    return clusters, needs


def _by_name(build: Build) -> Cluster:
    """Hosts that are resolved by the names that requests ask for."""
    mesh = build.context.mesh
    tls = unknown_hosts_tls(mesh)
    # Over TLS nobody has agreed on a protocol with the server yet: HTTP/1.1 is what all of them speak.
    version = HttpVersion.DOWNSTREAM if tls.always is None else HttpVersion.HTTP1
    return Cluster(
        BY_NAME_CLUSTER,
        ClusterType.BY_NAME,
        connect_timeout_s=mesh.connect_timeout,
        balancer=Balancer(policy=Balancing.CLUSTER_PROVIDED),
        http=HttpOptions(version=version, auto_sni=tls.auto_sni, auto_san=tls.auto_san),
        tls=tls.always,
        service=(BY_NAME_CLUSTER, BY_NAME_CLUSTER, "unknown"),
        external=True,
    )


def fixed_clusters(build: Build) -> list[Cluster]:
    """Where unknown traffic goes. A gateway only needs the black hole."""
    timeout = build.context.mesh.connect_timeout
    blackhole = Cluster(BLACKHOLE_CLUSTER, ClusterType.STATIC, connect_timeout_s=timeout)
    if build.proxy.is_gateway:
        return [blackhole]
    passthrough = Cluster(
        PASSTHROUGH_CLUSTER,
        ClusterType.ORIGINAL_DST,
        connect_timeout_s=timeout,
        balancer=Balancer(policy=Balancing.CLUSTER_PROVIDED),
        http=HttpOptions(version=HttpVersion.DOWNSTREAM),
        service=(PASSTHROUGH_CLUSTER, PASSTHROUGH_CLUSTER, "unknown"),
        external=True,
    )
    extra = [_by_name(build)] if build.scope.outbound.mode == "ALLOW_ANY_DYNAMIC_DNS" else []
    inbound = Cluster(
        INBOUND_PASSTHROUGH_CLUSTER,
        ClusterType.ORIGINAL_DST,
        connect_timeout_s=timeout,
        balancer=Balancer(policy=Balancing.CLUSTER_PROVIDED),
        http=HttpOptions(version=HttpVersion.DOWNSTREAM),
        bind_address=INBOUND_BIND,
        socket_mark=build.proxy.mark,
        service=(INBOUND_PASSTHROUGH_CLUSTER, INBOUND_PASSTHROUGH_CLUSTER, "unknown"),
    )
    return [blackhole, passthrough, *extra, inbound]
