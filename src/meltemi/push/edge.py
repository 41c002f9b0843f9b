"""What stands in front of a gateway: its own ``gatewayTopology``, else the mesh's.

In: the mesh configuration and a proxy. A proxy brings its ProxyConfig (the mesh's, with the annotation
``proxy.istio.io/config`` laid over it) in its node's metadata. Out: a small value, part of the proxy's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from meltemi.model.mesh import MeshConfig, Topology
from meltemi.model.proxy import NodeType, Proxy


@dataclass(frozen=True, slots=True)
class Edge:
    """``trusted_hops``: proxies in front whose X-Forwarded-For entries count. ``client_cert``: what happens to X-Forwarded-Client-Cert."""

    trusted_hops: int = 0
    client_cert: str = "SANITIZE_SET"
    proxy_protocol: bool = False


NO_EDGE = Edge()


def edge_of(mesh: MeshConfig, proxy: Proxy) -> Edge:
    """The edge of a gateway; of other proxies ``NO_EDGE``. What cannot be read counts as not set."""
    if proxy.type is not NodeType.ROUTER:
        return NO_EDGE
    given = proxy.metadata.get("PROXY_CONFIG")
    topology = mesh.default_config.gateway_topology
    if isinstance(given, Mapping) and given.get("gatewayTopology") is not None:
        try:
            topology = msgspec.convert(given["gatewayTopology"], Topology, strict=False)
        except msgspec.ValidationError:
            pass
    if topology is None:
        return NO_EDGE
    details = topology.forward_client_cert_details
    return Edge(
        trusted_hops=topology.num_trusted_proxies,
        client_cert=NO_EDGE.client_cert if details == "UNDEFINED" else details,
        proxy_protocol=topology.proxy_protocol is not None,
    )
