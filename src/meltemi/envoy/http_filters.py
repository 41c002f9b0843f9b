"""HTTP filters as Envoy messages: one builder per kind of ``ir.http_filter`` value."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.grpc_web.v3 import grpc_web_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.http.header_to_metadata.v3 import header_to_metadata_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)

from meltemi.envoy.anys import pack
from meltemi.envoy.dynamic_dns import by_name_filter
from meltemi.envoy.jwt import jwt_authn
from meltemi.envoy.rbac import http_ext_authz, http_rbac
from meltemi.ir import http_filter as ir
from meltemi.ir.authorization import ExtAuthz, Rbac
from meltemi.ir.jwt import JwtAuthn
from meltemi.model.names import PEER_HEADER_PREFIX, PEER_METADATA

# What a proxy tells the next one about itself: header suffix -> variable of Envoy's environment.
PEER_FIELDS = (
    ("workload", "MESH_WORKLOAD"),
    ("namespace", "MESH_NAMESPACE"),
    ("canonical", "MESH_CANONICAL"),
    ("revision", "MESH_REVISION"),
    ("app", "MESH_APP"),
    ("version", "MESH_VERSION"),
    ("cluster", "MESH_CLUSTER"),
)


# What Istio's own proxies say about themselves. Ours do not read it; theirs, in a mesh that moves from one to the other, would.
_FOREIGN_PEER_HEADERS = ("x-envoy-peer-metadata", "x-envoy-peer-metadata-id")


def _without_foreign(made: Any) -> None:
    for name in _FOREIGN_PEER_HEADERS:
        made.mutations.request_mutations.append(mutation_rules_pb2.HeaderMutation(remove=name))


def _send_peer(_: ir.SendPeer) -> tuple[str, Any]:
    """Whatever the application, or a gateway's client, wrote into these headers is replaced."""
    made = header_mutation_pb2.HeaderMutation()
    _without_foreign(made)
    for key, variable in PEER_FIELDS:
        made.mutations.request_mutations.add(
            append=base_pb2.HeaderValueOption(
                header=base_pb2.HeaderValue(
                    key=PEER_HEADER_PREFIX + key, value=f"%ENVIRONMENT({variable})%"
                ),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
        )
    return "envoy.filters.http.header_mutation", made


def _receive_peer(receive: ir.ReceivePeer) -> tuple[str, Any]:
    """Trusted peers' headers become metadata; others' are only taken off, for anyone can write them."""
    if not receive.trusted:
        strip = header_mutation_pb2.HeaderMutation()
        _without_foreign(strip)
        for key, _ in PEER_FIELDS:
            strip.mutations.request_mutations.append(
                mutation_rules_pb2.HeaderMutation(remove=PEER_HEADER_PREFIX + key)
            )
        # A name of its own: routes that lead out of the mesh switch the filter of SendPeer off by name.
        return "meltemi.filters.http.strip_peer", strip
    made = header_to_metadata_pb2.Config()
    for key, _ in PEER_FIELDS:
        made.request_rules.add(
            header=PEER_HEADER_PREFIX + key,
            on_header_present=header_to_metadata_pb2.Config.KeyValuePair(
                metadata_namespace=PEER_METADATA,
                key=key,
                type=header_to_metadata_pb2.Config.STRING,
            ),
            remove=True,
        )
    return "envoy.filters.http.header_to_metadata", made


def _mesh_alpn(_: ir.MeshAlpn) -> tuple[str, Any]:
    return "envoy.filters.http.set_filter_state", set_filter_state_pb2.Config()


def _grpc_web(_: ir.GrpcWeb) -> tuple[str, Any]:
    return "envoy.filters.http.grpc_web", grpc_web_pb2.GrpcWeb()


def _fault(_: ir.FaultFilter) -> tuple[str, Any]:
    return "envoy.filters.http.fault", fault_pb2.HTTPFault()


def _cors(_: ir.CorsFilter) -> tuple[str, Any]:
    return "envoy.filters.http.cors", cors_pb2.Cors()


def _resolve(_: ir.ResolveName) -> tuple[str, Any]:
    return "envoy.filters.http.dynamic_forward_proxy", by_name_filter()


def _router(router: ir.Router) -> tuple[str, Any]:
    return "envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=router.quiet)


_BUILDERS: dict[type, Callable[[Any], tuple[str, Any]]] = {
    ir.SendPeer: _send_peer,
    ir.ReceivePeer: _receive_peer,
    JwtAuthn: jwt_authn,
    Rbac: http_rbac,
    ExtAuthz: http_ext_authz,
    ir.MeshAlpn: _mesh_alpn,
    ir.GrpcWeb: _grpc_web,
    ir.FaultFilter: _fault,
    ir.CorsFilter: _cors,
    ir.ResolveName: _resolve,
    ir.Router: _router,
}


@lru_cache(maxsize=1024)
def build_http_filter(entry: ir.HttpFilter) -> Any:
    """One HTTP filter. Callers must not change it."""
    name, config = _BUILDERS[type(entry)](entry)
    return http_connection_manager_pb2.HttpFilter(name=name, typed_config=pack(config))
