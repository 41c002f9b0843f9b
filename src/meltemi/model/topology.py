"""Gateway, ServiceEntry, WorkloadEntry, WorkloadGroup and Sidecar: where traffic enters, what it may reach.

In: nothing; these are types (networking.istio.io v1, v1beta1 and v1alpha3). Same promises as ``model.traffic``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, field

from meltemi.model.destination_rule import ConnectionPoolSettings
from meltemi.model.fields import Int32, PortNumber, Spec, UInt32
from meltemi.model.frozen import EMPTY_MAP
from meltemi.model.traffic import (
    Destination,
    LabelSelector,
    StringMap,
    Strings,
)


class WorkloadSelector(Spec, frozen=True):
    """Workloads of the object's namespace, by labels."""

    labels: StringMap = field(default_factory=lambda: EMPTY_MAP)


TLSVersion = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]


class TLSCertificate(Spec, frozen=True):
    """A certificate from files."""

    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""


class ServerTLSSettings(Spec, frozen=True):
    """TLS of a server.

    https_redirect: Answer HTTP with a redirect to HTTPS.
    credential_name: Secret (tls.crt, tls.key, and ca.crt for MUTUAL) in the gateway's namespace.
    """

    https_redirect: bool = False
    mode: Literal[
        "PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"
    ] = "PASSTHROUGH"
    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    ca_crl: str = ""
    credential_name: str = ""
    credential_names: Strings = ()
    ca_cert_credential_name: str = ""
    tls_certificates: tuple[TLSCertificate, ...] = ()
    subject_alt_names: Strings = ()
    verify_certificate_spki: Strings = ()
    verify_certificate_hash: Strings = ()
    min_protocol_version: TLSVersion = "TLS_AUTO"
    max_protocol_version: TLSVersion = "TLS_AUTO"
    cipher_suites: Strings = ()
    insecure_skip_verify: bool | None = None
    ecdh_curves: Strings = ()
    alpn_protocols: Strings = ()


class GatewayPort(Spec, frozen=True):
    """The port of a gateway's server.

    protocol: HTTP, HTTPS, GRPC, GRPC-WEB, HTTP2, MONGO, TCP or TLS.
    target_port: Deprecated.
    """

    REQUIRED: ClassVar = ("number", "protocol", "name")
    number: PortNumber = 0
    protocol: str = ""
    name: str = ""
    target_port: PortNumber = 0


class Server(Spec, frozen=True):
    """One listening port of a gateway.

    hosts: Names served, ``namespace/name`` to accept VirtualServices of one namespace only.
    """

    REQUIRED: ClassVar = ("port", "hosts")
    name: str = ""
    bind: str = ""
    port: GatewayPort | None = None
    hosts: Strings = ()
    tls: ServerTLSSettings | None = None
    default_endpoint: str = ""


class Gateway(Spec, frozen=True):
    """Ports that gateway proxies open.

    selector: Labels of the gateway pods.
    """

    servers: tuple[Server, ...] = ()
    selector: StringMap = field(default_factory=lambda: EMPTY_MAP)


class WorkloadEntry(Spec, frozen=True):
    """A workload outside Kubernetes: a VM or a bare process.

    address: IP, ``unix:///path`` or DNS name.
    ports: Port name of the service -> port of this workload.
    locality: ``region/zone/subzone``.
    """

    address: str = ""
    ports: Mapping[str, PortNumber] = field(default_factory=lambda: EMPTY_MAP)
    labels: StringMap = field(default_factory=lambda: EMPTY_MAP)
    network: str = ""
    locality: str = ""
    weight: UInt32 = 0
    service_account: str = ""


class ServicePort(Spec, frozen=True):
    """A port of a ServiceEntry."""

    REQUIRED: ClassVar = ("number", "name")
    number: PortNumber = 0
    protocol: str = ""
    name: str = ""
    target_port: PortNumber = 0


class ServiceEntry(Spec, frozen=True):
    """A service that the platform does not know.

    hosts: DNS names of the service.
    addresses: Virtual IPs or CIDRs.
    location: Whether its workloads are part of the mesh (mTLS).
    resolution: How endpoints are found.
    """

    REQUIRED: ClassVar = ("hosts",)
    ONE_OF: ClassVar = (("endpoints", "workload_selector"),)
    hosts: Strings = ()
    addresses: Strings = ()
    ports: tuple[ServicePort, ...] = ()
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    endpoints: tuple[WorkloadEntry, ...] = ()
    workload_selector: WorkloadSelector | None = None
    export_to: Strings = ()
    subject_alt_names: Strings = ()


class ObjectMeta(Spec, frozen=True):
    """Labels and annotations for the WorkloadEntries of a group."""

    labels: StringMap = field(default_factory=lambda: EMPTY_MAP)
    annotations: StringMap = field(default_factory=lambda: EMPTY_MAP)


class HTTPHeader(Spec, frozen=True):
    """A header of a probe's request."""

    name: str = ""
    value: str = ""


class HTTPHealthCheckConfig(Spec, frozen=True):
    """Healthy when an HTTP GET answers 200 to 399."""

    REQUIRED: ClassVar = ("port",)
    path: str = ""
    port: PortNumber = 0
    host: str = ""
    scheme: str = ""
    http_headers: tuple[HTTPHeader, ...] = ()


class TCPHealthCheckConfig(Spec, frozen=True):
    """Healthy when the port accepts a connection."""

    REQUIRED: ClassVar = ("port",)
    host: str = ""
    port: PortNumber = 0


class ExecHealthCheckConfig(Spec, frozen=True):
    """Healthy when the command exits 0."""

    REQUIRED: ClassVar = ("command",)
    command: Strings = ()


class GrpcHealthCheckConfig(Spec, frozen=True):
    """Healthy when the gRPC health service says SERVING."""

    port: PortNumber = 0
    service: str = ""


class ReadinessProbe(Spec, frozen=True):
    """How the agent finds out whether a workload is healthy."""

    ONE_OF: ClassVar = (("http_get", "tcp_socket", "exec", "grpc"),)
    initial_delay_seconds: Int32 = 0
    timeout_seconds: Int32 = 0
    period_seconds: Int32 = 0
    success_threshold: Int32 = 0
    failure_threshold: Int32 = 0
    http_get: HTTPHealthCheckConfig | None = None
    tcp_socket: TCPHealthCheckConfig | None = None
    exec: ExecHealthCheckConfig | None = None
    grpc: GrpcHealthCheckConfig | None = None


class WorkloadGroup(Spec, frozen=True):
    """A template for WorkloadEntries that register themselves."""

    REQUIRED: ClassVar = ("template",)
    metadata: ObjectMeta | None = None
    template: WorkloadEntry | None = None
    probe: ReadinessProbe | None = None


CaptureMode = Literal["DEFAULT", "IPTABLES", "NONE"]


class SidecarPort(Spec, frozen=True):
    """A port of a Sidecar's listener."""

    number: PortNumber = 0
    protocol: str = ""
    name: str = ""
    target_port: PortNumber = 0


class IstioIngressListener(Spec, frozen=True):
    """An inbound port of the workload.

    default_endpoint: ``127.0.0.1:port``, ``[::1]:port``, ``0.0.0.0:port`` or ``unix:///path``.
    """

    REQUIRED: ClassVar = ("port",)
    port: SidecarPort | None = None
    bind: str = ""
    capture_mode: CaptureMode = "DEFAULT"
    default_endpoint: str = ""
    tls: ServerTLSSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None


class IstioEgressListener(Spec, frozen=True):
    """What the workload may reach.

    hosts: ``namespace/name``; ``.`` is this namespace, ``~`` none, ``*`` all.
    """

    REQUIRED: ClassVar = ("hosts",)
    port: SidecarPort | None = None
    bind: str = ""
    capture_mode: CaptureMode = "DEFAULT"
    hosts: Strings = ()


class OutboundTrafficPolicy(Spec, frozen=True):
    """What happens to traffic for unknown destinations."""

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"] | None = None
    egress_proxy: Destination | None = None


class Sidecar(Spec, frozen=True):
    """Scope of the proxies of some workloads: what they accept and what they know of the mesh."""

    workload_selector: WorkloadSelector | None = None
    ingress: tuple[IstioIngressListener, ...] = ()
    egress: tuple[IstioEgressListener, ...] = ()
    inbound_connection_pool: ConnectionPoolSettings | None = None
    outbound_traffic_policy: OutboundTrafficPolicy | None = None


class ProxyImage(Spec, frozen=True):
    """Variant of the proxy's image."""

    image_type: str = ""


class ProxyConfigSpec(Spec, frozen=True):
    """The ProxyConfig kind: settings that workloads take when they start.

    concurrency: Worker threads; 0 uses all cores.
    """

    selector: LabelSelector | None = None
    concurrency: Annotated[int, Meta(ge=0, le=2147483647)] | None = None
    environment_variables: StringMap = field(default_factory=lambda: EMPTY_MAP)
    image: ProxyImage | None = None
