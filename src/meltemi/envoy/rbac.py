"""Authorization as Envoy messages: conditions, policies, RBAC and external authorization, for HTTP and for TCP."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from envoy.config.core.v3 import address_pb2, config_source_pb2, grpc_service_pb2, http_uri_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2 as http_ext_authz_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.ext_authz.v3 import ext_authz_pb2 as tcp_ext_authz_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as tcp_rbac_pb2
from envoy.type.matcher.v3 import path_pb2, string_pb2

from meltemi.envoy.anys import duration, uint32
from meltemi.envoy.metadata import metadata_matcher
from meltemi.envoy.routes import string_matcher, text_matcher
from meltemi.ir import authorization as ir
from meltemi.ir.route import StringMatch

HTTP_RBAC = "envoy.filters.http.rbac"
TCP_RBAC = "envoy.filters.network.rbac"
HTTP_EXT_AUTHZ = "envoy.filters.http.ext_authz"
TCP_EXT_AUTHZ = "envoy.filters.network.ext_authz"
_ACTIONS = {"ALLOW": rbac_pb2.RBAC.ALLOW, "DENY": rbac_pb2.RBAC.DENY, "LOG": rbac_pb2.RBAC.LOG}
# RBAC's own name for the policy that its shadow rules chose; the prefix comes before it.
_SHADOW_POLICY = "shadow_effective_policy_id"


def _cidr(text: str) -> Any:
    net = ip_network(text)
    return address_pb2.CidrRange(
        address_prefix=str(net.network_address), prefix_len=uint32(net.prefixlen)
    )


def _header(entry: ir.Header) -> Any:
    if entry.match.kind == "present":
        return route_components_pb2.HeaderMatcher(name=entry.name, present_match=True)
    return route_components_pb2.HeaderMatcher(
        name=entry.name, string_match=string_matcher(entry.match)
    )


def _path(entry: ir.Path) -> Any:
    return path_pb2.PathMatcher(path=text_matcher(entry.match))


def _from_request(entry: ir.Metadata) -> Any:
    return rbac_pb2.SourcedMetadata(
        metadata_matcher=metadata_matcher(
            entry.filter,
            entry.path,
            text_matcher(entry.match),
            text=entry.text,
            lists=entry.lists,
        ),
        metadata_source=rbac_pb2.DYNAMIC,
    )


def _principal_leaf(entry: ir.Leaf) -> Any:
    made = rbac_pb2.Principal
    match entry:
        case ir.PeerName():
            return made(authenticated=made.Authenticated(principal_name=text_matcher(entry.match)))
        case ir.Address(which="source"):
            return made(direct_remote_ip=_cidr(entry.cidr))
        case ir.Address(which="remote"):
            return made(remote_ip=_cidr(entry.cidr))
        case ir.Header():
            return made(header=_header(entry))
        case ir.Metadata():
            return made(sourced_metadata=_from_request(entry))
    raise TypeError(f"{type(entry).__name__} says nothing about the source")


def _permission_leaf(entry: ir.Leaf) -> Any:
    made = rbac_pb2.Permission
    match entry:
        case ir.Address(which="destination"):
            return made(destination_ip=_cidr(entry.cidr))
        case ir.DestinationPort():
            return made(destination_port=entry.port)
        case ir.ServerName():
            return made(requested_server_name=text_matcher(entry.match))
        case ir.Header():
            return made(header=_header(entry))
        case ir.Path():
            return made(url_path=_path(entry))
        case ir.Metadata():
            return made(sourced_metadata=_from_request(entry))
    raise TypeError(f"{type(entry).__name__} says nothing about the operation")


def build_principal(condition: ir.Condition) -> Any:
    """A condition on the source."""
    made = rbac_pb2.Principal
    match condition:
        case ir.All(inner=()):
            return made(any=True)
        case ir.AnyOf(inner=()):
            return made(not_id=made(any=True))
        case ir.All():
            return made(and_ids=made.Set(ids=[build_principal(i) for i in condition.inner]))
        case ir.AnyOf():
            return made(or_ids=made.Set(ids=[build_principal(i) for i in condition.inner]))
        case ir.Not():
            return made(not_id=build_principal(condition.inner))
        case _:
            return _principal_leaf(condition)


def build_permission(condition: ir.Condition) -> Any:
    """A condition on the operation."""
    made = rbac_pb2.Permission
    match condition:
        case ir.All(inner=()):
            return made(any=True)
        case ir.AnyOf(inner=()):
            return made(not_rule=made(any=True))
        case ir.All():
            return made(and_rules=made.Set(rules=[build_permission(i) for i in condition.inner]))
        case ir.AnyOf():
            return made(or_rules=made.Set(rules=[build_permission(i) for i in condition.inner]))
        case ir.Not():
            return made(not_rule=build_permission(condition.inner))
        case _:
            return _permission_leaf(condition)


def _rules(entry: ir.PolicySet | None) -> Any:
    if entry is None:
        return None
    made = rbac_pb2.RBAC(action=_ACTIONS[entry.action])
    for policy in entry.policies:
        made.policies[policy.name].CopyFrom(
            rbac_pb2.Policy(
                permissions=[build_permission(policy.permissions)],
                principals=[build_principal(policy.principals)],
            )
        )
    return made


def http_rbac(entry: ir.Rbac) -> tuple[str, Any]:
    """The HTTP filter."""
    return HTTP_RBAC, http_rbac_pb2.RBAC(
        rules=_rules(entry.rules),
        shadow_rules=_rules(entry.shadow),
        shadow_rules_stat_prefix=entry.shadow_prefix,
    )


def tcp_rbac(entry: ir.Rbac) -> tuple[str, Any]:
    """The network filter."""
    return TCP_RBAC, tcp_rbac_pb2.RBAC(
        rules=_rules(entry.rules),
        shadow_rules=_rules(entry.shadow),
        shadow_rules_stat_prefix=entry.shadow_prefix,
        stat_prefix="tcp.",
    )


def _switch(entry: ir.ExtAuthz, rbac: str) -> Any:
    """True when the shadow rules before chose one of the authorizer's policies."""
    wanted = string_pb2.StringMatcher(prefix=entry.policy_prefix)
    return metadata_matcher(rbac, (entry.shadow_prefix + _SHADOW_POLICY,), wanted, lists=False)


def _grpc(entry: ir.ExtAuthz) -> Any:
    return grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(
            cluster_name=entry.cluster, authority=entry.authority
        ),
        timeout=duration(entry.timeout_s),
    )


def _patterns(matches: tuple[StringMatch, ...]) -> Any:
    if not matches:
        return None
    return string_pb2.ListStringMatcher(patterns=[text_matcher(match) for match in matches])


def _http_service(entry: ir.ExtAuthz) -> Any:
    port = entry.cluster.split("|")[1]
    made = http_ext_authz_pb2.HttpService(
        server_uri=http_uri_pb2.HttpUri(
            uri=f"http://{entry.authority}:{port}",
            cluster=entry.cluster,
            timeout=duration(entry.timeout_s),
        ),
        path_prefix=entry.path_prefix,
        authorization_response=http_ext_authz_pb2.AuthorizationResponse(
            allowed_upstream_headers=_patterns(entry.upstream_headers),
            allowed_client_headers=_patterns(entry.deny_headers),
            allowed_client_headers_on_success=_patterns(entry.allow_headers),
        ),
    )
    for key, text in entry.extra_headers:
        made.authorization_request.headers_to_add.add(key=key, value=text)
    return made


def http_ext_authz(entry: ir.ExtAuthz) -> tuple[str, Any]:
    """The HTTP filter."""
    made = http_ext_authz_pb2.ExtAuthz(
        transport_api_version=config_source_pb2.V3,
        failure_mode_allow=entry.fail_open,
        clear_route_cache=entry.clear_route_cache,
        filter_enabled_metadata=_switch(entry, HTTP_RBAC),
        allowed_headers=_patterns(entry.request_headers),
    )
    made.status_on_error.code = entry.status_on_error
    if entry.body is not None:
        made.with_request_body.max_request_bytes = entry.body.max_bytes
        made.with_request_body.allow_partial_message = entry.body.allow_partial
        made.with_request_body.pack_as_bytes = entry.body.as_bytes
    if entry.grpc:
        made.grpc_service.CopyFrom(_grpc(entry))
    else:
        made.http_service.CopyFrom(_http_service(entry))
    return HTTP_EXT_AUTHZ, made


def tcp_ext_authz(entry: ir.ExtAuthz) -> tuple[str, Any]:
    """The network filter; only over gRPC."""
    return TCP_EXT_AUTHZ, tcp_ext_authz_pb2.ExtAuthz(
        stat_prefix="tcp.",
        grpc_service=_grpc(entry),
        failure_mode_allow=entry.fail_open,
        transport_api_version=config_source_pb2.V3,
        filter_enabled_metadata=_switch(entry, TCP_RBAC),
    )
