"""EnvoyFilters on a real Envoy: each kind of patch has a visible effect, and a bad one harms nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from envoy.config.cluster.v3 import cluster_pb2

from envoy_rig import Backend, Envoy, fetch, free_port
from meltemi.model.names import CDS_TYPE, LDS_TYPE
from mesh_world import World, build_world, pod, service
from pki import make_authority, write_identity

pytestmark = pytest.mark.envoy

PATCHES = """
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: root, namespace: istio-system}
spec:
  configPatches:
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND, cluster: {service: web.default.svc.cluster.local}}
    patch: {operation: MERGE, value: {connect_timeout: 7s}}
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND}
    patch:
      operation: ADD
      value: {name: extra, type: STATIC, connect_timeout: 1s}
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_OUTBOUND
      listener:
        filterChain: {filter: {name: envoy.filters.network.http_connection_manager, subFilter: {name: envoy.filters.http.router}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: lua
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          default_source_code:
            inline_string: |
              function envoy_on_request(handle) handle:headers():add("x-lua", "yes") end
  - applyTo: NETWORK_FILTER
    match: {context: SIDECAR_OUTBOUND, listener: {filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}}
    patch:
      operation: MERGE
      value:
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          server_name: patched
  - applyTo: VIRTUAL_HOST
    match: {context: SIDECAR_OUTBOUND, routeConfiguration: {vhost: {name: "web.default.svc.cluster.local:9080"}}}
    patch:
      operation: MERGE
      value:
        request_headers_to_add: [{header: {key: x-vhost, value: "yes"}}]
  - applyTo: HTTP_ROUTE
    match: {context: SIDECAR_OUTBOUND, routeConfiguration: {vhost: {name: "web.default.svc.cluster.local:9080", route: {name: default}}}}
    patch:
      operation: INSERT_FIRST
      value: {name: first, match: {path: /teapot}, direct_response: {status: 418}}
  - applyTo: ROUTE_CONFIGURATION
    match: {context: SIDECAR_OUTBOUND}
    patch:
      operation: MERGE
      value: {response_headers_to_add: [{header: {key: x-table, value: "yes"}}]}
  - applyTo: LISTENER
    match: {context: SIDECAR_OUTBOUND, listener: {portNumber: 9080}}
    patch: {operation: MERGE, value: {per_connection_buffer_limit_bytes: 4096}}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: bad}
spec:
  configPatches:
  - applyTo: CLUSTER
    match: {context: SIDECAR_OUTBOUND}
    patch: {operation: MERGE, value: {no_such_field: 1}}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: others}
spec:
  workloadSelector: {labels: {app: other}}
  configPatches:
  - applyTo: CLUSTER
    patch: {operation: REMOVE}
"""


def _world(port: int) -> World:
    return build_world(
        service("web", ("http", 9080, port))
        + pod("web", "127.0.0.1", mtls=False)
        + pod("client", "10.1.0.6")
        + PATCHES
    )


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Envoy]]:
    """A sidecar with all patches."""
    folder: Path = tmp_path_factory.mktemp("patched")
    backend = Backend("web")
    port = free_port()
    envoy = Envoy(folder, {"0.0.0.0_9080": [("127.0.0.1", port)]})
    world = _world(backend.port)
    try:
        write_identity(envoy.certificates, make_authority(), "spiffe://cluster.local/ns/d/sa/c")
        envoy.load(world.resources("client"), world.endpoints("client"))
        envoy.start()
        yield port, envoy
    finally:
        envoy.close()
        backend.close()


def test_filters_routes_and_headers_are_patched(patched: tuple[int, Envoy]) -> None:
    """Every patch shows in one request."""
    port, _ = patched
    answer = fetch(port, "/hello", host="web")
    assert answer.status == 200
    seen = answer.json["headers"]
    assert (seen["x-lua"], seen["x-vhost"]) == ("yes", "yes")
    assert answer.headers["server"] == "patched"
    assert answer.headers["x-table"] == "yes"
    assert fetch(port, "/teapot", host="web").status == 418


def test_clusters_are_patched_and_added() -> None:
    """MERGE changes what matches, ADD adds once, patches for others do not apply, a bad one is left out."""
    resources = _world(8080).resources("client")
    clusters = {r.name: cluster_pb2.Cluster.FromString(r.body) for r in resources[CDS_TYPE]}
    assert clusters["outbound|9080||web.default.svc.cluster.local"].connect_timeout.seconds == 7
    assert clusters["PassthroughCluster"].connect_timeout.seconds == 10
    assert "extra" in clusters


def test_metrics_survive_patches(patched: tuple[int, Envoy]) -> None:
    """Fields newer than the installed types are not lost when a listener is taken apart and put together."""
    port, envoy = patched
    fetch(port, "/hello", host="web")
    assert envoy.stats("envoy_istio_requests_total")


def test_unpatched_types_keep_their_cached_bytes() -> None:
    """A proxy without patches has the same listeners as before."""
    plain = build_world(service("web", ("http", 9080)) + pod("client", "10.1.0.6"))
    again = build_world(service("web", ("http", 9080)) + pod("client", "10.1.0.6"))
    assert plain.resources("client")[LDS_TYPE] == again.resources("client")[LDS_TYPE]
