"""Clusters of a gateway between networks (AUTO_PASSTHROUGH): named as clients' SNI names them, TLS left alone."""

from __future__ import annotations

from dataclasses import replace

from meltemi.ir.cluster import Cluster, ClusterType
from meltemi.ir.endpoint import EndpointNeed
from meltemi.model.names import dns_sni
from meltemi.model.service import Protocol, Resolution
from meltemi.translate import cluster_policy as tuning
from meltemi.translate.build import Build
from meltemi.translate.clusters import endpoint_need, short_name
from meltemi.translate.gateway_servers import bound_servers
from meltemi.translate.rules import effective_policy, rule_for


def _wanted(build: Build) -> bool:
    return any(
        bound.server.tls is not None and bound.server.tls.mode == "AUTO_PASSTHROUGH"
        for bound in bound_servers(build, quiet=True)
    )


def east_west_clusters(build: Build) -> tuple[list[Cluster], list[EndpointNeed]]:
    """One cluster per service, port and subset of the mesh; nothing without an AUTO_PASSTHROUGH server."""
    clusters: list[Cluster] = []
    needs: list[EndpointNeed] = []
    if not _wanted(build):
        return clusters, needs
    mesh = build.context.mesh
    for service in build.scope.services:
        if service.mesh_external or service.resolution is not Resolution.CLIENT_SIDE_LB:
            continue
        rule = rule_for(build, service)
        for port in service.ports:
            if port.protocol is Protocol.UDP:
                continue
            for variant in (None, *(rule.subsets if rule is not None else ())):
                subset = variant[0] if variant is not None else None
                policy = effective_policy(build, rule, port.number, subset)
                name = dns_sni(service.hostname, port.number, subset.name if subset else "")
                clusters.append(
                    Cluster(
                        name=name,
                        type=ClusterType.EDS,
                        connect_timeout_s=mesh.connect_timeout,
                        balancer=tuning.balancer(policy, mesh, ClusterType.EDS, build.proxy),
                        thresholds=tuning.thresholds(policy),
                        service=(service.hostname, short_name(service), service.namespace),
                        origins=(service.origin,),
                    )
                )
                need = endpoint_need(build, service, port, rule, subset)
                needs.append(
                    replace(need, cluster=name, network=build.proxy.network, local_only=True)
                )
    return clusters, needs
