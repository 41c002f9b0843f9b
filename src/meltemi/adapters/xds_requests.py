"""xDS requests from protobuf to the discovery machine's own words."""

from __future__ import annotations

from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import json_format

from meltemi.discovery.node import proxy_from_node
from meltemi.discovery.protocol import Mode, Request
from meltemi.model.proxy import Proxy

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
METHODS = {Mode.SOTW: "StreamAggregatedResources", Mode.DELTA: "DeltaAggregatedResources"}
PARSERS: dict[Mode, Any] = {
    Mode.SOTW: discovery_pb2.DiscoveryRequest.FromString,
    Mode.DELTA: discovery_pb2.DeltaDiscoveryRequest.FromString,
}


def request_of(mode: Mode, message: Any) -> Request:
    """A parsed ``DiscoveryRequest`` or ``DeltaDiscoveryRequest``."""
    error = message.error_detail.message if message.HasField("error_detail") else None
    if mode is Mode.SOTW:
        return Request(
            message.type_url,
            tuple(message.resource_names),
            nonce=message.response_nonce,
            version=message.version_info,
            error=error,
        )
    return Request(
        message.type_url,
        tuple(message.resource_names_subscribe),
        tuple(message.resource_names_unsubscribe),
        nonce=message.response_nonce,
        initial_versions=dict(message.initial_resource_versions),
        error=error,
    )


def proxy_of(message: Any) -> Proxy:
    """The proxy that sent this (first) request. Raises RemoteProtocolError."""
    node = message.node
    place = node.locality
    parts = [place.region, place.zone, place.sub_zone]
    while parts and not parts[-1]:
        parts.pop()
    metadata = json_format.MessageToDict(node.metadata)
    return proxy_from_node(node.id, metadata, "/".join(parts))
