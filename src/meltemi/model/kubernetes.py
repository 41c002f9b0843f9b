"""The parts of Kubernetes objects that the mesh reads.

In: JSON bytes of lists and watches. Out: frozen structs; unknown fields are skipped by the decoder, which is what
makes watching cheap. ``decode_*`` raise only ``msgspec.MsgspecError`` (``DecodeError``, ``ValidationError``): these objects
come from an API server, not from a user. Timestamps stay strings here (RFC 3339); ``registry`` parses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from meltemi.model.frozen import EMPTY_MAP, FrozenMap

ObjT = TypeVar("ObjT")
Source = bytes | str | msgspec.Raw


class K8s(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Parent of all structs here."""


class OwnerReference(K8s, frozen=True):
    """Who made the object."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class ObjectMeta(K8s, frozen=True):
    """Object metadata."""

    name: str = ""
    namespace: str = ""
    generate_name: str = ""
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    generation: int = 0
    resource_version: str = ""
    uid: str = ""
    owner_references: tuple[OwnerReference, ...] | None = None


class ContainerPort(K8s, frozen=True):
    """A declared port."""

    name: str = ""
    container_port: int = 0
    protocol: str = "TCP"


class SecurityContext(K8s, frozen=True):
    """Whom a container, or a whole pod, runs as."""

    run_as_user: int | None = None


class Container(K8s, frozen=True):
    """A container: its name, its ports, and what the analyzers ask for."""

    name: str = ""
    image: str = ""
    ports: tuple[ContainerPort, ...] | None = None
    security_context: SecurityContext | None = None


class PodSpec(K8s, frozen=True):
    """What the pod runs."""

    containers: tuple[Container, ...] | None = None
    init_containers: tuple[Container, ...] | None = None
    service_account_name: str = ""
    node_name: str = ""
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    security_context: SecurityContext | None = None


class PodIP(K8s, frozen=True):
    """One address of a pod."""

    ip: str = ""


class PodCondition(K8s, frozen=True):
    """One condition."""

    type: str = ""
    status: str = ""


class PodStatus(K8s, frozen=True):
    """Where and how the pod runs."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    pod_ips: tuple[PodIP, ...] | None = msgspec.field(default=None, name="podIPs")
    host_ip: str = msgspec.field(default="", name="hostIP")
    conditions: tuple[PodCondition, ...] | None = None


class Pod(K8s, frozen=True):
    """A pod."""

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePort(K8s, frozen=True):
    """A port of a Service."""

    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None
    port: int = 0
    target_port: int | str | None = None
    node_port: int = 0


class ClientIPConfig(K8s, frozen=True):
    """Session affinity time-out."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(K8s, frozen=True):
    """Session affinity."""

    client_ip: ClientIPConfig | None = msgspec.field(default=None, name="clientIP")


class ServiceSpec(K8s, frozen=True):
    """What a Service is."""

    ports: tuple[ServicePort, ...] | None = None
    selector: Mapping[str, str] | None = None
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    cluster_ips: tuple[str, ...] | None = msgspec.field(default=None, name="clusterIPs")
    external_ips: tuple[str, ...] | None = msgspec.field(default=None, name="externalIPs")
    type: str = "ClusterIP"
    external_name: str = ""
    session_affinity: str = ""
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str | None = None
    traffic_distribution: str | None = None
    publish_not_ready_addresses: bool = False


class LoadBalancerIngress(K8s, frozen=True):
    """An address of a load balancer."""

    ip: str = ""
    hostname: str = ""


class LoadBalancerStatus(K8s, frozen=True):
    """Addresses of a load balancer."""

    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(K8s, frozen=True):
    """Addresses that a load balancer gave."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()


class Service(K8s, frozen=True):
    """A Service."""

    metadata: ObjectMeta = ObjectMeta()
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class ObjectReference(K8s, frozen=True):
    """A pod behind an endpoint."""

    kind: str = ""
    name: str = ""
    namespace: str = ""
    uid: str = ""


class EndpointConditions(K8s, frozen=True):
    """Conditions; absent means unknown (ready: yes; terminating: no)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(K8s, frozen=True):
    """An endpoint of a slice."""

    addresses: tuple[str, ...] | None = None
    conditions: EndpointConditions = EndpointConditions()
    hostname: str | None = None
    target_ref: ObjectReference | None = None
    node_name: str | None = None
    zone: str | None = None


class EndpointPort(K8s, frozen=True):
    """A port of a slice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    app_protocol: str | None = None


class EndpointSlice(K8s, frozen=True):
    """A part of a Service's endpoints."""

    metadata: ObjectMeta = ObjectMeta()
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


class Namespace(K8s, frozen=True):
    """A namespace: its labels matter."""

    metadata: ObjectMeta = ObjectMeta()


class NodeAddress(K8s, frozen=True):
    """An address of a node."""

    type: str = ""
    address: str = ""


class NodeStatus(K8s, frozen=True):
    """Addresses of a node."""

    addresses: tuple[NodeAddress, ...] | None = None


class Node(K8s, frozen=True):
    """A node: its topology labels matter."""

    metadata: ObjectMeta = ObjectMeta()
    status: NodeStatus = NodeStatus()


class Secret(K8s, frozen=True):
    """A Secret; ``data`` stays in base64. Its text form never shows a value."""

    metadata: ObjectMeta = ObjectMeta()
    type: str = ""
    data: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        """Name the keys, redact the values."""
        keys = ", ".join(sorted(self.data or {}))
        return f"Secret({self.metadata.namespace}/{self.metadata.name}, keys=[{keys}], [redacted])"

    __str__ = __repr__


class ConfigMap(K8s, frozen=True):
    """A ConfigMap."""

    metadata: ObjectMeta = ObjectMeta()
    data: Mapping[str, str] | None = None


class ListMeta(K8s, frozen=True):
    """Metadata of a list; ``continue_`` pages on."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class RawList(K8s, frozen=True):
    """A list response whose items are left as bytes until someone decodes them."""

    metadata: ListMeta = ListMeta()
    items: tuple[msgspec.Raw, ...] | None = None


class WatchEvent(K8s, frozen=True):
    """One line of a watch: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""

    type: str = ""
    object: msgspec.Raw = msgspec.Raw(b"{}")


class Decoder(Generic[ObjT]):
    """A prepared decoder for one kind."""

    def __init__(self, kind: type[ObjT]) -> None:
        # Kubernetes' own serializers write null for empty lists and maps; optional fields take that.
        self._decoder = msgspec.json.Decoder(kind, strict=False)

    def __call__(self, source: Source) -> ObjT:
        """Decode one object. Raises msgspec.MsgspecError when the JSON or a type is wrong."""
        return self._decoder.decode(source)


decode_pod = Decoder(Pod)
decode_service = Decoder(Service)
decode_endpoint_slice = Decoder(EndpointSlice)
decode_namespace = Decoder(Namespace)
decode_node = Decoder(Node)
decode_secret = Decoder(Secret)
decode_config_map = Decoder(ConfigMap)
decode_list = Decoder(RawList)
decode_watch_event = Decoder(WatchEvent)


def labels_of(metadata: ObjectMeta) -> Mapping[str, str]:
    """Labels as a hashable map (empty when there are none)."""
    return FrozenMap(metadata.labels) if metadata.labels else EMPTY_MAP


def annotations_of(metadata: ObjectMeta) -> Mapping[str, str]:
    """Annotations as a hashable map (empty when there are none)."""
    return FrozenMap(metadata.annotations) if metadata.annotations else EMPTY_MAP


def decode_object(source: Source) -> dict[str, Any]:
    """Any object, untyped: what ``config.decode`` takes for custom resources."""
    value = msgspec.json.decode(source)
    if not isinstance(value, dict):
        raise msgspec.ValidationError("Expected a JSON object")
    return value
