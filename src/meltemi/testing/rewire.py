"""What the rig must change in generated resources, and nothing else.

In a pod, the kernel captures connections. Here nothing is captured: a client states the original destination in a PROXY
protocol header, and a server's proxy is bound to the workload's own address and ports. Hence, per proxy:

* listeners that capture, and those of gateways, bind the proxy's loopback address; ``virtualOutbound`` reads the original
  destination from the PROXY header instead of the socket option, ``virtualInbound`` is bound to every port of the workload
  and needs neither; the header also says where that destination is on this machine, which is told to the clusters that
  connect to original destinations;
* behind ``virtualInbound`` the way to the application is told by filter state: the same port at the application's address
  (in a pod, both have one address);
* endpoint addresses outside the mesh become those of stand-ins, so that nothing leaves this machine;
* workload certificates come over the stream instead of from files (each watched file costs an inotify instance, of which
  an ordinary user has 128);
* one response header mutation (and an access log for TCP) reports what the proxy did.

Everything else (chains, their matches, filters, routes, clusters, policies) is what a proxy in a mesh gets.
In: a resource and the proxy's ``Place``. Out: the resource for the rig.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.access_loggers.grpc.v3 import als_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.listener.proxy_protocol.v3 import proxy_protocol_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.transport_sockets.proxy_protocol.v3 import upstream_proxy_protocol_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2

from meltemi.envoy.anys import pack
from meltemi.envoy.listeners import ads
from meltemi.model.names import (
    CDS_TYPE,
    EDS_TYPE,
    LDS_TYPE,
    VIRTUAL_INBOUND,
    VIRTUAL_OUTBOUND,
)
from meltemi.model.resource import Resource, resource_of
from meltemi.testing.hops import HOP_FORMAT, HOP_HEADER

RIG_CLUSTER = "meltemi-testing"
_HCM = "envoy.filters.network.http_connection_manager"
_TCP = "envoy.filters.network.tcp_proxy"
_ORIGINAL_DST = "envoy.filters.listener.original_dst"
_DESTINATION_STATE = "envoy.network.transport_socket.original_dst_address"
PLACE_TLV = 0xE0  # of the PROXY header: where the destination is on this machine
_PLACE = ("meltemi.testing", "place")
WILDCARDS = ("0.0.0.0", "::")
_LOOPBACK = ("127.0.0.1", "::1", *WILDCARDS)


class Ground(Protocol):
    """Where things are on this machine."""

    def endpoint(self, address: str, port: int) -> tuple[str, int]:
        """Where an endpoint of the mesh, or of the world outside, is."""
        ...

    def port(self, number: int) -> int:
        """The port to bind instead of ``number``."""
        ...

    def bound(self, place: Place, address: str) -> str:
        """The address to bind instead of ``address``."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """One proxy on this machine. ``ports`` are those that the workload serves; ``own`` of them have their own listeners."""

    id: str
    address: str
    app: str
    ports: tuple[int, ...]
    router: bool = False
    own: tuple[int, ...] = ()


class Rewired(Mapping[str, Resource]):
    """The resources of one type for one proxy, changed when they are asked for."""

    def __init__(
        self, source: Mapping[str, Resource], type_url: str, place: Place, rewire: Rewire
    ) -> None:
        self.source = source
        self.place = place
        self._type = type_url
        self._rewire = rewire

    def __getitem__(self, name: str) -> Resource:
        return self._rewire.resource(self._type, self.source[name], self.place)

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


class Rewire:
    """See the module. Remembers what it has made."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._made: dict[tuple[str, str, str, Place], Resource] = {}

    def resource(self, type_url: str, resource: Resource, place: Place) -> Resource:
        """One resource as this proxy gets it here."""
        change = _CHANGES.get(type_url)
        if change is None:
            return resource
        key = (type_url, resource.name, resource.version, place)
        known = self._made.get(key)
        if known is None:
            if len(self._made) > 50_000:
                self._made.clear()
            known = resource_of(
                resource.name, change(resource.body, place, self._ground), resource.aliases
            )
            self._made[key] = known
        return known


# --- clusters and endpoints -------------------------------------------------------------------------


def _endpoints(made: Any, ground: Ground, app: str = "") -> bool:
    """Move the endpoints of an assignment; True when any moved. ``app``: the application's own address."""
    moved = False
    for locality in made.endpoints:
        for entry in locality.lb_endpoints:
            for address in (
                entry.endpoint.address,
                *(a.address for a in entry.endpoint.additional_addresses),
            ):
                if address.WhichOneof("address") != "socket_address":
                    continue
                socket = address.socket_address
                if app:
                    where = (
                        (app if socket.address in _LOOPBACK else socket.address),
                        ground.port(socket.port_value),
                    )
                else:
                    where = ground.endpoint(socket.address, socket.port_value)
                if where != (socket.address, socket.port_value):
                    socket.address, socket.port_value = where
                    moved = True
    return moved


def _assignment(body: bytes, place: Place, ground: Ground) -> bytes:
    made = endpoint_pb2.ClusterLoadAssignment.FromString(body)
    return made.SerializeToString(deterministic=True) if _endpoints(made, ground) else body


def _cluster(body: bytes, place: Place, ground: Ground) -> bytes:
    made = cluster_pb2.Cluster.FromString(body)
    if made.HasField("load_assignment"):
        inbound = made.name.startswith("inbound|")
        _endpoints(made.load_assignment, ground, place.app if inbound else "")
    for match in made.transport_socket_matches:
        _certificates(match.transport_socket)
    if made.HasField("transport_socket"):
        _certificates(made.transport_socket)
    return bytes(made.SerializeToString(deterministic=True))


def _certificates(socket: Any) -> None:
    """Take the workload's secrets from the stream, under their own names."""
    if socket.name == "envoy.transport_sockets.upstream_proxy_protocol":
        outer = upstream_proxy_protocol_pb2.ProxyProtocolUpstreamTransport()
        outer.ParseFromString(socket.typed_config.value)
        _certificates(outer.transport_socket)
        socket.typed_config.value = outer.SerializeToString(deterministic=True)
    if socket.name != "envoy.transport_sockets.tls":
        return
    kind = socket.typed_config.type_url.rpartition(".")[2]
    context = getattr(tls_pb2, kind)()
    context.ParseFromString(socket.typed_config.value)
    common = context.common_tls_context
    sources = [*common.tls_certificate_sds_secret_configs]
    if common.HasField("validation_context_sds_secret_config"):
        sources.append(common.validation_context_sds_secret_config)
    if common.combined_validation_context.HasField("validation_context_sds_secret_config"):
        sources.append(common.combined_validation_context.validation_context_sds_secret_config)
    for source in sources:
        if source.sds_config.WhichOneof("config_source_specifier") == "path_config_source":
            source.sds_config.CopyFrom(ads())
    socket.typed_config.value = context.SerializeToString(deterministic=True)


# --- listeners --------------------------------------------------------------------------------------


def _listener(body: bytes, place: Place, ground: Ground) -> bytes:
    made = listener_pb2.Listener.FromString(body)
    binds = not made.HasField("bind_to_port") or made.bind_to_port.value
    chains = [*made.filter_chains]
    if made.HasField("default_filter_chain"):
        chains.append(made.default_filter_chain)
    first: list[Any] = []
    if made.name == VIRTUAL_OUTBOUND:
        _read_proxy_header(made)
        first = [_destination(f"%DYNAMIC_METADATA({':'.join(_PLACE)})%")]
    elif made.name == VIRTUAL_INBOUND:
        _without_original_destination(made)
        _move_ports(made, ground)
        first = [_destination(f"{place.app}:%DOWNSTREAM_LOCAL_PORT%")]
    elif not binds:
        _read_proxy_header(made)
        first = [_destination(f"%DYNAMIC_METADATA({':'.join(_PLACE)})%")]
    for chain in chains:
        if chain.HasField("transport_socket"):
            _certificates(chain.transport_socket)
        direction = base_pb2.TrafficDirection.Name(made.traffic_direction).lower()
        for entry in chain.filters:
            _report(entry, place, "gateway" if place.router else direction)
        if first:
            kept = [*chain.filters]
            del chain.filters[:]
            chain.filters.extend([*first, *kept])
    if binds and made.address.WhichOneof("address") == "socket_address":
        ports = [number for number in place.ports if number not in place.own]
        ports = ports if made.name == VIRTUAL_INBOUND else []
        _bind(made, place, [ground.port(number) for number in ports], ground)
    return bytes(made.SerializeToString(deterministic=True))


def _bind(made: Any, place: Place, ports: Iterable[int], ground: Ground) -> None:
    """Bind the proxy's address: the listener's own port, and those of the workload."""
    socket = made.address.socket_address
    own = socket.port_value
    del made.additional_addresses[:]
    socket.address, socket.port_value = ground.bound(place, socket.address), ground.port(own)
    for number in dict.fromkeys(ports):
        if number != own:
            extra = made.additional_addresses.add().address.socket_address
            extra.address, extra.port_value = place.address, number


def _read_proxy_header(made: Any) -> None:
    rule = proxy_protocol_pb2.ProxyProtocol.Rule(tlv_type=PLACE_TLV)
    rule.on_tlv_present.metadata_namespace, rule.on_tlv_present.key = _PLACE
    proxy = listener_components_pb2.ListenerFilter(
        name="envoy.filters.listener.proxy_protocol",
        typed_config=pack(proxy_protocol_pb2.ProxyProtocol(rules=[rule])),
    )
    kept = [entry for entry in made.listener_filters if entry.name != _ORIGINAL_DST]
    del made.listener_filters[:]
    made.listener_filters.extend([proxy, *kept])


def _without_original_destination(made: Any) -> None:
    kept = [entry for entry in made.listener_filters if entry.name != _ORIGINAL_DST]
    del made.listener_filters[:]
    made.listener_filters.extend(kept)


def _move_ports(made: Any, ground: Ground) -> None:
    """Ports that cannot be bound here have another number in matches too."""
    for chain in made.filter_chains:
        match = chain.filter_chain_match
        if match.HasField("destination_port"):
            match.destination_port.value = ground.port(match.destination_port.value)
    for entry in made.listener_filters:
        if entry.HasField("filter_disabled"):
            _move_range(entry.filter_disabled, ground)


def _move_range(predicate: Any, ground: Ground) -> None:
    kind = predicate.WhichOneof("rule")
    if kind == "destination_port_range":
        span = predicate.destination_port_range
        if span.end == span.start + 1:
            span.start = ground.port(span.start)
            span.end = span.start + 1
    elif kind in ("or_match", "and_match"):
        for rule in getattr(predicate, kind).rules:
            _move_range(rule, ground)
    elif kind == "not_match":
        _move_range(predicate.not_match, ground)


def _destination(text: str) -> Any:
    """A filter that tells ORIGINAL_DST clusters where to connect to."""
    state = value_pb2.FilterStateValue(
        object_key=_DESTINATION_STATE,
        format_string=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string=text)
        ),
    )
    config = set_filter_state_pb2.Config(on_new_connection=[state])
    return listener_components_pb2.Filter(
        name="meltemi.testing.destination", typed_config=pack(config)
    )


def _report(entry: Any, place: Place, direction: str) -> None:
    """Let an HTTP connection manager or a TCP proxy report what it did."""
    if entry.name == _HCM:
        manager = hcm_pb2.HttpConnectionManager.FromString(entry.typed_config.value)
        filters = [*manager.http_filters]
        del manager.http_filters[:]
        manager.http_filters.extend([_hop_filter(place, direction), *filters])
        entry.typed_config.value = manager.SerializeToString(deterministic=True)
    elif entry.name == _TCP:
        proxy = tcp_proxy_pb2.TcpProxy.FromString(entry.typed_config.value)
        proxy.access_log.append(_tcp_log(place, direction))
        entry.typed_config.value = proxy.SerializeToString(deterministic=True)


def _hop_filter(place: Place, direction: str) -> Any:
    mutation = header_mutation_pb2.HeaderMutation()
    added = mutation.mutations.response_mutations.add().append
    added.header.key = HOP_HEADER
    added.header.value = HOP_FORMAT.format(proxy=place.id, direction=direction)
    added.append_action = base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD
    return hcm_pb2.HttpFilter(name="meltemi.testing.hop", typed_config=pack(mutation))


def _tcp_log(place: Place, direction: str) -> Any:
    common = als_pb2.CommonGrpcAccessLogConfig(
        log_name=f"{place.id}/{direction}", transport_api_version=base_pb2_version()
    )
    common.grpc_service.envoy_grpc.cluster_name = RIG_CLUSTER
    common.buffer_size_bytes.value = 0
    return accesslog_pb2.AccessLog(
        name="envoy.access_loggers.tcp_grpc",
        typed_config=pack(als_pb2.TcpGrpcAccessLogConfig(common_config=common)),
    )


def base_pb2_version() -> int:
    """The version of Envoy's transport API."""
    from envoy.config.core.v3 import config_source_pb2

    return int(config_source_pb2.V3)


_CHANGES = {CDS_TYPE: _cluster, EDS_TYPE: _assignment, LDS_TYPE: _listener}
