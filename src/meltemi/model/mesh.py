"""MeshConfig, the mesh's ProxyConfig and MeshNetworks (ConfigMap ``istio``).

In: nothing; these are types. Out: frozen structs; the defaults that a mesh starts from are the field defaults here,
so ``MeshConfig()`` is the default mesh configuration. ``config.mesh`` reads the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from meltemi.model.destination_rule import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    LocalityLbSetting,
    OutlierDetection,
    TcpKeepalive,
    ZoneAwareLbSetting,
)
from meltemi.model.fields import Duration, FreeForm, Int32, PortNumber, Spec, UInt32
from meltemi.model.frozen import EMPTY_MAP, FrozenMap
from meltemi.model.names import ROOT_NAMESPACE
from meltemi.model.providers import (
    EnvoyFileAccessLog,
    MeshExtensionProvider,
    PrometheusProvider,
    StackdriverProvider,
)
from meltemi.model.topology import OutboundTrafficPolicy, ProxyImage
from meltemi.model.traffic import (
    HTTPRetry,
    StringMap,
    Strings,
)

# --- ProxyConfig -------------------------------------------------------------------------------------


class CustomTag(Spec, frozen=True):
    """A span tag: a literal, an environment variable, a request header or a format string."""

    ONE_OF: ClassVar = (("literal", "environment", "header", "formatter"),)
    literal: TagLiteral | None = None
    environment: TagSource | None = None
    header: TagSource | None = None
    formatter: TagLiteral | None = None


class TagLiteral(Spec, frozen=True):
    """A fixed value (or an access log format string)."""

    value: str = ""


class TagSource(Spec, frozen=True):
    """A named source with a default."""

    name: str = ""
    default_value: str = ""


class TracingAddress(Spec, frozen=True):
    """Address of a trace collector."""

    address: str = ""
    access_token: str = ""


class Tracing(Spec, frozen=True):
    """Tracing as set in the proxy's own configuration; Telemetry is the newer way."""

    zipkin: TracingAddress | None = None
    lightstep: TracingAddress | None = None
    datadog: TracingAddress | None = None
    stackdriver: FreeForm | None = None
    open_census_agent: FreeForm | None = None
    custom_tags: Mapping[str, CustomTag] = field(default_factory=lambda: EMPTY_MAP)
    max_path_tag_length: UInt32 = 0
    sampling: Annotated[float, Meta(ge=0, le=100)] = 0.0
    tls_settings: ClientTLSSettings | None = None
    enable_istio_tags: bool | None = None


class RemoteService(Spec, frozen=True):
    """Address of an Envoy service (access logs, metrics)."""

    address: str = ""
    tls_settings: ClientTLSSettings | None = None
    tcp_keepalive: TcpKeepalive | None = None


class TopologyProxyProtocol(Spec, frozen=True):
    """Accept the PROXY protocol on gateways."""


ForwardClientCert = Literal[
    "UNDEFINED",
    "SANITIZE",
    "FORWARD_ONLY",
    "APPEND_FORWARD",
    "SANITIZE_SET",
    "ALWAYS_FORWARD_ONLY",
]


class Topology(Spec, frozen=True):
    """What stands in front of gateways.

    num_trusted_proxies: Proxies whose X-Forwarded-For entries are trusted.
    """

    num_trusted_proxies: UInt32 = 0
    forward_client_cert_details: ForwardClientCert = "UNDEFINED"
    proxy_protocol: TopologyProxyProtocol | None = None


class ProxyStatsMatcher(Spec, frozen=True):
    """Further statistics that proxies keep."""

    inclusion_prefixes: Strings = ()
    inclusion_suffixes: Strings = ()
    inclusion_regexps: Strings = ()


class PrivateKeyProvider(Spec, frozen=True):
    """Hardware that holds private keys."""

    ONE_OF: ClassVar = (("cryptomb", "qat"),)
    cryptomb: FreeForm | None = None
    qat: FreeForm | None = None


class DisabledHeader(Spec, frozen=True):
    """A header that can be turned off."""

    disabled: bool | None = None


class ServerHeader(Spec, frozen=True):
    """The header ``server``: turned off, or with a value of one's own."""

    disabled: bool | None = None
    value: str = ""


class SetCurrentClientCertDetails(Spec, frozen=True):
    """Parts of the client certificate to forward."""

    subject: bool | None = None
    cert: bool | None = None
    chain: bool | None = None
    dns: bool | None = None
    uri: bool | None = None


class MetadataExchangeHeaders(Spec, frozen=True):
    """When peer metadata headers are sent."""

    mode: Literal["UNDEFINED", "IN_MESH"] = "UNDEFINED"


class EnabledHeader(Spec, frozen=True):
    """A header that can be turned on."""

    enabled: bool | None = None


class ProxyHeaders(Spec, frozen=True):
    """Headers that the proxy adds by itself."""

    forwarded_client_cert: ForwardClientCert = "UNDEFINED"
    set_current_client_cert_details: SetCurrentClientCertDetails | None = None
    request_id: DisabledHeader | None = None
    server: ServerHeader | None = None
    attempt_count: DisabledHeader | None = None
    envoy_debug_headers: DisabledHeader | None = None
    metadata_exchange_headers: MetadataExchangeHeaders | None = None
    preserve_http1_header_case: bool | None = None
    x_forwarded_host: EnabledHeader | None = None
    x_forwarded_port: EnabledHeader | None = None


# HTTP/2's own bounds (RFC 9113, 6.5.2), which the proxy insists on.
_Streams = Annotated[int, Meta(ge=1, le=2147483647)]
_Window = Annotated[int, Meta(ge=65535, le=2147483647)]


class ConnectionSettings(Spec, frozen=True):
    """Buffers, timeouts and limits of the connections that a proxy accepts.

    profile: EDGE gives gateways the settings that Envoy recommends at an edge; fields that are set win over it.
    cluster_per_connection_buffer_limit_bytes: Of the connections that the proxy makes.
    global_downstream_connection_limit: Of the whole proxy, from its start.
    """

    profile: Literal["UNSPECIFIED", "SIDECAR", "EDGE"] = "UNSPECIFIED"
    listener_per_connection_buffer_limit_bytes: UInt32 | None = None
    cluster_per_connection_buffer_limit_bytes: UInt32 | None = None
    http_idle_timeout: Duration | None = None
    http_max_connection_duration: Duration | None = None
    http_max_stream_duration: Duration | None = None
    http_stream_idle_timeout: Duration | None = None
    http_request_timeout: Duration | None = None
    http_request_headers_timeout: Duration | None = None
    http_drain_timeout: Duration | None = None
    http_max_concurrent_streams: _Streams | None = None
    http2_initial_stream_window_size: _Window | None = None
    http2_initial_connection_window_size: _Window | None = None
    http_headers_with_underscores_action: Literal[
        "HEADERS_WITH_UNDERSCORES_UNSPECIFIED",
        "HEADERS_WITH_UNDERSCORES_ALLOW",
        "HEADERS_WITH_UNDERSCORES_REJECT_REQUEST",
        "HEADERS_WITH_UNDERSCORES_DROP_HEADER",
    ] = "HEADERS_WITH_UNDERSCORES_UNSPECIFIED"
    http_merge_slashes: bool | None = None
    http_path_with_escaped_slashes_action: Literal[
        "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED",
        "KEEP_UNCHANGED",
        "REJECT_REQUEST",
        "UNESCAPE_AND_REDIRECT",
        "UNESCAPE_AND_FORWARD",
    ] = "PATH_WITH_ESCAPED_SLASHES_UNSPECIFIED"
    global_downstream_connection_limit: UInt32 | None = None


class ProxyConfig(Spec, frozen=True):
    """Settings of every proxy (``defaultConfig``, annotation ``proxy.istio.io/config``)."""

    config_path: str = "./etc/istio/proxy"
    binary_path: str = "/usr/local/bin/envoy"
    service_cluster: str = "istio-proxy"
    tracing_service_name: Literal[
        "APP_LABEL_AND_NAMESPACE", "CANONICAL_NAME_ONLY", "CANONICAL_NAME_AND_NAMESPACE"
    ] = "APP_LABEL_AND_NAMESPACE"
    drain_duration: Duration = 45.0
    termination_drain_duration: Duration = 5.0
    discovery_address: str = "istiod.istio-system.svc:15012"
    proxy_admin_port: PortNumber = 15000
    control_plane_auth_policy: Literal["NONE", "MUTUAL_TLS"] = "MUTUAL_TLS"
    custom_config_file: str = ""
    stat_name_length: Int32 = 189
    concurrency: Int32 | None = None
    proxy_bootstrap_template_path: str = ""
    interception_mode: Literal["REDIRECT", "TPROXY", "NONE"] = "REDIRECT"
    tracing: Tracing | None = None
    zipkin_address: str = ""
    envoy_access_log_service: RemoteService | None = None
    envoy_metrics_service: RemoteService | None = None
    envoy_metrics_service_address: str = ""
    proxy_metadata: StringMap = field(default_factory=lambda: EMPTY_MAP)
    runtime_values: StringMap = field(default_factory=lambda: EMPTY_MAP)
    status_port: PortNumber = 15020
    extra_stat_tags: Strings = ()
    gateway_topology: Topology | None = None
    mesh_id: str = ""
    readiness_probe: FreeForm | None = None
    proxy_stats_matcher: ProxyStatsMatcher | None = None
    hold_application_until_proxy_starts: bool | None = None
    ca_certificates_pem: Strings = ()
    image: ProxyImage | None = None
    private_key_provider: PrivateKeyProvider | None = None
    proxy_headers: ProxyHeaders | None = None
    file_flush_interval: Duration | None = None
    file_flush_min_size_kb: UInt32 | None = None
    stats_compression: bool | None = None
    connection_settings: ConnectionSettings | None = None


# --- MeshConfig --------------------------------------------------------------------------------------


class InboundTrafficPolicy(Spec, frozen=True):
    """Where inbound traffic goes: to the address it came for, or to localhost."""

    mode: Literal["PASSTHROUGH", "LOCALHOST"] = "PASSTHROUGH"


class ConfigSource(Spec, frozen=True):
    """Another source of configuration objects: ``fs:///path``, ``xds://host``, ``k8s://``."""

    address: str = ""
    tls_settings: ClientTLSSettings | None = None
    subscribed_resources: tuple[str, ...] = ()


class CertificateData(Spec, frozen=True):
    """A further root certificate."""

    ONE_OF: ClassVar = (("pem", "spiffe_bundle_url"),)
    pem: str | None = None
    spiffe_bundle_url: str | None = None
    cert_signers: Strings = ()
    trust_domains: Strings = ()


class Certificate(Spec, frozen=True):
    """A certificate for a control-plane component. Deprecated."""

    secret_name: str = ""
    dns_names: Strings = ()


class ServiceSettingsFlags(Spec, frozen=True):
    """Settings of some services."""

    cluster_local: bool = False


class ServiceSettings(Spec, frozen=True):
    """Settings for services by host."""

    settings: ServiceSettingsFlags | None = None
    hosts: Strings = ()


class LabelSelectorRequirement(Spec, frozen=True):
    """One condition on a label."""

    key: str = ""
    operator: str = ""
    values: Strings = ()


class K8sLabelSelector(Spec, frozen=True):
    """Kubernetes' label selector."""

    match_labels: StringMap = field(default_factory=lambda: EMPTY_MAP)
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()


class ServiceScopeConfig(Spec, frozen=True):
    """Whether services are local to a cluster or global (ambient)."""

    services_selector: K8sLabelSelector | None = None
    namespaces_selector: K8sLabelSelector | None = None
    namespace_selector: K8sLabelSelector | None = None
    scope: Literal["LOCAL", "GLOBAL"] = "LOCAL"


class CA(Spec, frozen=True):
    """An external certificate authority."""

    address: str = ""
    tls_settings: ClientTLSSettings | None = None
    request_timeout: Duration | None = None
    istiod_side: bool = False


class DefaultProviders(Spec, frozen=True):
    """Providers used where no Telemetry names any."""

    tracing: Strings = ()
    metrics: Strings = ()
    access_logging: Strings = ()


class ProxyPathNormalization(Spec, frozen=True):
    """How paths are normalized before policies look at them."""

    normalization: Literal[
        "DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"
    ] = "DEFAULT"


class TLSConfig(Spec, frozen=True):
    """Minimum TLS version, curves and ciphers."""

    min_protocol_version: Literal["TLS_AUTO", "TLSV1_2", "TLSV1_3"] = "TLS_AUTO"
    ecdh_curves: Strings = ()
    cipher_suites: Strings = ()


class DefaultTrafficPolicy(Spec, frozen=True):
    """Connection settings where no DestinationRule gives any."""

    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None


def _default_providers() -> tuple[MeshExtensionProvider, ...]:
    return (
        MeshExtensionProvider(name="prometheus", prometheus=PrometheusProvider()),
        MeshExtensionProvider(name="stackdriver", stackdriver=StackdriverProvider()),
        MeshExtensionProvider(
            name="envoy", envoy_file_access_log=EnvoyFileAccessLog(path="/dev/stdout")
        ),
    )


class MeshOutboundTrafficPolicy(OutboundTrafficPolicy, frozen=True):
    """What happens to traffic for unknown destinations. ``tls``: how hosts are spoken to that are resolved by their name."""

    tls: ClientTLSSettings | None = None


class MeshConfig(Spec, frozen=True):
    """Mesh-wide settings; the defaults are those of a new mesh.

    access_log_file: ``/dev/stdout`` turns access logs on.
    discovery_selectors: Namespaces that istiod looks at; all when empty.
    extension_providers: What Telemetry and AuthorizationPolicy name.
    """

    proxy_listen_port: PortNumber = 15001
    proxy_inbound_listen_port: PortNumber = 15006
    proxy_http_port: PortNumber = 0
    connect_timeout: Duration = 10.0
    hbone_idle_timeout: Duration | None = None
    protocol_detection_timeout: Duration = 0.0
    tcp_keepalive: TcpKeepalive | None = None
    ingress_class: str = "istio"
    ingress_service: str = "istio-ingressgateway"
    ingress_controller_mode: Literal["UNSPECIFIED", "OFF", "DEFAULT", "STRICT"] = "STRICT"
    ingress_selector: str = "ingressgateway"
    enable_tracing: bool = True
    access_log_file: str = ""
    access_log_format: str = ""
    access_log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    enable_envoy_access_log_service: bool = False
    disable_envoy_listener_log: bool = False
    default_config: ProxyConfig = ProxyConfig()
    outbound_traffic_policy: MeshOutboundTrafficPolicy = MeshOutboundTrafficPolicy(mode="ALLOW_ANY")
    inbound_traffic_policy: InboundTrafficPolicy = InboundTrafficPolicy()
    config_sources: tuple[ConfigSource, ...] = ()
    enable_auto_mtls: bool = True
    trust_domain: str = "cluster.local"
    trust_domain_aliases: Strings = ()
    ca_certificates: tuple[CertificateData, ...] = ()
    default_service_export_to: Strings = ("*",)
    default_virtual_service_export_to: Strings = ("*",)
    default_destination_rule_export_to: Strings = ("*",)
    root_namespace: str = ROOT_NAMESPACE
    locality_lb_setting: LocalityLbSetting = LocalityLbSetting(enabled=True)
    zone_aware_lb_setting: ZoneAwareLbSetting | None = None
    dns_refresh_rate: Duration = 60.0
    h2_upgrade_policy: Literal["DO_NOT_UPGRADE", "UPGRADE"] = "DO_NOT_UPGRADE"
    inbound_cluster_stat_name: str = ""
    outbound_cluster_stat_name: str = ""
    certificates: tuple[Certificate, ...] = ()
    service_settings: tuple[ServiceSettings, ...] = ()
    service_scope_configs: tuple[ServiceScopeConfig, ...] = ()
    enable_prometheus_merge: bool = True
    verify_certificate_at_client: bool | None = None
    ca: CA | None = None
    extension_providers: tuple[MeshExtensionProvider, ...] = field(
        default_factory=_default_providers
    )
    default_providers: DefaultProviders | None = None
    discovery_selectors: tuple[K8sLabelSelector, ...] = ()
    path_normalization: ProxyPathNormalization = ProxyPathNormalization()
    default_http_retry_policy: HTTPRetry | None = None
    mesh_mtls: TLSConfig | None = field(default=None, name="meshMTLS")
    tls_defaults: TLSConfig | None = None
    default_traffic_policy: DefaultTrafficPolicy | None = None
    service_entry_visibility: FreeForm | None = None

    @property
    def trust_domains(self) -> Strings:
        """The mesh's own trust domain, then the aliases that count as it."""
        return tuple(dict.fromkeys((self.trust_domain, *self.trust_domain_aliases)))


DEFAULT_MESH_CONFIG = MeshConfig()


# --- MeshNetworks ------------------------------------------------------------------------------------


class NetworkEndpoints(Spec, frozen=True):
    """Endpoints that belong to a network: by address range or by registry (cluster)."""

    ONE_OF: ClassVar = (("from_cidr", "from_registry"),)
    from_cidr: str | None = None
    from_registry: str | None = None


class IstioNetworkGateway(Spec, frozen=True):
    """How a network is entered from others."""

    ONE_OF: ClassVar = (("registry_service_name", "address"),)
    registry_service_name: str | None = None
    address: str | None = None
    port: PortNumber = 0
    locality: str = ""


class Network(Spec, frozen=True):
    """Endpoints and gateways of one network."""

    endpoints: tuple[NetworkEndpoints, ...] = ()
    gateways: tuple[IstioNetworkGateway, ...] = ()


class MeshNetworks(Spec, frozen=True):
    """Networks by name."""

    networks: Mapping[str, Network] = field(default_factory=lambda: FrozenMap())
