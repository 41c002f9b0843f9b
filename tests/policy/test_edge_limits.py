"""What a gateway lets a client outside take: every limit that Envoy's advice for edge proxies names is set."""

from __future__ import annotations

from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)

from meltemi.model.names import LDS_TYPE
from mesh_world import build_world, pod

WEB = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: web}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
"""


def test_a_gateway_has_limits() -> None:
    """Times, streams, windows; headers that could be mistaken for others are refused; the client's word about itself is not taken."""
    labels = {"istio": "ingressgateway"}
    world = build_world(pod("gw", "10.1.0.9", labels=labels) + WEB)
    (body,) = (r.body for r in world.resources("gw")[LDS_TYPE] if r.name == "0.0.0.0_80")
    listener = listener_pb2.Listener.FromString(body)
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert listener.filter_chains[0].filters[0].typed_config.Unpack(manager)
    assert manager.use_remote_address.value
    assert manager.normalize_path.value
    assert 0 < manager.stream_idle_timeout.seconds <= 300
    assert 0 < manager.request_headers_timeout.seconds <= 60
    assert 0 < manager.common_http_protocol_options.idle_timeout.seconds <= 3600
    rejects = manager.common_http_protocol_options.REJECT_REQUEST
    assert manager.common_http_protocol_options.headers_with_underscores_action == rejects
    http2 = manager.http2_protocol_options
    assert 0 < http2.max_concurrent_streams.value <= 1024
    assert 0 < http2.initial_stream_window_size.value <= 64 * 1024
    assert 0 < http2.initial_connection_window_size.value <= 1024 * 1024
    # 60 KiB and 100 headers are Envoy's own limits, which nothing here raises.
    assert not manager.HasField("max_request_headers_kb")
    assert not manager.common_http_protocol_options.HasField("max_headers_count")
