"""What stands in front of a gateway: ``gatewayTopology`` of the proxy's own settings, else of the mesh's."""

from __future__ import annotations

from dataclasses import dataclass

from meltemi.translate.build import Build


@dataclass(frozen=True, slots=True)
class Edge:
    """``trusted_hops``: proxies in front whose X-Forwarded-For entries count. ``client_cert``: what happens to X-Forwarded-Client-Cert."""

    trusted_hops: int = 0
    client_cert: str = "SANITIZE_SET"
    proxy_protocol: bool = False


_NOTHING = Edge()


def edge_of(build: Build) -> Edge:
    """The edge of a gateway; of other proxies there is none."""
    topology = build.settings.gateway_topology
    if topology is None or not build.proxy.is_gateway:
        return _NOTHING
    details = topology.forward_client_cert_details
    return Edge(
        trusted_hops=topology.num_trusted_proxies,
        client_cert=_NOTHING.client_cert if details == "UNDEFINED" else details,
        proxy_protocol=topology.proxy_protocol is not None,
    )
