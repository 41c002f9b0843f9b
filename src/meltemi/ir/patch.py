"""EnvoyFilter patches that apply to one proxy, in the order in which they are applied."""

from __future__ import annotations

from meltemi.ir.value import Origins, origins_field, value


@value
class PatchMatch:
    """Where a patch applies; empty fields do not restrict.

    Names of ports and gateways are resolved: ``listener_ports`` (of outbound and gateway listeners), ``inbound_ports`` (of
    the workload) and ``gateway_ports`` (plaintext route tables of the gateway) are numbers; (-1,) is none at all.
    """

    context: str = "ANY"
    listener: str = ""
    listener_ports: tuple[int, ...] = ()
    inbound_ports: tuple[int, ...] = ()
    listener_filter: str = ""
    chain: str = ""
    chain_sni: str = ""
    chain_transport: str = ""
    chain_socket: str = ""
    chain_protocols: str = ""
    chain_port: int = 0
    filter: str = ""
    sub_filter: str = ""
    route_config: str = ""
    route_port: int = 0
    route_port_name: str = ""
    route_gateway: str = ""
    gateway_ports: tuple[int, ...] = ()
    vhost: str = ""
    vhost_domain: str = ""
    route: str = ""
    route_action: str = ""
    cluster: str = ""
    cluster_service: str = ""
    cluster_subset: str = ""
    cluster_port: int = 0


@value
class Patch:
    """One change to the generated Envoy configuration. ``body`` is its value as JSON."""

    apply_to: str
    operation: str
    match: PatchMatch
    body: str = "{}"
    filter_class: str = ""
    filter: str = ""  # the EnvoyFilter, "namespace/name"
    origins: Origins = origins_field()
