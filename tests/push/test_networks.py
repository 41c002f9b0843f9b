"""Networks: gateways from MeshNetworks and from labelled Services."""

from __future__ import annotations

import pytest

from meltemi.model.config import Meta
from meltemi.model.mesh import IstioNetworkGateway, MeshNetworks, Network, NetworkEndpoints
from meltemi.model.service import Service
from meltemi.push.networks import derive_networks


def _service(labels: dict[str, str], *addresses: str) -> Service:
    meta = Meta(name="gw", namespace="istio-system", labels=labels)
    return Service("gw.istio-system.svc.cluster.local", meta, (), external_addresses=addresses)


def test_a_labelled_service_is_the_gateway_of_its_network() -> None:
    """At its load balancer's address, on 15443 or the port that its label names."""
    label = {"topology.istio.io/network": "n2"}
    made = derive_networks(MeshNetworks(), [_service(label, "192.0.2.1")])
    assert made.gateways == (("n2", (("192.0.2.1", 15443),)),)
    label["networking.istio.io/gatewayPort"] = "443"
    made = derive_networks(MeshNetworks(), [_service(label, "192.0.2.1")])
    assert made.gateways == (("n2", (("192.0.2.1", 443),)),)
    assert derive_networks(MeshNetworks(), [_service(label)]).gateways == ()


@pytest.mark.covers(
    "MeshNetworks.networks.endpoints.fromCidr",
    "MeshNetworks.networks.endpoints.fromRegistry",
    "MeshNetworks.networks.gateways.registryServiceName",
)
def test_mesh_networks_name_services_ranges_and_clusters() -> None:
    """registryServiceName is looked up; fromCidr and fromRegistry place endpoints."""
    network = Network(
        endpoints=(NetworkEndpoints(from_cidr="10.2.0.0/16"), NetworkEndpoints(from_registry="c2")),
        gateways=(
            IstioNetworkGateway(registry_service_name="gw.istio-system.svc.cluster.local", port=99),
        ),
    )
    made = derive_networks(MeshNetworks(networks={"n2": network}), [_service({}, "192.0.2.1")])
    assert made.gateways == (("n2", (("192.0.2.1", 99),)),)
    assert made.ranges == (("10.2.0.0/16", "n2"),)
    assert made.clusters == (("c2", "n2"),)
