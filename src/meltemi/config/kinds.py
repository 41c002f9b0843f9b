"""Every kind that the mesh defines: its names, versions, types and rules.

``KINDS`` is the one table that decoding, validation, CRDs, watching and the command line read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from meltemi.config import validate_policies as policies
from meltemi.config import validate_topology as topo
from meltemi.config.reader import Report
from meltemi.config.validate_destination_rule import validate_destination_rule
from meltemi.config.validate_envoy_filter import validate_envoy_filter
from meltemi.config.validate_install import validate_istio_operator
from meltemi.config.validate_virtual_service import validate_virtual_service
from meltemi.model.config import Config
from meltemi.model.destination_rule import DestinationRule
from meltemi.model.extensions import EnvoyFilter, TrafficExtension, WasmPlugin
from meltemi.model.fields import Spec
from meltemi.model.install import IstioOperator
from meltemi.model.security import AuthorizationPolicy, PeerAuthentication, RequestAuthentication
from meltemi.model.telemetry import Telemetry
from meltemi.model.topology import (
    Gateway,
    ProxyConfigSpec,
    ServiceEntry,
    Sidecar,
    WorkloadEntry,
    WorkloadGroup,
)
from meltemi.model.traffic import VirtualService

NETWORKING = "networking.istio.io"
SECURITY = "security.istio.io"
TELEMETRY = "telemetry.istio.io"
EXTENSIONS = "extensions.istio.io"
INSTALL = "install.istio.io"


@dataclass(frozen=True, slots=True)
class KindInfo:
    """One kind. ``versions`` lists all served ones; ``storage`` is what the API server stores and istiod watches.

    ``columns`` are kubectl's: (name, JSON path, type, description).
    """

    kind: str
    group: str
    plural: str
    singular: str
    versions: tuple[str, ...]
    storage: str
    spec: type[Spec]
    validate: Callable[[Config[Any], Report], None]
    short_names: tuple[str, ...] = ()
    scope: str = "Namespaced"
    columns: tuple[tuple[str, str, str, str], ...] = ()

    @property
    def api_version(self) -> str:
        """``group/version`` of the storage version."""
        return f"{self.group}/{self.storage}"


_V1 = ("v1", "v1beta1", "v1alpha3")


def _column(name: str, path: str, text: str, kind: str = "string") -> tuple[str, str, str, str]:
    return (name, path, kind, text)


_ALL = (
    KindInfo(
        "VirtualService", NETWORKING, "virtualservices", "virtualservice", _V1, "v1",
        VirtualService, validate_virtual_service, ("vs",),
        columns=(
            _column("Gateways", ".spec.gateways", "Gateways that the routes apply to"),
            _column("Hosts", ".spec.hosts", "Hosts that are routed"),
        ),
    ),
    KindInfo(
        "DestinationRule", NETWORKING, "destinationrules", "destinationrule", _V1, "v1",
        DestinationRule, validate_destination_rule, ("dr",),
        columns=(_column("Host", ".spec.host", "Service that the rule is for"),),
    ),
    KindInfo(
        "Gateway", NETWORKING, "gateways", "gateway", _V1, "v1",
        Gateway, topo.validate_gateway, ("gw",),
    ),
    KindInfo(
        "ServiceEntry", NETWORKING, "serviceentries", "serviceentry", _V1, "v1",
        ServiceEntry, topo.validate_service_entry, ("se",),
        columns=(
            _column("Hosts", ".spec.hosts", "Hosts of the service"),
            _column("Location", ".spec.location", "Inside or outside the mesh"),
            _column("Resolution", ".spec.resolution", "How endpoints are found"),
        ),
    ),
    KindInfo(
        "WorkloadEntry", NETWORKING, "workloadentries", "workloadentry", _V1, "v1",
        WorkloadEntry, topo.validate_workload_entry, ("we",),
        columns=(_column("Address", ".spec.address", "Address of the workload"),),
    ),
    KindInfo(
        "WorkloadGroup", NETWORKING, "workloadgroups", "workloadgroup", _V1, "v1",
        WorkloadGroup, topo.validate_workload_group, ("wg",),
    ),
    KindInfo(
        "Sidecar", NETWORKING, "sidecars", "sidecar", _V1, "v1",
        Sidecar, topo.validate_sidecar,
    ),
    KindInfo(
        "EnvoyFilter", NETWORKING, "envoyfilters", "envoyfilter", ("v1alpha3",), "v1alpha3",
        EnvoyFilter, validate_envoy_filter,
    ),
    KindInfo(
        "ProxyConfig", NETWORKING, "proxyconfigs", "proxyconfig", ("v1beta1",), "v1beta1",
        ProxyConfigSpec, topo.validate_proxy_config,
    ),
    KindInfo(
        "AuthorizationPolicy", SECURITY, "authorizationpolicies", "authorizationpolicy",
        ("v1", "v1beta1"), "v1",
        AuthorizationPolicy, policies.validate_authorization_policy, ("ap",),
        columns=(_column("Action", ".spec.action", "What the policy does"),),
    ),
    KindInfo(
        "RequestAuthentication", SECURITY, "requestauthentications", "requestauthentication",
        ("v1", "v1beta1"), "v1",
        RequestAuthentication, policies.validate_request_authentication, ("ra",),
    ),
    KindInfo(
        "PeerAuthentication", SECURITY, "peerauthentications", "peerauthentication",
        ("v1", "v1beta1"), "v1",
        PeerAuthentication, policies.validate_peer_authentication, ("pa",),
        columns=(_column("Mode", ".spec.mtls.mode", "mTLS mode of the workloads"),),
    ),
    KindInfo(
        "Telemetry", TELEMETRY, "telemetries", "telemetry", ("v1", "v1alpha1"), "v1alpha1",
        Telemetry, policies.validate_telemetry, ("telemetry",),
    ),
    KindInfo(
        "WasmPlugin", EXTENSIONS, "wasmplugins", "wasmplugin", ("v1alpha1",), "v1alpha1",
        WasmPlugin, policies.validate_wasm_plugin,
    ),
    KindInfo(
        "TrafficExtension", EXTENSIONS, "trafficextensions", "trafficextension", ("v1alpha1",),
        "v1alpha1", TrafficExtension, policies.validate_traffic_extension,
    ),
    KindInfo(
        "IstioOperator", INSTALL, "istiooperators", "istiooperator", ("v1alpha1",), "v1alpha1",
        IstioOperator, validate_istio_operator, ("iop", "io"),
        columns=(
            _column("Revision", ".spec.revision", "Name of the control plane"),
            _column("Status", ".status.status", "State of the installation"),
        ),
    ),
)  # fmt: skip

KINDS: Mapping[str, KindInfo] = MappingProxyType({info.kind: info for info in _ALL})
GROUPS = frozenset(info.group for info in _ALL)
