"""The analysis messages: Istio's codes, names and levels; the wording is ours.

Codes are stable and never reused. Codes of this project's own start with MLT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from meltemi.model.origin import Level


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of finding. ``text`` is a format string; each analyzer says with what it is filled."""

    code: str
    name: str
    level: Level
    text: str


_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO
_ALL = (
    Message("IST0002", "Deprecated", _W, "{} is deprecated"),
    Message("IST0101", "ReferencedResourceNotFound", _E, "{kind} {name} does not exist"),
    Message("IST0102", "NamespaceNotInjected", _I, "pods of this namespace get no sidecar"),
    Message("IST0103", "PodMissingProxy", _W, "the pod has no sidecar, though its namespace asks for one"),
    Message("IST0104", "GatewayPortNotDefinedOnService", _W, "no Service of the gateway's pods has port {port}"),
    Message("IST0106", "SchemaValidationError", _E, "{}"),
    Message("IST0108", "UnknownAnnotation", _W, 'the annotation "{name}" is not known'),
    Message("IST0109", "ConflictingMeshGatewayVirtualServiceHosts", _E, 'the host {host} is routed by {others} too; only the oldest counts'),
    Message("IST0110", "ConflictingSidecarWorkloadSelectors", _E, "the Sidecars {names} select the same pod {pod}"),
    Message("IST0111", "MultipleSidecarsWithoutWorkloadSelectors", _E, "the Sidecars {names} all apply to the whole namespace"),
    Message("IST0112", "VirtualServiceDestinationPortSelectorRequired", _E, "{host} has several ports ({ports}) and none is chosen"),
    Message("IST0118", "PortNameIsNotUnderNamingConvention", _I, 'the port "{name}" ({port}) does not say what it speaks'),
    Message("IST0123", "NamespaceMultipleInjectionLabels", _W, "istio-injection and istio.io/rev are both set; istio-injection wins"),
    Message("IST0127", "NoMatchingWorkloadsFound", _W, "no pod has the labels {labels}"),
    Message("IST0128", "NoServerCertificateVerificationDestinationLevel", _I, "{}"),
    Message("IST0129", "NoServerCertificateVerificationPortLevel", _I, "{}"),
    Message("IST0130", "VirtualServiceUnreachableRule", _W, "the rule is never reached: {reason}"),
    Message("IST0131", "VirtualServiceIneffectiveMatch", _I, "the match has no effect: rule {rule} already has it"),
    Message("IST0132", "VirtualServiceHostNotFoundInGateway", _W, "the gateway {gateway} serves none of the hosts {hosts}"),
    Message("IST0133", "SchemaWarning", _W, "{}"),
    Message("IST0134", "ServiceEntryAddressesRequired", _W, "{}"),
    Message("IST0138", "GatewayDuplicateCertificate", _W, "the Secret {secret} is used by {others} too"),
    Message("IST0145", "ConflictingGateways", _E, "port {port} and host {host} are served by {others} too"),
    Message("IST0150", "ExternalNameServiceTypeInvalidPortName", _W, 'the port "{name}" of an ExternalName Service does not say what it speaks'),
    Message("IST0151", "EnvoyFilterUsesRelativeOperation", _W, "{operation} depends on the order in which filters are patched and sets no priority"),
    Message("IST0157", "InvalidTelemetryProvider", _W, "the mesh configuration has no provider {name}"),
    Message("IST0159", "ConflictingTelemetryWorkloadSelectors", _E, "the Telemetries {names} select the same pod {pod}"),
    Message("IST0160", "MultipleTelemetriesWithoutWorkloadSelectors", _E, "the Telemetries {names} all apply to the whole namespace"),
    Message("IST0161", "InvalidGatewayCredential", _E, "the Secret {secret} has no usable certificate: {reason}"),
    Message("MLT0001", "InvalidYAML", _E, "{}"),
)  # fmt: skip

MESSAGES: Mapping[str, Message] = MappingProxyType({message.code: message for message in _ALL})
