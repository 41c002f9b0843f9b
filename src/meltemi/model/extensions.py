"""EnvoyFilter, WasmPlugin and TrafficExtension: changes to the proxies themselves.

In: nothing; these are types (networking.istio.io/v1alpha3 and extensions.istio.io/v1alpha1). Same promises as
``model.traffic``. ``EnvoyPatch.value`` and ``plugin_config`` are free-form: deeply frozen JSON.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from msgspec import field

from meltemi.model.fields import FreeForm, Int32, PortNumber, Spec, UInt32
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.security import PolicyTargetReference
from meltemi.model.topology import WorkloadSelector
from meltemi.model.traffic import LabelSelector, StringMap

ApplyTo = Literal[
    "INVALID",
    "LISTENER",
    "FILTER_CHAIN",
    "NETWORK_FILTER",
    "HTTP_FILTER",
    "ROUTE_CONFIGURATION",
    "VIRTUAL_HOST",
    "HTTP_ROUTE",
    "CLUSTER",
    "EXTENSION_CONFIG",
    "BOOTSTRAP",
    "LISTENER_FILTER",
]


class ProxyMatch(Spec, frozen=True):
    """Proxies by version (regex) and node metadata."""

    proxy_version: str = ""
    metadata: StringMap = field(default_factory=lambda: EMPTY_MAP)


class SubFilterMatch(Spec, frozen=True):
    """A filter inside the HTTP connection manager."""

    name: str = ""


class FilterMatch(Spec, frozen=True):
    """A network filter and, in it, an HTTP filter."""

    name: str = ""
    sub_filter: SubFilterMatch | None = None


class FilterChainMatch(Spec, frozen=True):
    """A filter chain of a listener.

    transport_socket: Name of the socket that handles the bytes, as ``envoy.transport_sockets.tls``.
    """

    name: str = ""
    sni: str = ""
    transport_protocol: str = ""
    application_protocols: str = ""
    filter: FilterMatch | None = None
    destination_port: UInt32 = 0
    transport_socket: str = ""


class ListenerMatch(Spec, frozen=True):
    """A listener and parts of it."""

    port_number: PortNumber = 0
    port_name: str = ""
    filter_chain: FilterChainMatch | None = None
    listener_filter: str = ""
    name: str = ""


class RouteMatch(Spec, frozen=True):
    """A route of a virtual host."""

    name: str = ""
    action: Literal["ANY", "ROUTE", "REDIRECT", "DIRECT_RESPONSE"] = "ANY"


class VirtualHostMatch(Spec, frozen=True):
    """A virtual host of a route configuration."""

    name: str = ""
    domain_name: str = ""
    route: RouteMatch | None = None


class RouteConfigurationMatch(Spec, frozen=True):
    """A route configuration and parts of it."""

    port_number: PortNumber = 0
    port_name: str = ""
    gateway: str = ""
    vhost: VirtualHostMatch | None = None
    name: str = ""


class ClusterMatch(Spec, frozen=True):
    """A cluster."""

    port_number: PortNumber = 0
    service: str = ""
    subset: str = ""
    name: str = ""


class WaypointMatch(Spec, frozen=True):
    """A part of a waypoint."""

    port_number: PortNumber = 0
    filter: FilterMatch | None = None
    route: RouteMatch | None = None


class EnvoyConfigObjectMatch(Spec, frozen=True):
    """Where a patch is applied."""

    ONE_OF: ClassVar = (("listener", "route_configuration", "cluster", "waypoint"),)
    context: Literal["ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "WAYPOINT"] = "ANY"
    proxy: ProxyMatch | None = None
    listener: ListenerMatch | None = None
    route_configuration: RouteConfigurationMatch | None = None
    cluster: ClusterMatch | None = None
    waypoint: WaypointMatch | None = None


class EnvoyPatch(Spec, frozen=True):
    """What is changed.

    value: Envoy configuration as JSON.
    """

    operation: Literal[
        "INVALID",
        "MERGE",
        "ADD",
        "REMOVE",
        "INSERT_BEFORE",
        "INSERT_AFTER",
        "INSERT_FIRST",
        "REPLACE",
        "MERGE_AND_REPLACE_LIST",
    ] = "INVALID"
    value: FreeForm | None = None
    filter_class: Literal["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED"


class EnvoyConfigObjectPatch(Spec, frozen=True):
    """One patch."""

    apply_to: ApplyTo = "INVALID"
    match: EnvoyConfigObjectMatch | None = None
    patch: EnvoyPatch | None = None


class EnvoyFilter(Spec, frozen=True):
    """Patches on generated Envoy configuration.

    priority: Lower ones are applied first; the default is 0.
    """

    ONE_OF: ClassVar = (("workload_selector", "target_refs"),)
    workload_selector: WorkloadSelector | None = None
    target_refs: tuple[PolicyTargetReference, ...] = ()
    config_patches: tuple[EnvoyConfigObjectPatch, ...] = ()
    priority: Int32 = 0


PluginPhase = Literal["UNSPECIFIED_PHASE", "AUTHN", "AUTHZ", "STATS"]
ExtensionPhase = Literal["UNSPECIFIED", "AUTHN", "AUTHZ", "STATS"]
PullPolicy = Literal["UNSPECIFIED_POLICY", "IfNotPresent", "Always"]
FailStrategy = Literal["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"]
PluginType = Literal["UNSPECIFIED_PLUGIN_TYPE", "HTTP", "NETWORK"]


class EnvVar(Spec, frozen=True):
    """An environment variable of the Wasm VM."""

    REQUIRED: ClassVar = ("name",)
    name: str = ""
    value_from: Literal["INLINE", "HOST"] = "INLINE"
    value: str = ""


class VmConfig(Spec, frozen=True):
    """The Wasm VM."""

    env: tuple[EnvVar, ...] = ()


class TrafficPort(Spec, frozen=True):
    """A port to match."""

    REQUIRED: ClassVar = ("number",)
    number: PortNumber = 0


class TrafficSelector(Spec, frozen=True):
    """Traffic by direction and port."""

    mode: Literal["UNDEFINED", "CLIENT", "SERVER", "CLIENT_AND_SERVER"] = "UNDEFINED"
    ports: tuple[TrafficPort, ...] = ()


class WasmPlugin(Spec, frozen=True):
    """A Wasm filter.

    url: ``file://``, ``http(s)://`` or ``oci://``.
    """

    REQUIRED: ClassVar = ("url",)
    ONE_OF: ClassVar = (("selector", "target_ref", "target_refs"),)
    selector: LabelSelector | None = None
    target_ref: PolicyTargetReference | None = None
    target_refs: tuple[PolicyTargetReference, ...] = ()
    url: str = ""
    sha256: str = ""
    image_pull_policy: PullPolicy = "UNSPECIFIED_POLICY"
    image_pull_secret: str = ""
    verification_key: str = ""
    plugin_config: FreeForm | None = None
    plugin_name: str = ""
    phase: PluginPhase = "UNSPECIFIED_PHASE"
    priority: Int32 | None = None
    fail_strategy: FailStrategy = "FAIL_CLOSE"
    vm_config: VmConfig | None = None
    match: tuple[TrafficSelector, ...] = ()
    type: PluginType = "UNSPECIFIED_PLUGIN_TYPE"


class WasmConfig(Spec, frozen=True):
    """The Wasm filter of a TrafficExtension."""

    REQUIRED: ClassVar = ("url",)
    url: str = ""
    sha256: str = ""
    image_pull_policy: PullPolicy = "UNSPECIFIED_POLICY"
    image_pull_secret: str = ""
    verification_key: str = ""
    plugin_config: FreeForm | None = None
    plugin_name: str = ""
    fail_strategy: FailStrategy = "FAIL_CLOSE"
    vm_config: VmConfig | None = None
    type: PluginType = "UNSPECIFIED_PLUGIN_TYPE"


class LuaConfig(Spec, frozen=True):
    """The Lua filter of a TrafficExtension."""

    REQUIRED: ClassVar = ("inline_code",)
    inline_code: str = ""


class TrafficExtension(Spec, frozen=True):
    """A Wasm or Lua filter for some workloads."""

    ONE_OF: ClassVar = (("selector", "target_refs"), ("wasm", "lua"))
    selector: LabelSelector | None = None
    target_refs: tuple[PolicyTargetReference, ...] = ()
    phase: ExtensionPhase = "UNSPECIFIED"
    priority: Int32 | None = None
    match: tuple[TrafficSelector, ...] = ()
    wasm: WasmConfig | None = None
    lua: LuaConfig | None = None
